#!/usr/bin/env python3
"""How close a real run comes to its bound, with a server as slow as we like.

    build/venv/bin/python tests/bench/overlap.py [--librarian build/release/cli/librarian]

A random model of 12 layers or more is served over HTTP on loopback, paced so that the network takes
half as long as compute, as long, and twice as long. For each pace one extraction runs; printed are
wall / bound (design: at most 1.05), who set the bound, fetched / needed bytes, tokens/s through the
whole model, and the process's peak resident memory. Figures are ratios within one run: these
machines are shared.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from range_server import RangeServer  # noqa: E402


def extract(librarian, url, tokens, out):
    """The report of one extraction."""
    subprocess.run([librarian, "extract", url, "--tokens", tokens, "--out", out,
                    "--capture", "resid_post@all", "--host-memory", "1GiB"],
                   check=True, stdout=subprocess.DEVNULL)
    return json.loads((out / "report.json").read_text())["runs"][-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--librarian", default=ROOT / "build/release/cli/librarian")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        work = pathlib.Path(directory)
        subprocess.run([sys.executable, ROOT / "examples/make_teacher.py", work / "model",
                        "--layers", str(options.layers), "--hidden", str(options.hidden),
                        "--ffn", str(3 * options.hidden)], check=True, stdout=subprocess.DEVNULL)
        text = ROOT / "examples/text/how_it_works.txt"
        tokens = work / "tokens.safetensors"
        subprocess.run([sys.executable, ROOT / "examples/tokenize_bytes.py", text, "--out", tokens],
                       check=True, stdout=subprocess.DEVNULL)
        server = RangeServer(work)
        server.start()
        free = extract(options.librarian, server.url + "model/", tokens, work / "free")
        server.stop()
        compute = (free["compute_busy_ns"] + free["load_busy_ns"]) / 1e9
        print(f"{'network':>10}  {'wall':>8}  {'bound':>8}  wall/bound  set by         "
              f"fetched/needed  tokens/s  peak MiB")
        for slow in (0.5, 1.0, 2.0):
            server = RangeServer(work, bytes_per_second=free["needed_bytes"] / (compute * slow))
            server.start()
            run = extract(options.librarian, server.url + "model/", tokens, work / f"x{slow}")
            server.stop()
            wall, bound = run["wall_ns"] / 1e9, run["bound_ns"] / 1e9
            print(f"{slow:>9.1f}x  {wall:7.2f}s  {bound:7.2f}s  {wall / bound:10.3f}  "
                  f"{run['bound_set_by']:<13}  {run['fetched_bytes'] / run['needed_bytes']:14.4f}  "
                  f"{run['tokens_done_here'] / wall:8.0f}  {run['resident_peak_bytes'] >> 20:8d}")


if __name__ == "__main__":
    main()
