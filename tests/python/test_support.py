"""The measuring tools themselves: goldens are consistent and the comparison can fail."""

import numpy as np
import pytest

from support import (
    GOLDEN, bf16_to_f32, golden_meta, layer_count, read_golden, read_safetensors,
    relative_error_per_token, round_to)
from test_golden import RUNS, errors_in_16_bit, errors_in_f32


@pytest.mark.parametrize("family,type_name", RUNS, ids=lambda value: value)
def test_golden_names_and_shapes_are_complete(family, type_name):
    captures = read_golden(family, type_name)
    layers = layer_count(GOLDEN / family / "model")
    tokens = sum(golden_meta(family)["sample_lengths"])
    for layer in range(layers):
        assert {f"blocks.{layer}.resid_pre", f"blocks.{layer}.resid_post"} <= set(captures)
    assert {"embed", "final.pre_norm", "final.post_norm"} <= set(captures)
    assert {array.shape for array in captures.values()} == {(tokens, 64)}
    ids = read_safetensors(GOLDEN / family / "tokens.safetensors")
    assert ids["offsets"].dtype == np.int64 and ids["input_ids"].dtype == np.int32
    assert ids["offsets"][-1] == len(ids["input_ids"]) == tokens


@pytest.mark.parametrize("family,type_name", RUNS, ids=lambda value: value)
def test_resid_post_is_the_sum_of_its_parts(family, type_name):
    captures = read_golden(family, type_name)
    if "blocks.0.mlp_out" not in captures:
        pytest.skip("this family keeps the residual stream only")
    for layer in range(layer_count(GOLDEN / family / "model")):
        block = f"blocks.{layer}."
        mid = round_to(captures[block + "resid_pre"] + captures[block + "attn_out"], type_name)
        post = round_to(captures[block + "resid_mid"] + captures[block + "mlp_out"], type_name)
        np.testing.assert_array_equal(captures[block + "resid_mid"], mid)
        np.testing.assert_array_equal(captures[block + "resid_post"], post)


def test_an_error_in_one_token_is_found_in_f32():
    truth = read_golden("llama", "f32")
    got = {name: array.copy() for name, array in truth.items()}
    assert errors_in_f32(got, truth) == []
    got["blocks.1.mlp_out"][5] *= 1 + 3e-5
    assert [line.split(":")[0] for line in errors_in_f32(got, truth)] == ["blocks.1.mlp_out"]
    got["blocks.1.mlp_out"][5] = np.nan
    assert len(errors_in_f32(got, truth)) == 1


def test_the_16_bit_rule_accepts_the_reference_and_refuses_half_a_bit_more():
    truth, reference = read_golden("llama", "f32"), read_golden("llama", "bf16")
    assert errors_in_16_bit(reference, truth, reference) == []
    off_by_one_layer = {**reference, "blocks.1.resid_post": reference["blocks.1.resid_pre"]}
    assert len(errors_in_16_bit(off_by_one_layer, truth, reference)) == 1
    not_exact = {**reference, "embed": reference["embed"] * np.float32(1 + 1e-6)}
    assert errors_in_16_bit(not_exact, truth, reference) == [
        "embed: differs, transformers is exact"]


def test_bf16_conversion_is_exact_and_rounds_to_even():
    bits = np.array([0x3F80, 0xC049, 0x0000, 0x7F80], np.uint16)
    np.testing.assert_array_equal(bf16_to_f32(bits),
                                  np.array([1, -3.140625, 0, np.inf], np.float32))
    halfway = np.array([1 + 2**-8, 1 + 3 * 2**-8], np.float32)
    np.testing.assert_array_equal(round_to(halfway, "bf16"),
                                  np.array([1, 1 + 2**-6], np.float32))


def test_relative_error_is_per_row():
    reference = np.array([[3.0, 4.0], [1.0, 0.0]])
    value = np.array([[3.0, 4.5], [1.0, 0.0]])
    np.testing.assert_allclose(relative_error_per_token(value, reference), [0.1, 0.0])
