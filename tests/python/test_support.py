"""The measuring tools themselves: goldens are consistent and the comparison can fail."""

import numpy as np
import pytest

from make_teacher import to_bf16
from support import (
    GOLDEN, bf16_to_f32, golden_meta, read_golden, read_safetensors, relative_error_per_token)
from test_golden import FAMILIES, captures_of, errors_in_16_bit, errors_in_f32


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_names_and_shapes_are_complete(family):
    captures, meta = read_golden(family), golden_meta(family)
    layers = sum(name.endswith("resid_post") for name in captures)
    assert layers >= 2
    for layer in range(layers):
        assert {f"blocks.{layer}.resid_pre", f"blocks.{layer}.resid_post"} <= set(captures)
    assert set(meta["hidden_states"]) <= set(captures)
    assert len(meta["hidden_states"]) == layers + 1
    if meta["resid_mid"] == "none":
        assert not any(name.endswith("resid_mid") for name in captures)
    for type_name in set(meta["golden"]) - {"f32"}:
        assert {name for name in captures if not name.endswith(("resid_pre", "pre_norm"))} <= set(
            meta["median_error_against_f32"]), type_name
    ids = read_safetensors(GOLDEN / family / "tokens.safetensors")
    assert ids["offsets"].dtype == np.int64 and ids["input_ids"].dtype == np.int32
    assert np.diff(ids["offsets"]).tolist() == meta["sample_lengths"]
    tokens = len(ids["input_ids"])
    assert {array.shape for array in captures.values()} == {(tokens, captures["embed"].shape[1])}


def test_each_family_has_a_sample_of_one_token_and_one_beyond_its_windows():
    for family in FAMILIES:
        lengths = golden_meta(family)["sample_lengths"]
        assert min(lengths) == 1 and max(lengths) > 32 and len(lengths) >= 5, family


def test_the_captures_of_names_are_asked_once_each():
    assert captures_of(["embed", "blocks.0.attn_out", "blocks.1.attn_out", "final.post_norm"]) == (
        "attn_out@all,embed,final.post_norm")


def test_an_error_in_one_token_is_found_in_f32():
    truth = read_golden("llama")
    got = {name: array.copy() for name, array in truth.items()}
    assert errors_in_f32(got, truth) == []
    got["blocks.1.mlp_out"][5] *= 1 + 3e-5
    assert [line.split(":")[0] for line in errors_in_f32(got, truth)] == ["blocks.1.mlp_out"]
    got["blocks.1.mlp_out"][5] = np.nan
    assert len(errors_in_f32(got, truth)) == 1


def test_the_16_bit_rule_accepts_one_rounding_and_refuses_another_layer():
    truth, medians = read_golden("llama"), golden_meta("llama")["median_error_against_f32"]
    rounded = {name: bf16_to_f32(to_bf16(array)) for name, array in truth.items()}
    assert errors_in_16_bit(rounded, truth, medians) == []
    off_by_one_layer = {**rounded, "blocks.1.resid_post": rounded["blocks.1.resid_pre"]}
    assert len(errors_in_16_bit(off_by_one_layer, truth, medians)) == 1
    not_exact = {**rounded, "embed": rounded["embed"] * np.float32(1 + 1e-6)}
    assert errors_in_16_bit(not_exact, truth, medians) == ["embed: differs, transformers is exact"]


def test_bf16_conversion_is_exact_and_rounds_to_even():
    bits = np.array([0x3F80, 0xC049, 0x0000, 0x7F80], np.uint16)
    np.testing.assert_array_equal(bf16_to_f32(bits),
                                  np.array([1, -3.140625, 0, np.inf], np.float32))
    halfway = np.array([1 + 2**-8, 1 + 3 * 2**-8], np.float32)
    np.testing.assert_array_equal(bf16_to_f32(to_bf16(halfway)),
                                  np.array([1, 1 + 2**-6], np.float32))


def test_relative_error_is_per_row():
    reference = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    value = np.array([[3.0, 4.5], [1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(relative_error_per_token(value, reference), [0.1, 0.0, 0.0])
