#!/usr/bin/env python3
"""Every golden checkpoint on a device against transformers, with Python's standard library alone.

    tests/gpu/goldens.py --librarian build/cuda/cli/librarian [--device cuda:0] [--families a,b]

Each family is extracted in f32 and in its checkpoint's 16-bit type, with all captures, and compared
by the rules of tests/python/test_golden.py:
    f32      relative error <= 2e-5 for every token
    16 bit   median over tokens of the error against the f32 truth <= 1.15 times that of
             transformers' own run in that type; equal where transformers is exact
Exit code 0: all are within.
"""

import argparse
import concurrent.futures
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile

from plain_files import read_f32_safetensors, read_store

ROOT = pathlib.Path(__file__).resolve().parents[2]
F32_ERROR_MAX = 2e-5
ERROR_RATIO_MAX = 1.15
STORED_TYPE = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


def read_golden(golden, family, meta):
    """{capture: rows} under every name the family's file can give; see tests/golden/README.md."""
    captures = read_f32_safetensors(
        golden / meta.get("golden_of", family) / "golden_f32.safetensors")
    resid = captures["embed"]
    for layer in range(sum(name.endswith("resid_post") for name in captures)):
        prefix = f"blocks.{layer}."
        captures[prefix + "resid_pre"] = resid
        if prefix + "attn_out" in captures and meta["resid_mid"] == "sum":
            captures[prefix + "resid_mid"] = [
                type(a)("f", (x + y for x, y in zip(a, b)))
                for a, b in zip(resid, captures[prefix + "attn_out"])]
        resid = captures[prefix + "resid_post"]
    if "final.post_norm" in captures:
        captures["final.pre_norm"] = resid
    return captures


def captures_of(names):
    """What --capture must say to get all of these names."""
    kinds = {name.split(".")[2] + "@all" if name.startswith("blocks.") else name for name in names}
    return ",".join(sorted(kinds))


def row_errors(got, truth):
    """|got - truth| / |truth| for each row; 0 where they are equal, infinite where not finite."""
    errors = []
    for row, expected in zip(got, truth):
        difference, length = math.dist(row, expected), math.hypot(*expected)
        error = 0 if difference == 0 else difference / length if length else math.inf
        errors.append(error if math.isfinite(error) else math.inf)
    return errors


class Comparison:
    """What one run's captures are like."""

    def __init__(self, got, truth, medians):
        """`medians`: transformers' errors in 16 bits; None: the run was in f32."""
        self.wrong, self.worst = [], 0.0
        for name in sorted(truth):
            if [len(row) for row in got.get(name, [])] != [len(row) for row in truth[name]]:
                self.wrong.append(f"{name}: missing, or of another shape")
            elif medians is None:
                self._within(name, max(row_errors(got[name], truth[name])), F32_ERROR_MAX)
            elif name in medians and medians[name] == 0:
                if got[name] != truth[name]:
                    self.wrong.append(f"{name}: differs, transformers is exact")
            elif name in medians:
                self._within(name, statistics.median(row_errors(got[name], truth[name])),
                             ERROR_RATIO_MAX * medians[name])

    def _within(self, name, error, limit):
        self.worst = max(self.worst, error / limit)
        if not error <= limit:
            self.wrong.append(f"{name}: error {error:.3e}, allowed {limit:.3e}")


def run(options, family, type_name):
    """(what is wrong, the largest share of what is allowed) of one extraction."""
    folder = options.golden / family
    meta = json.loads((folder / "meta.json").read_text())
    truth = read_golden(options.golden, family, meta)
    with tempfile.TemporaryDirectory() as directory:
        store = pathlib.Path(directory) / "store"
        done = subprocess.run(
            [options.librarian, "extract", folder / "model", "--tokens",
             folder / "tokens.safetensors", "--out", store, "--dtype", type_name, "--device",
             options.device, "--codec", "none", "--capture", captures_of(truth)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            return [f"exit code {done.returncode}: {done.stderr.strip()[-400:]}"], math.inf
        got, types = read_store(store)
    if types != {STORED_TYPE[type_name]}:
        return [f"stored as {types}"], math.inf
    medians = None if type_name == "f32" else meta["median_error_against_f32"]
    comparison = Comparison(got, truth, medians)
    return comparison.wrong, comparison.worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--librarian", type=pathlib.Path, required=True)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--golden", type=pathlib.Path, default=ROOT / "tests/golden")
    parser.add_argument("--families", help="comma-separated; default: all")
    parser.add_argument("--jobs", type=int, default=4, help="extractions at a time")
    parser.add_argument("--out", type=pathlib.Path, help="figures, JSON")
    options = parser.parse_args()
    wanted = options.families.split(",") if options.families else sorted(
        path.parent.name for path in options.golden.glob("*/meta.json"))
    runs = [(family, type_name) for family in wanted for type_name in
            json.loads((options.golden / family / "meta.json").read_text())["golden"]]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda each: run(options, *each), runs))
    failed, worst = [], {}
    for (family, type_name), (wrong, share) in zip(runs, results):
        kind = "f32" if type_name == "f32" else "16 bit"
        worst[kind] = max(worst.get(kind, (0.0, "")), (share, family))
        if wrong:
            failed.append(f"{family} {type_name}")
            print(f"FAILED {family} {type_name}:", *wrong, sep="\n    ")
    for kind, (share, family) in worst.items():
        print(f"{kind}: the largest error is {share:.3f} of what is allowed ({family})")
    print(f"{len(runs) - len(failed)} of {len(runs)} runs are within tolerance on {options.device}")
    if options.out:
        shares = {kind: {"share_of_allowed": share if math.isfinite(share) else None,
                         "family": family} for kind, (share, family) in worst.items()}
        options.out.write_text(json.dumps(
            {"device": options.device, "runs": len(runs), "failed": failed, "largest": shares}))
    return 1 if failed or not runs else 0


if __name__ == "__main__":
    sys.exit(main())
