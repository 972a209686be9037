"""Quantised checkpoints that are not what they claim to be, refused by the tensor's or key's name.

Goal: in every layout a table of codes or scales that is missing, misshapen or holds no numbers, a
group number that does not exist and a quantization_config that means something else end the program
with exit code 3 and one line that names the tensor or the key; none of them changes numbers silently.
Method: one change each to a checkpoint that test_quantised.py shows to work; the `refused` fixture
checks what all refusals have in common.
"""

import numpy as np
import pytest

from test_quantised import Models
from test_quantised_experts import Twins

BAD_INPUT = 3
NAN = {"F32": b"\0\0\xc0\x7f", "F16": b"\0\x7e", "BF16": b"\xc0\x7f", "F8_E4M3": b"\x7f",
       "F8_E8M0": b"\xff", "U8": b"\xff"}
INFINITE = {"F32": b"\0\0\x80\xff", "F16": b"\0\x7c", "BF16": b"\x80\x7f"}


def shorter(tensor):
    """A row less."""
    dtype, shape, data = tensor
    if not shape or shape == [1]:
        return dtype, [2], data * 2
    return dtype, [shape[0] - 1, *shape[1:]], data[: len(data) // shape[0] * (shape[0] - 1)]


def flat(tensor):
    """The same bytes in one dimension more than the layout has."""
    dtype, shape, data = tensor
    return dtype, [*shape, 1, 1], data


def of_integers(tensor):
    """Another type of elements of the same size."""
    dtype, shape, data = tensor
    size = len(data) // max(int(np.prod(shape)), 1)
    return {1: "BOOL", 2: "I16", 4: "U32", 8: "U64"}[size], shape, data


def with_value(values, place=1):
    """Another value in place of one number, or of the first where there are not as many."""

    def change(tensor):
        dtype, shape, data = tensor
        value = values[dtype] if isinstance(values, dict) else values
        at = place * len(value) if len(data) > place * len(value) else 0
        return dtype, shape, data[:at] + value + data[at + len(value):]

    return change


def missing(tensor):
    return None


def with_state(old, new):
    def change(tensor):
        dtype, _, data = tensor
        assert old in data
        data = data.replace(old, new)
        return dtype, [len(data)], data

    return change


SHAPES = {"missing": missing, "a row less": shorter, "more dimensions": flat,
          "another type": of_integers}
NUMBERS = {"NaN": with_value(NAN)}
FLOATS = NUMBERS | {"infinite": with_value(INFINITE)}
# Where its absence means that the layout has none.
OPTIONAL = {what: change for what, change in SHAPES.items() if what != "missing"}
GROUPS = {"a group too many": with_value((6).to_bytes(4, "little"), 17),
          "a group below none": with_value(b"\xff" * 4, 191),
          "the largest group": with_value(b"\xff\xff\xff\x7f", 0)}
STATE = "weight.quant_state.bitsandbytes__nf4"
# Layout -> suffix -> what can be wrong with the tensor.
TENSORS = {
    "fp8_block": {"weight": SHAPES, "weight_scale_inv": SHAPES | FLOATS},
    "fp8_block_e8m0": {"weight": SHAPES, "weight_scale_inv": SHAPES | NUMBERS},
    "fbgemm_fp8": {"weight": SHAPES, "weight_scale": SHAPES | FLOATS},
    "ct_float_channel": {"weight": SHAPES, "weight_scale": SHAPES | FLOATS},
    "ct_int_channel_asymmetric": {"weight": SHAPES, "weight_scale": SHAPES | FLOATS,
                                  "weight_zero_point": OPTIONAL},
    "ct_pack_4bit_asymmetric": {"weight_packed": SHAPES, "weight_scale": SHAPES | FLOATS,
                                "weight_zero_point": OPTIONAL},
    "ct_pack_4bit_actorder": {"weight_packed": SHAPES, "weight_scale": SHAPES | FLOATS,
                              "weight_g_idx": OPTIONAL | GROUPS},
    "ct_nvfp4": {"weight_packed": SHAPES, "weight_scale": SHAPES | NUMBERS,
                 "weight_global_scale": SHAPES | FLOATS | {"zero": with_value(bytes(4))}},
    "awq": {"qweight": SHAPES, "qzeros": SHAPES, "scales": SHAPES | FLOATS},
    "gptq_4bit": {"qweight": SHAPES, "qzeros": SHAPES, "scales": SHAPES | FLOATS,
                  "g_idx": OPTIONAL | GROUPS},
    "gptq_3bit_desc": {"qweight": SHAPES, "qzeros": SHAPES, "scales": SHAPES | FLOATS,
                       "g_idx": SHAPES | GROUPS},
    "bnb_nf4": {"weight": SHAPES, "weight.absmax": SHAPES | FLOATS,
                "weight.quant_map": SHAPES | FLOATS, STATE: {
                    "missing": missing, "no JSON": with_value(b"x", 0),
                    "another shape": with_state(b"[40, 192]", b"[192, 40]"),
                    "another blocksize": with_state(b": 64", b": 128")}},
    "bnb_nf4_nested": {"weight.absmax": SHAPES, "weight.nested_absmax": SHAPES | FLOATS,
                       "weight.nested_quant_map": SHAPES | FLOATS},
    "bnb_int8": {"weight": SHAPES, "SCB": SHAPES | FLOATS},
}


@pytest.mark.parametrize("layout", TENSORS)
def test_a_tensor_that_is_wrong_is_named(layout, refused, tmp_path):
    models = Models(tmp_path, layout)
    module = models.modules()[4]
    config = models.config | {"quantization_config": models.quantisation}
    for suffix, changes in TENSORS[layout].items():
        for what, change in changes.items():
            name = f"{module}.{suffix}"
            tensors = models.tensors | {name: change(models.tensors[name])}
            if tensors[name] is None:
                del tensors[name]
            model = models.write("changed", tensors, config)
            out = tmp_path / f"{suffix} {what}"
            # Where only one of a module's tensors is left out, others may be what has no meaning.
            named = module if what in ("missing", "another type") else name
            refused("extract", model, "--tokens", models.tokens, "--out", out, "--skeleton", "no",
                    exit_code=BAD_INPUT, names=[named], may_warn=True)


def test_a_tensor_of_all_experts_that_is_wrong_is_named(refused, tmp_path):
    twins = Twins(tmp_path, "mxfp4")
    kinds = {"_blocks": SHAPES, "_scales": SHAPES | NUMBERS}
    for ending, changes in kinds.items():
        for number, (what, change) in enumerate(changes.items()):
            name = f"model.layers.1.mlp.experts.down_proj{ending}"
            tensors = twins.quantised | {name: change(twins.quantised[name])}
            if tensors[name] is None:
                del tensors[name]
            model = twins.write(f"model{ending}{number}", tensors,
                                quantization_config=twins.quantisation)
            named = name.removesuffix(ending) if what in ("missing", "another type") else name
            refused("extract", model, "--tokens", twins.tokens, "--out", tmp_path / "out" / ending /
                    str(number), "--skeleton", "no", exit_code=BAD_INPUT, names=[named],
                    may_warn=True)


def packed(**fields):
    return {"quant_method": "compressed-tensors", "format": "pack-quantized"} | fields


# What quantization_config says -> words of the refusal.
CONFIGS = {
    "fp8_block": [
        ({"quant_method": "hqq"}, "quant_method 'hqq'"),
        ({"quant_method": 8}, "quant_method"),
        ({}, "quant_method"),
        ([], "quantization_config"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": [32, 64]}, "weight_scale_inv"),
    ],
    "ct_pack_4bit": [
        (packed(format="marlin-24"), 'format "marlin-24"'),
        (packed(format=4), "format 4"),
        (packed(config_groups={"group_0": {"format": "mxfp4-pack-quantized"}}),
         'config_groups.group_0.format "mxfp4-pack-quantized"'),
        (packed(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config"),
        (packed(transform_config={"config_groups": {"R1": {"type": "hadamard"}}}),
         "transform_config"),
    ],
    "awq": [
        ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"}, "version gemm"),
        ({"quant_method": "awq", "bits": 8, "group_size": 32}, "qweight"),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "scales"),
    ],
    "gptq_4bit": [
        ({"quant_method": "gptq", "bits": 5, "group_size": 32}, "bits"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size"),
        ({"quant_method": "gptq", "bits": 8, "group_size": 32}, "qweight"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "marlin"},
         "checkpoint_format"),
    ],
}


@pytest.mark.parametrize("layout", CONFIGS)
def test_a_quantization_config_that_means_something_else_is_refused_by_its_key(
        layout, refused, tmp_path):
    models = Models(tmp_path, layout)
    for config, words in CONFIGS[layout]:
        model = models.write("changed", models.tensors,
                             models.config | {"quantization_config": config})
        refused("plan", model, "--tokens", models.tokens, exit_code=BAD_INPUT, names=[words])


def test_what_a_compressed_checkpoint_says_without_effect_is_taken(librarian, tmp_path):
    models = Models(tmp_path, "ct_pack_4bit")
    more = {"sparsity_config": {"format": "dense"}, "transform_config": {}, "kv_cache_scheme": None}
    model = models.write("changed", models.tensors, models.config | {
        "quantization_config": models.quantisation | more})
    librarian("plan", model, "--tokens", models.tokens)
