"""Checkpoints whose experts are quantised, through the command line.

Goal: experts in the layouts that big teachers ship in give the numbers of the same weights written
out, bit for bit: one tensor of all experts (MXFP4) or some for each (8-bit blocks, packed integers).
Method: golden checkpoints with random codes in place of their experts, and twins that hold what the
codes mean, which each layout's formula gives without rounding.
"""

import json
import re

import numpy as np
import pytest

from support import GOLDEN, read_raw_tensors, write_raw_tensors

BAD_INPUT = 3
BLOCK = 16
GROUP = 12
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
LATENT = r"(q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj|[a-z]+_proj)\.weight$"


def e4m3_values():
    """What each of the 256 codes means; codes 127 and 255 mean nothing."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9,
                     (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    return np.where(code & 128, -value, value).astype(np.float32)


def bf16_bytes(values):
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any(), "the twin must not round"
    return (bits >> 16).astype("<u2").tobytes()


def in_fp8_blocks(random, name, shape):
    """({suffix: tensor}, twin) of a matrix."""
    rows, columns = shape
    codes = random.integers(0, 127, shape).astype(np.uint8) | (random.integers(0, 2, shape) << 7)
    scales = (random.random((-(-rows // BLOCK), -(-columns // BLOCK))) * 1e-3 + 1e-3)
    scales = scales.astype(np.float32)
    full = np.kron(scales, np.ones((BLOCK, BLOCK), np.float32))[:rows, :columns]
    twin = ("F32", list(shape), (e4m3_values()[codes] * full).tobytes())
    return {"weight": ("F8_E4M3", list(shape), codes.astype(np.uint8).tobytes()),
            "weight_scale_inv": ("F32", list(scales.shape), scales.tobytes())}, twin


def in_packed_integers(random, name, shape):
    rows, columns = shape
    codes = random.integers(0, 16, shape)
    words = np.zeros((rows, -(-columns // 8)), np.uint32)
    for i in range(columns):
        words[:, i // 8] |= codes[:, i].astype(np.uint32) << np.uint32(4 * (i % 8))
    exponents = random.integers(-7, -4, (rows, columns // GROUP))
    scales = np.exp2(exponents).astype(np.float32)
    twin = ("BF16", list(shape), bf16_bytes((codes - 8) * scales.repeat(GROUP, 1)))
    return {"weight_packed": ("I32", list(words.shape), words.tobytes()),
            "weight_scale": ("BF16", list(scales.shape), bf16_bytes(scales)),
            "weight_shape": ("I64", [2], np.array(shape, "<i8").tobytes())}, twin


def quantise_each(tensors, pattern, layout):
    """Plain and quantised tensors, with each matrix whose name matches in a layout."""
    random, plain, quantised = np.random.default_rng(5), {}, {}
    for name, (dtype, shape, data) in tensors.items():
        if not re.search(pattern, name):
            plain[name] = quantised[name] = (dtype, shape, data)
            continue
        parts, twin = layout(random, name, shape)
        plain[name] = twin
        module = name.removesuffix(".weight")
        quantised |= {f"{module}.{suffix}": part for suffix, part in parts.items()}
    return plain, quantised


def quantise_all(tensors):
    """The same where one tensor holds all experts, in MXFP4: [experts, outputs, inputs / 32, 16]."""
    random, plain, quantised = np.random.default_rng(6), {}, {}
    for name, (dtype, shape, data) in tensors.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            plain[name] = quantised[name] = (dtype, shape, data)
            continue
        experts, inputs, outputs = shape
        codes = random.integers(0, 16, (experts, outputs, inputs))
        packed = (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8)
        scales = random.integers(121, 125, (experts, outputs, inputs // 32)).astype(np.uint8)
        values = E2M1[codes] * np.exp2(scales.astype(np.float32) - 127).repeat(32, -1)
        plain[name] = ("BF16", shape, bf16_bytes(values.transpose(0, 2, 1)))
        quantised[name + "_blocks"] = (
            "U8", [experts, outputs, inputs // 32, 16], packed.tobytes())
        quantised[name + "_scales"] = ("U8", [experts, outputs, inputs // 32], scales.tobytes())
    return plain, quantised


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {
    "group_0": {"targets": ["Linear"], "weights": {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group",
        "group_size": GROUP}}}}
CASES = {
    "mxfp4": ("gpt_oss", {"quant_method": "mxfp4"}, quantise_all),
    "fp8": ("deepseek_v3", FP8, lambda tensors: quantise_each(tensors, LATENT, in_fp8_blocks)),
    "packed": ("deepseek_v3", PACKED, lambda tensors: quantise_each(
        # Rows of 12 take as many words in 3 bits, and the number of bits is not said elsewhere.
        tensors, r"mlp\.experts\.\d+\.(gate|up)_proj\.weight$", in_packed_integers)),
}


class Twins:
    """A golden model quantised, and its twin of plain weights, under `folder`."""

    def __init__(self, folder, case):
        self.folder = folder
        family, self.quantisation, quantise = CASES[case]
        self.config = json.loads((GOLDEN / family / "model" / "config.json").read_text())
        tensors = {}
        for path in sorted((GOLDEN / family / "model").glob("*.safetensors")):
            tensors |= read_raw_tensors(path)[0]
        self.plain, self.quantised = quantise(tensors)
        self.tokens = GOLDEN / family / "tokens.safetensors"

    def write(self, name, tensors, **more):
        model = self.folder / name
        model.mkdir()
        (model / "config.json").write_text(json.dumps(self.config | more))
        write_raw_tensors(model / "model.safetensors", tensors)
        return model


@pytest.mark.parametrize("case", CASES)
def test_quantised_experts_give_the_numbers_of_their_decoded_weights(case, librarian, tmp_path):
    twins = Twins(tmp_path, case)
    plain = twins.write("plain", twins.plain)
    quantised = twins.write("quantised", twins.quantised, quantization_config=twins.quantisation)
    for name, model in (("a", plain), ("b", quantised)):
        librarian("extract", model, "--tokens", twins.tokens, "--out", tmp_path / name,
                  "--dtype", "f32", "--capture", "mlp_out@all,resid_post@all", "--skeleton", "no")
    librarian("diff", tmp_path / "a", tmp_path / "b")


def test_a_missing_scale_of_one_expert_is_named(librarian, tmp_path):
    for case, missing in (("fp8", "model.layers.1.mlp.experts.5.up_proj.weight_scale_inv"),
                          ("mxfp4", "model.layers.1.mlp.experts.gate_up_proj_scales")):
        twins = Twins(tmp_path, case)
        del twins.quantised[missing]
        model = twins.write(case, twins.quantised, quantization_config=twins.quantisation)
        said = librarian("plan", model, "--tokens", twins.tokens, exit_code=BAD_INPUT).stderr
        assert missing.removesuffix("_inv") in said, said
