#!/usr/bin/env python3
"""Puts what the steps of tests/gpu/run.sh left in a folder together as its results.json.

    tests/gpu/results.py OUT_DIR     exit code 0: no step failed

Speed targets are written beside the figures and do not decide the exit code: they depend on the GPU.
"""

import csv
import json
import pathlib
import sys


def read_steps(folder):
    lines = (folder / "steps.txt").read_text().splitlines()
    return {name: {"outcome": outcome, "seconds": int(seconds)}
            for name, outcome, seconds in (line.split("\t") for line in lines)}


def read_json(path):
    return json.loads(path.read_text()) if path.exists() else None


def read_bench(path):
    """Lists of figures by name; a line that a kill cut short is left out."""
    figures = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.startswith("{") and line.endswith("}"):
            figure = json.loads(line)
            figures.setdefault(figure.pop("bench"), []).append(figure)
    return figures


def read_clocks(path):
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file, skipinitialspace=True))


def targets_of(bench, overlap):
    """What the design asks for, and whether this run has it."""
    found = []

    def add(name, value, wanted, met):
        found.append({"what": name, "value": value, "wanted": wanted, "met": met})

    for layer in bench.get("layer", []):
        if not layer["staged"]:
            add("70B layer, 2k samples, share of peak", layer["of_peak"], ">= 0.75",
                layer["of_peak"] >= 0.75)
    for attention in bench.get("attention", []):
        add("attention at 4k, share of peak", attention["of_peak"], ">= 0.5",
            attention["of_peak"] >= 0.5)
    for summary in bench.get("rows_summary", []):
        add("product shapes whose rows differ", summary["shapes_with_unequal_rows"], "0",
            summary["shapes_with_unequal_rows"] == 0)
    for pace, run in (overlap or {}).items():
        add(f"12 layers streamed, network {pace}, wall / bound", run["wall_of_bound"], "<= 1.05",
            run["wall_of_bound"] <= 1.05)
    return found


def main():
    folder = pathlib.Path(sys.argv[1])
    steps = read_steps(folder)
    bench, overlap = read_bench(folder / "bench.jsonl"), read_json(folder / "overlap.json")
    clocks = {name: read_clocks(folder / f"clocks-{name}.csv")
              for name in ("before", "during", "after")}
    failed = [name for name, step in steps.items() if step["outcome"].startswith("failed")]
    no_gpu = (folder / "no-gpu.log").exists()
    results = {
        "outcome": "failed" if failed else "no GPU" if no_gpu else "passed",
        "device": next(iter(bench.get("device", [])), None),
        "driver": clocks["before"][0].get("driver_version") if clocks["before"] else None,
        "steps": steps,
        "targets": targets_of(bench, overlap),
        "bench": bench,
        "goldens": read_json(folder / "goldens.json"),
        "stores": read_json(folder / "stores.json"),
        "overlap": overlap,
        "clocks": clocks,
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    for name, step in steps.items():
        print(f"{name:12} {step['seconds']:4} s  {step['outcome']}")
    for target in results["targets"]:
        print(f"{'met' if target['met'] else 'NOT MET':7} {target['what']}: {target['value']:.4g}, "
              f"wanted {target['wanted']}")
    print(f"{results['outcome']}; figures in {folder / 'results.json'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
