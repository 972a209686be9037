"""The Python package as people install it."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("scikit_build_core")
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SOURCES = REPOSITORY / "activation_store/python/nexus_librarian"
USE = """
import nexus_librarian, pathlib, sys
store = nexus_librarian.ActivationStore(sys.argv[1], framework="numpy")
assert store.sample(3)["blocks.1.resid_post"].shape == (12, 40)
print(pathlib.Path(nexus_librarian.__file__).parent)
"""


@pytest.mark.skipif(not shutil.which("cmake"), reason="building needs cmake")
def test_pip_install_gives_a_package_that_reads_a_store(tmp_path):
    """Goal: `pip install .` builds the decoder and takes every module and the mark of types along.

    Method: into a folder of its own, without an index, from outside the repository.
    """
    installed = tmp_path / "installed"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
                    "--no-build-isolation", "--target", installed, REPOSITORY],
                   check=True, timeout=1200, cwd=tmp_path)
    done = subprocess.run([sys.executable, "-c", USE,
                           REPOSITORY / "tests/activation_store/golden_store"],
                          check=True, capture_output=True, text=True, cwd=tmp_path,
                          env=os.environ | {"PYTHONPATH": str(installed)})
    package = pathlib.Path(done.stdout.strip())
    assert package == installed / "nexus_librarian"
    for source in [*SOURCES.rglob("*.py"), SOURCES / "py.typed"]:
        assert (package / source.relative_to(SOURCES)).read_bytes() == source.read_bytes()
    assert [path.name for path in package.glob("_decoder*")] == ["_decoder.abi3.so"]
