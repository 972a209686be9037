#!/usr/bin/env python3
"""Goal: the direction of knowledge between the folders stays what the design says.

Method: reads every #include line of the product and compares it with a table; first it plants bad
includes in a copy and expects to see each of them.

    cli -> ingest -> {weightmap -> gpu_exec, activation_store} -> base;  weightmap/remote -> base

Usage: dependency_test.py SOURCE_DIRECTORY        exit 0: nothing points the wrong way
"""

import pathlib
import re
import shutil
import sys
import tempfile

# Folder -> folders whose headers it may include, beside its own.
ALLOWED = {
    "base": set(),
    "activation_store": {"base"},
    "gpu_exec": {"base"},
    "weightmap/remote": {"base"},
    "weightmap": {"base", "gpu_exec", "weightmap/remote"},
    "ingest": {"base", "gpu_exec", "weightmap", "weightmap/remote", "activation_store"},
    "cli": {"base", "gpu_exec", "weightmap", "weightmap/remote", "activation_store", "ingest"},
}

# Library header -> the only places that may include it.
LIBRARIES = [
    (re.compile(r"^curl/"), lambda path: folder_of(path) == "weightmap/remote"),
    (re.compile(r"^z(std|dict|std_errors)\.h$"),
     lambda path: folder_of(path) == "activation_store"),
    (re.compile(r"^(cuda|cublas|curand|cub/|thrust/|nv)"),
     lambda path: path.name.startswith("cuda_") or path.suffix == ".cu"),
]

INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)', re.MULTILINE)
SOURCES = {".h", ".cc", ".cu", ".cuh", ".in"}


def folder_of(path):
    """The folder of ALLOWED that holds a relative path, or None."""
    parent = path.parent.as_posix()
    while parent not in ("", "."):
        if parent in ALLOWED:
            return parent
        parent = pathlib.PurePosixPath(parent).parent.as_posix()
    return None


def problems(root):
    """(relative path, included name, why) for every include that should not be there."""
    found = []
    seen = 0
    for folder in sorted({name.split("/")[0] for name in ALLOWED}):
        for file in sorted((root / folder).rglob("*")):
            if file.suffix not in SOURCES or not file.is_file():
                continue
            if "python" in file.relative_to(root).parts:
                continue
            path = pathlib.PurePosixPath(file.relative_to(root).as_posix())
            here = folder_of(path)
            seen += 1
            for quoted, bracketed in INCLUDE.findall(file.read_text(encoding="utf-8")):
                name = quoted or bracketed
                for pattern, is_allowed in LIBRARIES:
                    if pattern.search(name) and not is_allowed(path):
                        found.append((path, name, "this library belongs elsewhere"))
                if name.split("/")[0] == "tests":
                    found.append((path, name, "product code knows no tests"))
                there = folder_of(pathlib.PurePosixPath(name))
                if there is not None:
                    if there != here and there not in ALLOWED[here]:
                        found.append((path, name, f"{here} must not know {there}"))
                elif quoted and "version.h" not in name:
                    found.append((path, name, "quoted includes name their folder from the root"))
    if seen < 50:
        found.append((root, "", f"only {seen} source files found: wrong directory?"))
    return found


PLANTED = [
    ("base/error.h", '#include "gpu_exec/model_spec.h"'),
    ("base/error.cc", "  #  include  \"ingest/job.h\""),
    ("gpu_exec/model_spec.h", '#include "weightmap/checkpoint.h"'),
    ("gpu_exec/cpu_device.cc", "#include <cuda_runtime.h>"),
    ("activation_store/types.cc", '#include "gpu_exec/model_spec.h"'),
    ("activation_store/types.cc", '#include "weightmap/remote/transport.h"'),
    ("weightmap/remote/uri.cc", '#include "weightmap/checkpoint.h"'),
    ("weightmap/remote/uri.cc", '#include "gpu_exec/model_spec.h"'),
    ("weightmap/checkpoint.cc", '#include "activation_store/types.h"'),
    ("weightmap/checkpoint.cc", "#include <curl/curl.h>"),
    ("weightmap/checkpoint.h", '#include "ingest/job.h"'),
    ("ingest/job.h", '#include "cli/main.h"'),
    ("ingest/npy.cc", "#include <zstd.h>"),
    ("ingest/npy.cc", '#include "tests/ingest/tiny_model.h"'),
    ("ingest/npy.cc", '#include "npy.h"'),
]


def missed_plants(root):
    """The planted includes that problems() does not notice."""
    missed = []
    with tempfile.TemporaryDirectory() as scratch:
        copy = pathlib.Path(scratch)
        for folder in sorted({name.split("/")[0] for name in ALLOWED}):
            shutil.copytree(root / folder, copy / folder)
        clean = problems(copy)
        for name, line in PLANTED:
            file = copy / name
            before = file.read_text(encoding="utf-8")
            file.write_text(before + line + "\n", encoding="utf-8")
            if len(problems(copy)) <= len(clean):
                missed.append((name, line))
            file.write_text(before, encoding="utf-8")
    return missed


def main():
    root = pathlib.Path(sys.argv[1])
    found = problems(root)
    for path, name, why in found:
        print(f"{path}: #include {name}: {why}")
    missed = missed_plants(root)
    for name, line in missed:
        print(f"self-check: not noticed in {name}: {line}")
    return 1 if found or missed else 0


if __name__ == "__main__":
    sys.exit(main())
