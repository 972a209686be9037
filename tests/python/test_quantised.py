"""Checkpoints with quantised weights, through the command line.

Goal: a quantised checkpoint gives the numbers of the same weights written out, bit for bit, on every
layout; what is wrong in one is refused by the tensor's name.
Method: q, k and v of a small Llama are one of tests/golden/quantised, which their own libraries
decoded (weightmap's tests compare the decoded bits); its twin holds the decoded matrix.
"""

import json
import struct

import numpy as np
import pytest

from make_teacher import LlamaShape, RandomTensors
from support import GOLDEN, read_raw_tensors, write_raw_tensors, write_tokens

USAGE, BAD_INPUT = 2, 3
# Only experts have that one: test_quantised_experts.py.
LAYOUTS = sorted(path.stem for path in (GOLDEN / "quantised").glob("*.safetensors")
                 if path.stem != "mxfp4")
IN_BOTH_TYPES = ("fp8_block", "gptq_3bit_desc", "ct_pack_4bit")
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
LAYERS = 2
HEADS = 4


class Models:
    """A layout's checkpoint and its twin of plain weights, `quantised` and `plain`, and tokens."""

    def __init__(self, folder, layout):
        self.folder = folder
        matrix, metadata = read_raw_tensors(GOLDEN / "quantised" / f"{layout}.safetensors")
        decoded = matrix.pop("expected")
        self.matrix = matrix
        outputs, hidden = decoded[1]
        shape = LlamaShape(hidden=hidden, layers=LAYERS, ffn=64, heads=HEADS, kv_heads=HEADS,
                           vocab=64)
        self.config = {**shape.config(), "head_dim": outputs // HEADS}
        self.quantisation = json.loads(metadata["quantization_config"])
        random, rest = RandomTensors(seed=3), {}
        for name, size in shape.tensors():
            if name.endswith("o_proj.weight"):
                size = (hidden, outputs)
            if not any(projection in name for projection in PROJECTIONS):
                rest[name] = ("BF16", list(size), random.draw(name, size).tobytes())
        self.plain_tensors = rest | {f"{module}.weight": decoded for module in self.modules()}
        self.tensors = rest | {f"{module}.{suffix}": tensor for module in self.modules()
                               for suffix, tensor in matrix.items()}
        self.write("plain", self.plain_tensors, self.config)
        self.write("quantised", self.tensors,
                   self.config | {"quantization_config": self.quantisation})
        self.tokens = write_tokens(folder / "tokens.safetensors",
                                   [[1, 5, 9, 2], [7], list(range(30))])

    @staticmethod
    def modules():
        return [f"model.layers.{layer}.self_attn.{projection}" for layer in range(LAYERS)
                for projection in PROJECTIONS]

    def write(self, name, tensors, config):
        model = self.folder / name
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text(json.dumps(config))
        write_raw_tensors(model / "model.safetensors", tensors)
        return model


@pytest.fixture(params=["cpu", "cuda:0"])
def extract(request):
    """extract(folder, ...): a job on the CPU or on an emulated GPU."""
    program = request.getfixturevalue("librarian" if request.param == "cpu" else "on_gpu")
    return lambda model, *options: program("extract", model, "--device", request.param, *options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_quantised_checkpoint_gives_the_numbers_of_its_decoded_weights(
        layout, extract, librarian, tmp_path):
    models = Models(tmp_path, layout)
    for dtype in ("f32", "bf16") if layout in IN_BOTH_TYPES else ("f32",):
        # In 16 bit the twin has to hold what the product sees: the decoded value, rounded.
        if dtype == "bf16":
            kind, size, data = models.plain_tensors[f"{models.modules()[0]}.weight"]
            values = np.frombuffer(data, {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[kind])
            if kind != "BF16":
                bits = values.astype(np.float32).view(np.uint32)
                data = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
            rounded = ("BF16", size, data)
            models.write("plain", models.plain_tensors
                         | {f"{module}.weight": rounded for module in models.modules()},
                         models.config)
        for name in ("plain", "quantised"):
            extract(tmp_path / name, "--tokens", models.tokens, "--dtype", dtype,
                    "--out", tmp_path / f"{name}_{dtype}", "--capture", "attn_out@all,resid_post@all",
                    "--skeleton", "no")
        librarian("diff", tmp_path / f"plain_{dtype}", tmp_path / f"quantised_{dtype}")


def test_memory_stages_and_blocks_change_no_bit(librarian, tmp_path):
    models = Models(tmp_path, "gptq_4bit_desc")
    job = ["extract", tmp_path / "quantised", "--tokens", models.tokens, "--skeleton", "no"]
    librarian(*job, "--out", tmp_path / "one")
    librarian(*job, "--out", tmp_path / "two", "--block-tokens", 3, "--threads", 1, "--state", "disk",
              "--part-tokens", 8)
    librarian("diff", tmp_path / "one", tmp_path / "two")


def test_plan_says_that_other_engines_differ(librarian, tmp_path):
    models = Models(tmp_path, "fp8_block")
    said = librarian("plan", tmp_path / "quantised", "--tokens", models.tokens)
    assert "the weights are quantised" in said.stdout + said.stderr


def refused(librarian, model, tokens):
    return librarian("plan", model, "--tokens", tokens, exit_code=BAD_INPUT).stderr


def test_what_is_wrong_is_refused_by_the_tensors_name(librarian, tmp_path):
    models = Models(tmp_path, "fp8_block")
    module = models.modules()[1]
    quantised = models.config | {"quantization_config": models.quantisation}
    without = {name: tensor for name, tensor in models.tensors.items()
               if name != f"{module}.weight_scale_inv"}
    model = models.write("without", without, quantised)
    assert f"{module}.weight_scale" in refused(librarian, model, models.tokens)
    dtype, shape, data = models.tensors[f"{module}.weight_scale_inv"]
    model = models.write("shape", models.tensors | {
        f"{module}.weight_scale_inv": (dtype, [shape[0] * shape[1]], data)}, quantised)
    assert f"{module}.weight_scale_inv" in refused(librarian, model, models.tokens)
    model = models.write("method", models.tensors, models.config | {
        "quantization_config": {"quant_method": "hqq"}})
    assert "'hqq' is not built in" in refused(librarian, model, models.tokens)
    model = models.write("silent", models.tensors, models.config)
    assert module.split(".self_attn")[0] in refused(librarian, model, models.tokens)
    nan = struct.pack("<f", float("nan")) + data[4:]
    model = models.write("nan", models.tensors | {
        f"{module}.weight_scale_inv": (dtype, shape, nan)}, quantised)
    said = librarian("extract", model, "--tokens", models.tokens, "--out", tmp_path / "out",
                     "--skeleton", "no", exit_code=BAD_INPUT).stderr
    assert module in said and "not a finite number" in said
