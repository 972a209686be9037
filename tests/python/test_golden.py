"""Every capture of every golden checkpoint against transformers, through HTTP and the store.

Goal: the numbers on disk are the model's, whatever the block size and the partition.
Method: stream tests/golden/<family>/model/ from a loopback server with all captures, read the store
with zarr-python, compare per token.
    f32   relative error <= 2e-5 for every token
    16 bit   median over tokens of the error against the f32 truth <= 1.15 times that of
             transformers' own run in that type; equal where transformers is exact
"""

import numpy as np
import pytest

from support import (
    GOLDEN, golden_meta, read_golden, read_safetensors, read_store, relative_error_per_token,
    stored_types)

CAPTURES = ("embed,resid_pre@all,resid_mid@all,resid_post@all,attn_out@all,mlp_out@all,"
            "final.pre_norm,final.post_norm")
F32_ERROR_MAX = 2e-5
ERROR_RATIO_MAX = 1.15
STORED_TYPE = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
PARTITIONS = {"default": [], "blocks": ["--block-tokens", 16], "parts": ["--part-tokens", 20],
              "parts_and_blocks": ["--part-tokens", 20, "--block-tokens", 8]}
RUNS = [(path.parent.name, type_name)
        for path in sorted(GOLDEN.glob("*/meta.json"))
        for type_name in golden_meta(path.parent.name)["golden"]]


def errors_in_f32(got, truth):
    """One line per capture whose worst token is too far from the truth."""
    worst = {name: relative_error_per_token(got[name], truth[name]).max() for name in truth}
    return [f"{name}: worst token {error:.2e}" for name, error in worst.items()
            if not error <= F32_ERROR_MAX]


def errors_in_16_bit(got, truth, reference):
    """One line per capture that is further from the truth than transformers' run allows."""
    lines = []
    for name in reference:
        allowed = np.median(relative_error_per_token(reference[name], truth[name]))
        found = np.median(relative_error_per_token(got[name], truth[name]))
        if allowed == 0 and not np.array_equal(got[name], truth[name]):
            lines.append(f"{name}: differs, transformers is exact")
        elif not found <= ERROR_RATIO_MAX * allowed:
            lines.append(f"{name}: median {found:.2e}, transformers {allowed:.2e}")
    return lines


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("family,type_name", RUNS, ids=lambda value: value)
def test_captures_agree_with_transformers(family, type_name, partition, librarian, serve, tmp_path):
    server = serve(GOLDEN / family)
    tokens = GOLDEN / family / "tokens.safetensors"
    store = tmp_path / "store"
    librarian("extract", server.url + "model/", "--tokens", tokens, "--out", store,
              "--dtype", type_name, "--capture", CAPTURES, *PARTITIONS[partition])

    got = read_store(store)
    assert stored_types(store) == {STORED_TYPE[type_name]}
    np.testing.assert_array_equal(got["tokens/input_ids"], read_safetensors(tokens)["input_ids"])
    truth = read_golden(family, "f32")
    assert set(truth) <= set(got)
    assert all(got[name].shape == truth[name].shape for name in truth)
    if type_name == "f32":
        wrong = errors_in_f32(got, truth)
    else:
        wrong = errors_in_16_bit(got, truth, read_golden(family, type_name))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_rows_do_not_depend_on_blocks_or_parts(family, librarian, serve, tmp_path):
    """The same bits, not merely close ones (design: same bytes, whatever happens)."""
    server = serve(GOLDEN / family)
    stores = {}
    for name, options in PARTITIONS.items():
        librarian("extract", server.url + "model/", "--tokens",
                  GOLDEN / family / "tokens.safetensors", "--out", tmp_path / name,
                  "--capture", CAPTURES, *options)
        stores[name] = read_store(tmp_path / name)
    for name, store in stores.items():
        assert set(store) == set(stores["default"]), name
        for capture, values in store.items():
            np.testing.assert_array_equal(values, stores["default"][capture], f"{name} {capture}")
