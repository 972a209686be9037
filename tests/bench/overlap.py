#!/usr/bin/env python3
"""How close a real run comes to its bound, with a server as slow as we like.

    python3 tests/bench/overlap.py [--librarian build/release/cli/librarian] [--device cuda:0]

A random model of 12 layers or more is served over HTTP on loopback, as fast as it goes and paced so
that the network takes half as long as compute, as long, and twice as long. For each pace one
extraction runs; printed are wall / bound (design: at most 1.05), who set the bound, fetched / needed
bytes, tokens/s through the whole model, and the process's peak resident memory. Figures are ratios
within one run: these machines are shared. A slower upload to the GPU is not here: nothing outside
the program can throttle it. Python standard library only.
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "tests/gpu")]

from plain_files import write_random_llama, write_tokens  # noqa: E402
from range_server import RangeServer  # noqa: E402

VOCAB = 512


def extract(options, work, name, bytes_per_second=0):
    """The report of one extraction."""
    out = work / name
    server = RangeServer(work, bytes_per_second=bytes_per_second)
    server.start()
    subprocess.run([options.librarian, "extract", server.url + "model/", "--tokens",
                    work / "tokens.safetensors", "--out", out, "--device", options.device,
                    "--capture", options.capture, "--host-memory", options.host_memory],
                   check=True, stdout=subprocess.DEVNULL)
    server.stop()
    report = json.loads((out / "report.json").read_text())["runs"][-1]
    shutil.rmtree(out)
    return report


def print_line(pace, run):
    wall, bound = run["wall_ns"] / 1e9, run["bound_ns"] / 1e9
    print(f"{pace:>10}  {wall:7.2f}s  {bound:7.2f}s  {wall / bound:10.3f}  "
          f"{run['bound_set_by']:<13}  {run['fetched_bytes'] / run['needed_bytes']:14.4f}  "
          f"{run['tokens_done_here'] / wall:8.0f}  {run['resident_peak_bytes'] >> 20:8d}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--librarian", default=ROOT / "build/release/cli/librarian")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768, help="a multiple of 256")
    parser.add_argument("--ffn", type=int, help="default: 3 * hidden")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--sample-tokens", type=int, default=512)
    parser.add_argument("--capture", default="resid_post@all")
    parser.add_argument("--host-memory", default="1GiB")
    parser.add_argument("--out", type=pathlib.Path, help="the runs' reports, JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        work = pathlib.Path(directory)
        write_random_llama(work / "model", hidden=options.hidden, layers=options.layers,
                           ffn=options.ffn or 3 * options.hidden, heads=options.hidden // 64,
                           kv_heads=options.hidden // 256, vocab=VOCAB)
        write_tokens(work / "tokens.safetensors", [options.sample_tokens] * options.samples, VOCAB)
        print(f"{'network':>10}  {'wall':>8}  {'bound':>8}  wall/bound  set by         "
              f"fetched/needed  tokens/s  peak MiB")
        runs = {"free": extract(options, work, "free")}
        print_line("free", runs["free"])
        compute = (runs["free"]["compute_busy_ns"] + runs["free"]["load_busy_ns"]) / 1e9
        for slow in (0.5, 1.0, 2.0):
            pace = f"{slow:.1f}x"
            runs[pace] = extract(options, work, pace,
                                 runs["free"]["needed_bytes"] / (compute * slow))
            print_line(pace, runs[pace])
    if options.out:
        for run in runs.values():
            run["wall_of_bound"] = run["wall_ns"] / run["bound_ns"]
        options.out.write_text(json.dumps(runs))


if __name__ == "__main__":
    main()
