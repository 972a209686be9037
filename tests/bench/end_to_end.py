#!/usr/bin/env python3
"""A whole extraction beside the other ways to get the same activations.

    tests/bench/end_to_end.py [--librarian build/release/cli/librarian] [--rounds 3]

A random Llama of the shape of a 1.1 billion model, with fewer layers, is written to disk; every
contender (contenders.py says which) runs over it in a process of its own and brings resid_post of
all layers, once for 4096 tokens in samples of 128 and once for 32 samples of 8 to 512 tokens.
Rounds are interleaved. The captures of the first round are compared with ours: who does other work
than the rest is no contender, and ends the script. Printed are medians. Ours is timed as a whole,
from the start of its process to the end, with captures compressed and durable on disk; the others
without their imports, and most keep the captures in memory only.

A contender named in --capped runs a second time with half the weights' size as its memory: in
--cgroup DIR, a memory cgroup that you made and limited, or else under a resource limit.
Needs tests/bench/requirements.txt.
"""
import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

import numpy as np
import zarr
from safetensors.numpy import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
VOCAB = 32000
OURS = "librarian"
CONTENDERS = (OURS, "loop", "accelerate", "plain", "lmprobe")
# Two bf16 runs with other orders of summation are this far apart, and more so with each layer.
RELATIVE_ERROR_MAX = 0.05
# How many times as long as ours the others should take.
BARS = {("lmprobe", "uniform"): 2.0, ("lmprobe", "ragged"): 6.0}


@dataclass
class Runs:
    """What one contender took on one token set, round by round."""

    wall_s: list = field(default_factory=list)
    cpu_s: list = field(default_factory=list)
    peak_mib: list = field(default_factory=list)
    failure: str = ""
    error: float = float("nan")  # Of its captures against ours; the worst layer's.

    def add(self, facts):
        for name in ("wall_s", "cpu_s", "peak_mib"):
            getattr(self, name).append(facts[name])


def uniform_lengths(_random):
    return [128] * 32


def ragged_lengths(random):
    """The longest one first: lmprobe takes the first sample's positions for all, which is wrong
    for samples longer than that."""
    lengths = np.clip(random.exponential(128, 31).astype(np.int64), 8, 512)
    return [512, *lengths]


TOKEN_SETS = {"uniform": uniform_lengths, "ragged": ragged_lengths}


def write_tokens(path, lengths, random):
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    ids = random.integers(0, VOCAB, offsets[-1]).astype(np.int32)
    save_file({"input_ids": ids, "offsets": offsets}, path)


def write_model(folder, layers):
    subprocess.run([sys.executable, ROOT / "examples/make_teacher.py", folder, "--hidden", "2048",
                    "--ffn", "5632", "--heads", "32", "--kv-heads", "4", "--vocab", str(VOCAB),
                    "--layers", str(layers)], check=True, stdout=subprocess.DEVNULL)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


class Bench:
    """The model, the token sets and how a contender is run on them."""

    def __init__(self, options, work):
        self.options = options
        self.work = work
        # A copy: a build going on meanwhile must not change who is measured.
        self.librarian = shutil.copy2(options.librarian, work / "librarian")
        self.model = work / "model"
        weight_bytes = write_model(self.model, options.layers)
        self.cap_mib = options.cap or (weight_bytes >> 21)
        random = np.random.default_rng(7)
        for name in TOKEN_SETS:
            write_tokens(self.tokens(name), TOKEN_SETS[name](random), random)

    def tokens(self, token_set):
        return self.work / f"{token_set}.safetensors"

    def run(self, name, token_set, keep):
        """Facts of one run, or None and why not; with `keep` the captures stay in captures()."""
        contender, _, capped = name.partition(" ")
        scratch = self.work / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(self.captures(name), ignore_errors=True)
        scratch.mkdir()
        limit = self.cap_mib if capped else None
        kept = self.captures(name) if keep else None
        if contender == OURS:
            return self._run_ours(token_set, limit, kept or scratch / "out")
        return self._run_other(contender, token_set, limit, scratch, kept)

    def captures(self, name):
        return self.work / ("captures-" + name.replace(" ", "-"))

    def _run_ours(self, token_set, limit, out):
        command = [self.librarian, "extract", self.model, "--tokens", self.tokens(token_set),
                   "--out", out, "--capture", "resid_post@all", "--threads",
                   str(self.options.threads), "--host-memory", f"{limit or 1024}MiB"]
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                   preexec_fn=self._enter_cgroup(limit))
        problem = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - begin
        if status:
            return None, problem
        report = json.loads((out / "report.json").read_text())["runs"][-1]
        return {"wall_s": wall_s, "cpu_s": usage.ru_utime + usage.ru_stime,
                "peak_mib": report["resident_peak_bytes"] / (1 << 20)}, ""

    def _run_other(self, contender, token_set, limit, scratch, keep):
        command = [sys.executable, pathlib.Path(__file__).with_name("contenders.py"), contender,
                   "--model", self.model, "--tokens", self.tokens(token_set), "--work", scratch,
                   "--threads", str(self.options.threads), "--batch", str(self.options.batch)]
        command += ["--save", keep] if keep else []
        command += ["--memory-limit", str(limit)] if limit and not self.options.cgroup else []
        process = subprocess.run(command, capture_output=True, text=True,
                                 preexec_fn=self._enter_cgroup(limit))
        if process.returncode:
            return None, process.stderr
        return json.loads(process.stdout.splitlines()[-1]), ""

    def _enter_cgroup(self, limit):
        """What a child does before it becomes the contender."""
        if not (limit and self.options.cgroup):
            return None
        return lambda: (self.options.cgroup / "cgroup.procs").write_text(str(os.getpid()))

    def error_of(self, name, token_set):
        """Relative error of the captures of `name` against ours, of the worst layer."""
        errors = []
        for layer in range(self.options.layers):
            ours, theirs = self._read(OURS, token_set, layer), self._read(name, token_set, layer)
            errors.append(np.linalg.norm(ours - theirs) / np.linalg.norm(ours))
        return max(errors)

    def _read(self, name, token_set, layer):
        """resid_post of a layer as it was kept, float32 [tokens, hidden] in the order of input."""
        if not name.startswith(OURS):
            return as_float(np.load(self.captures(name) / f"{layer}.npy"))
        part = zarr.open_group(self.captures(name) / "part-00000", mode="r")
        offsets = load_file(self.tokens(token_set))["offsets"]
        assert (part["tokens/offsets"][:] == offsets).all()  # One part, and so the input's order.
        return as_float(part[f"blocks.{layer}.resid_post"][:])


def as_float(bits):
    """float32 of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def run_round(bench, names, token_set, results, first):
    for name in names:
        runs = results[name]
        if runs.failure:
            continue
        facts, problem = bench.run(name, token_set, keep=first)
        if facts is None:
            runs.failure = "ended: " + problem.strip().splitlines()[-1][:80]
        else:
            runs.add(facts)
            print(f"  {token_set} {name}: {facts['wall_s']:.1f} s, {facts['cpu_s']:.1f} CPU s",
                  file=sys.stderr)
        if facts and first:
            runs.error = bench.error_of(name, token_set)
            if not runs.error <= RELATIVE_ERROR_MAX:
                raise SystemExit(f"{name} has other captures than ours: {runs.error:.3f} off")


def print_table(token_set, tokens, results):
    ours = results[OURS]
    print(f"\n{token_set}: {tokens} tokens\n"
          "contender           wall s   CPU s  tokens/CPU-s  peak MiB  wall ratio  CPU ratio  bar"
          "     off by")
    for name, runs in results.items():
        if runs.failure:
            print(f"{name:18} {runs.failure}", flush=True)
            continue
        wall_s, cpu_s = statistics.median(runs.wall_s), statistics.median(runs.cpu_s)
        ratios = [statistics.median(b / a for a, b in zip(getattr(ours, what), getattr(runs, what)))
                  for what in ("wall_s", "cpu_s")]
        bar = "" if name.startswith(OURS) else f">= {BARS.get((name, token_set), 1.0):.1f}"
        print(f"{name:18} {wall_s:7.1f} {cpu_s:7.1f}  {tokens / cpu_s:12.0f}"
              f"  {statistics.median(runs.peak_mib):8.0f}  {ratios[0]:10.2f}  {ratios[1]:9.2f}"
              f"  {bar:6}  {runs.error:.4f}", flush=True)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--librarian", default=ROOT / "build/release/cli/librarian")
    parser.add_argument("--layers", type=int, default=4, help="22 make a model of 1.1 billion")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="samples in one call of the others")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--token-sets", default=",".join(TOKEN_SETS))
    parser.add_argument("--capped", default="librarian,plain", help="also with less memory")
    parser.add_argument("--cap", type=int, metavar="MIB", help="default: half the weights")
    parser.add_argument("--cgroup", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--work", type=pathlib.Path, help="where to work; default: /tmp")
    return parser.parse_args()


def main():
    options = parse_options()
    names = [OURS, *(n for n in options.contenders.split(",") if n != OURS)]
    names += [f"{name} capped" for name in options.capped.split(",") if name]
    with tempfile.TemporaryDirectory(dir=options.work) as directory:
        bench = Bench(options, pathlib.Path(directory))
        print(f"{options.layers} layers, {options.threads} threads, batches of {options.batch}, "
              f"medians of {options.rounds} rounds; capped: {bench.cap_mib} MiB; load at the start "
              f"{os.getloadavg()[0]:.1f}: where others work, go by CPU seconds", flush=True)
        for token_set in options.token_sets.split(","):
            results = {name: Runs() for name in names}
            for i in range(options.rounds):
                run_round(bench, names, token_set, results, first=i == 0)
            tokens = int(load_file(bench.tokens(token_set))["offsets"][-1])
            print_table(token_set, tokens, results)


if __name__ == "__main__":
    main()
