#!/usr/bin/env python3
"""Our CPU kernels beside torch's: matrix products, and a whole Llama layer beside transformers'.

    tests/bench/kernels_vs_torch.py [--layer-bench build/release/tests/bench/layer_bench]

Every repetition of ours is followed by one of torch's on the same shape, so that whatever else the
machine does falls on both. Figures are medians of GFLOP per second of processor time; "ratio" is
the median of the ratios of neighbouring repetitions. Both sides are credited with the same
arithmetic: 2 x rows x inputs x outputs for a product, and for a layer its matrices plus that part
of the attention which a causal mask leaves. Data are random. Ours packs a matrix beforehand, once
for all samples ("pack": in percent of one product); torch takes it as it is stored.
Needs tests/bench/requirements.txt.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import time
from dataclasses import dataclass

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

ROOT = pathlib.Path(__file__).resolve().parents[2]

SIZES = ("512x1024x1024", "4096x1024x1024", "2048x2048x2048", "2048x2048x5632", "2048x5632x2048",
         "2048x4096x4096", "4096x4096x4096")
LAYERS = ("16x128", "1x2048")
# The layer of layer_bench.cc: a Llama of 1.1 billion parameters.
HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM = 2048, 5632, 32, 4, 64
# How often that layer has each product of 2048 rows; K and V, small, are left out.
LAYER_PRODUCTS = {"2048x2048x2048": 2, "2048x2048x5632": 2, "2048x5632x2048": 1}
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
# What the ratio to torch should be at least.
BARS = {("linear", "bf16"): 1.0, ("layer", "bf16"): 1.5, ("layer", "f32"): 1.1}
LAYER_TO_PRODUCTS_BAR = 0.85


@dataclass(frozen=True)
class Case:
    kind: str  # "linear" or "layer"
    shape: str  # rows x inputs x outputs, or samples x tokens
    dtype: str
    threads: int

    def sizes(self):
        return [int(size) for size in self.shape.split("x")]

    def gflop(self):
        if self.kind == "linear":
            rows, inputs, outputs = self.sizes()
            return 2e-9 * rows * inputs * outputs
        samples, tokens = self.sizes()
        matrices = HIDDEN * HEAD_DIM * (2 * HEADS + 2 * KV_HEADS) + 3 * HIDDEN * FFN
        attention = 2 * HEADS * HEAD_DIM * 2 * (tokens + 1) / 2
        return 1e-9 * samples * tokens * (2 * matrices + attention)


@dataclass
class Result:
    """CPU seconds of the repetitions, ours and torch's by turns."""

    case: Case
    isa: str
    pack_s: float
    our_s: list
    torch_s: list

    def our_rate(self):
        return self.case.gflop() / statistics.median(self.our_s)

    def torch_rate(self):
        return self.case.gflop() / statistics.median(self.torch_s)

    def ratio(self):
        return statistics.median(torch / our for our, torch in zip(self.our_s, self.torch_s))


def torch_linear(case):
    """One product as torch does it, ready to be called."""
    rows, inputs, outputs = case.sizes()
    x = (2 * torch.rand(rows, inputs) - 1).to(DTYPES[case.dtype])
    weight = (0.02 * (2 * torch.rand(outputs, inputs) - 1)).to(DTYPES[case.dtype])
    return lambda: torch.nn.functional.linear(x, weight)


def torch_layer(case):
    """transformers' layer with SDPA, ready to be called."""
    samples, tokens = case.sizes()
    dtype = DTYPES[case.dtype]
    config = LlamaConfig(hidden_size=HIDDEN, intermediate_size=FFN, num_attention_heads=HEADS,
                         num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, num_hidden_layers=1)
    config._attn_implementation = "sdpa"
    layer = LlamaDecoderLayer(config, 0).eval()
    for parameter in layer.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    layer = layer.to(dtype)
    x = (2 * torch.rand(samples, tokens, HIDDEN) - 1).to(dtype)
    positions = torch.arange(tokens)[None]
    turns = LlamaRotaryEmbedding(config)(x, positions)
    # Without a mask SDPA is told "causal" and skips what a mask would hide.
    return lambda: layer(x, attention_mask=None, position_ids=positions, position_embeddings=turns)


class OurSide:
    """layer_bench on one case; it runs a repetition whenever it is asked."""

    def __init__(self, program, isa, case, repeats):
        shapes = {"linear": "none", "layer": "none", case.kind: case.shape}
        self._process = subprocess.Popen(
            [program, "--paced", "--json", "--isa", isa, "--repeat", str(repeats),
             "--threads", str(case.threads), "--dtypes", case.dtype,
             "--sizes", shapes["linear"], "--layers", shapes["layer"]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def repetition(self):
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"layer_bench ended with {self._process.wait()}")
        return json.loads(line)

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def cpu_seconds(work):
    begin = time.process_time()
    work()
    return time.process_time() - begin


def measure(options, case):
    """A Result of `options.repeat` repetitions of each side, after one of each to warm up."""
    torch.set_num_threads(case.threads)
    torch.manual_seed(1)
    theirs = torch_linear(case) if case.kind == "linear" else torch_layer(case)
    ours = OurSide(options.layer_bench, options.isa, case, options.repeat + 1)
    ours.repetition()
    theirs()
    our_lines, torch_s = [], []
    for _ in range(options.repeat):
        our_lines.append(ours.repetition())
        torch_s.append(cpu_seconds(theirs))
    ours.close()
    line = our_lines[0]
    if abs(line["gflop"] / case.gflop() - 1) > 1e-3:
        raise SystemExit(f"layer_bench counts {line['gflop']} GFLOP for {case}, not {case.gflop()}")
    return Result(case, line["isa"], line["pack_cpu_s"], [x["cpu_s"] for x in our_lines], torch_s)


def print_line(result):
    case = result.case
    bar = BARS.get((case.kind, case.dtype))
    pack = f"{100 * result.pack_s / statistics.median(result.our_s):.1f} %"
    pack = pack if case.kind == "linear" else ""
    print(f"{case.threads:7d}  {case.dtype:5}  {case.kind:6}  {case.shape:14}  {result.isa:8}  "
          f"{result.our_rate():8.1f}  {result.torch_rate():8.1f}  {result.ratio():5.2f}  "
          f"{f'>= {bar:.2f}' if bar else '':7}  {pack:>7}", flush=True)


def print_layers_to_products(results):
    """How much of our own products' rate is left in a whole layer."""
    rates = {(r.case.threads, r.case.dtype, r.case.shape): r.our_rate() for r in results}
    for result in results:
        case = result.case
        rows = [(Case("linear", shape, case.dtype, case.threads).gflop() * count,
                 rates.get((case.threads, case.dtype, shape)))
                for shape, count in LAYER_PRODUCTS.items()]
        if case.kind != "layer" or not all(rate for _, rate in rows):
            continue
        products = sum(gflop for gflop, _ in rows) / sum(gflop / rate for gflop, rate in rows)
        print(f"layer {case.shape:7} {case.dtype:4} {case.threads} threads: "
              f"{100 * result.our_rate() / products:5.1f} % of our own products of its shapes "
              f"({products:.1f} GFLOP/CPU-s); bar >= {100 * LAYER_TO_PRODUCTS_BAR:.0f} %")


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layer-bench", default=ROOT / "build/release/tests/bench/layer_bench")
    parser.add_argument("--isa", default="best", help="path of ours; torch takes its own best")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--dtypes", default="bf16,f32")
    parser.add_argument("--sizes", default=",".join(SIZES), help="ROWSxINPUTSxOUTPUTS,... or none")
    parser.add_argument("--layers", default=",".join(LAYERS), help="SAMPLESxTOKENS,... or none")
    parser.add_argument("--repeat", type=int, default=7)
    return parser.parse_args()


def cases_of(options):
    shapes = [(kind, shape) for kind, text in (("linear", options.sizes), ("layer", options.layers))
              for shape in text.split(",") if shape != "none"]
    return [Case(kind, shape, dtype, int(threads)) for threads in options.threads.split(",")
            for dtype in options.dtypes.split(",") for kind, shape in shapes]


def main():
    options = parse_options()
    torch.set_grad_enabled(False)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}; "
          f"GFLOP per CPU-second, medians of {options.repeat}, taking turns\n"
          "threads  dtype  kind    shape           isa           ours     torch  ratio  bar      "
          "   pack")
    results = []
    for case in cases_of(options):
        results.append(measure(options, case))
        print_line(results[-1])
    print_layers_to_products(results)


if __name__ == "__main__":
    main()
