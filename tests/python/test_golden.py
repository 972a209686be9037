"""Every capture of every golden checkpoint against transformers, through HTTP and the store.

Goal: the numbers on disk are the model's, for every family, whatever the block size and the
partition; and they have the names that transformers' users know.
Method: stream tests/golden/<family>/model/ from a loopback server with all captures, read the store
with zarr-python, compare per token.
    f32   relative error <= 2e-5 for every token
    16 bit   median over tokens of the error against the f32 truth <= 1.15 times that of
             transformers' own run in that type; equal where transformers is exact
Tokens that meet other experts than in the truth, and those behind them in their sample, are left
out in 16 bits; at most a tenth of all tokens may meet others.
"""

import numpy as np
import pytest

from support import (
    GOLDEN, golden_meta, part_attributes, read_golden, read_safetensors, read_store,
    relative_error_per_token, stored_types)

F32_ERROR_MAX = 2e-5
ERROR_RATIO_MAX = 1.15
# Share of tokens whose experts in 16 bits are others than in f32.
FLIPPED_MAX = 0.1
USAGE, BAD_INPUT = 2, 3
STORED_TYPE = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
FAMILIES = sorted(path.parent.name for path in GOLDEN.glob("*/meta.json"))
RUNS = [(family, type_name) for family in FAMILIES for type_name in golden_meta(family)["golden"]]
# Those that differ in what a block must know of the sample's other rows.
STATEFUL = ["llama", "qwen3", "llama_dynamic", "phi3", "gemma3_text", "cohere2", "ministral3",
            "bloom", "opt"]
PARTITIONS = {"default": [], "blocks": ["--block-tokens", 16], "parts": ["--part-tokens", 20],
              "parts_and_blocks": ["--part-tokens", 20, "--block-tokens", 8]}


def captures_of(names):
    """What --capture must say to get all of these names."""
    kinds = {name.split(".")[2] + "@all" if name.startswith("blocks.") else name for name in names}
    return ",".join(sorted(kinds))


def all_captures_of(family):
    """What --capture must say for everything that is known of a family."""
    return captures_of(read_golden(family)) + (",router" if read_routers(family) else "")


def errors_in_f32(got, truth):
    """One line per capture whose worst token is too far from the truth."""
    worst = {name: relative_error_per_token(got[name], truth[name]).max() for name in truth}
    return [f"{name}: worst token {error:.2e}" for name, error in worst.items()
            if not error <= F32_ERROR_MAX]


def read_routers(family):
    """{"blocks.L.router.ids" and ".weights": [tokens, k], each row sorted by id}; empty without."""
    path = GOLDEN / golden_meta(family).get("golden_of", family) / "router_f32.safetensors"
    return read_safetensors(path) if path.exists() else {}


def sorted_by_expert(got, name):
    """(ids, weights) of a store's router as the golden file has them."""
    ids, weights = got[name], got[name.removesuffix("ids") + "weights"]
    order = np.argsort(ids, axis=1)
    return np.take_along_axis(ids, order, 1), np.take_along_axis(weights, order, 1)


def flipped_tokens(got, routers):
    """bool [tokens]: whether any layer gave a token another expert than the truth."""
    return np.any([np.any(sorted_by_expert(got, name)[0] != ids, axis=1)
                   for name, ids in routers.items() if name.endswith("ids")], axis=0)


def and_behind(flipped, offsets):
    """bool [tokens]: those flipped and all behind them in their sample, which attend to them."""
    return np.concatenate([np.maximum.accumulate(flipped[begin:end])
                           for begin, end in zip(offsets, offsets[1:])])


def errors_in_16_bit(got, truth, medians, ratio_max=ERROR_RATIO_MAX):
    """One line per capture that is further from the truth than transformers' error allows."""
    lines = []
    for name in sorted(truth.keys() & medians.keys()):
        allowed = medians[name]
        found = np.median(relative_error_per_token(got[name], truth[name]))
        if allowed == 0 and not np.array_equal(got[name], truth[name]):
            lines.append(f"{name}: differs, transformers is exact")
        elif not found <= ratio_max * allowed:
            lines.append(f"{name}: median {found:.2e}, transformers {allowed:.2e}")
    return lines


def assert_near_transformers(store, family, type_name):
    """Every capture of a family's store, by the rule of its type."""
    truth, got = read_golden(family), read_store(store)
    assert stored_types(store) == {STORED_TYPE[type_name]}
    assert set(truth) <= set(got)
    assert all(got[name].shape == truth[name].shape for name in truth)
    if type_name == "f32":
        wrong = errors_in_f32(got, truth)
    else:
        if routers := read_routers(family):
            flipped = flipped_tokens(got, routers)
            assert flipped.mean() <= FLIPPED_MAX
            offsets = read_safetensors(GOLDEN / family / "tokens.safetensors")["offsets"]
            kept = ~and_behind(flipped, offsets)
            got, truth = ({name: values[name][kept] for name in truth} for values in (got, truth))
        wrong = errors_in_16_bit(got, truth, golden_meta(family)["median_error_against_f32"])
    assert not wrong, "\n".join(wrong)


def job_of(family):
    """The arguments for a family's folder as a local directory."""
    return GOLDEN / family / "model", "--tokens", GOLDEN / family / "tokens.safetensors"


@pytest.mark.parametrize("family,type_name", RUNS, ids=lambda value: value)
def test_captures_agree_with_transformers(family, type_name, librarian, serve, memory_path):
    server = serve(GOLDEN / family)
    tokens = GOLDEN / family / "tokens.safetensors"
    store = memory_path / "store"
    librarian("extract", server.url + "model/", "--tokens", tokens, "--out", store,
              "--dtype", type_name, "--capture", all_captures_of(family))

    np.testing.assert_array_equal(read_store(store)["tokens/input_ids"],
                                  read_safetensors(tokens)["input_ids"])
    assert_near_transformers(store, family, type_name)


@pytest.mark.parametrize("family", [name for name in FAMILIES if read_routers(name)])
def test_routers_choose_the_experts_that_transformers_chooses(family, librarian, memory_path):
    store = memory_path / "store"
    librarian("extract", *job_of(family), "--out", store, "--dtype", "f32", "--capture", "router")
    got, routers = read_store(store), read_routers(family)
    assert {name for name in got if ".router." in name} == set(routers)
    for name, ids in routers.items():
        if name.endswith("ids"):
            got_ids, got_weights = sorted_by_expert(got, name)
            np.testing.assert_array_equal(got_ids, ids)
            np.testing.assert_allclose(got_weights, routers[name.removesuffix("ids") + "weights"],
                                       rtol=F32_ERROR_MAX, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_hf_names_are_transformers_hidden_states(family, librarian, memory_path):
    """hf:i is output_hidden_states[i], the last one included."""
    truth, states = read_golden(family), golden_meta(family)["hidden_states"]
    store = memory_path / "store"
    librarian("extract", *job_of(family), "--out", store, "--dtype", "f32",
              "--capture", ",".join(f"hf:{i}" for i in range(len(states))))
    names, got = part_attributes(store, 0)["captures"], read_store(store)
    assert len(names) == len(states)
    wrong = errors_in_f32({f"hf:{i}": got[name] for i, name in enumerate(names)},
                          {f"hf:{i}": truth[state] for i, state in enumerate(states)})
    assert not wrong, "\n".join(wrong)


def names_that_do_not_exist():
    """(family, capture) where transformers' module has no such tensor."""
    parallel = [(family, "resid_mid@all") for family in FAMILIES
                if golden_meta(family)["resid_mid"] == "none"]
    return parallel + [(family, "final.post_norm") for family in FAMILIES
                       if "final.post_norm" not in golden_meta(family)["hidden_states"]]


@pytest.mark.parametrize("family,capture", names_that_do_not_exist(), ids=lambda value: value)
def test_a_capture_that_does_not_exist_is_refused_by_name(family, capture, librarian, memory_path):
    done = librarian("extract", *job_of(family), "--out", memory_path / "store",
                     "--capture", capture, exit_code=None)
    assert done.returncode in (USAGE, BAD_INPUT), done.stderr
    assert capture.partition("@")[0] in done.stderr
    assert not (memory_path / "store").exists()


def assert_same_rows(family, partitions, librarian, folder):
    """The same bits, not merely close ones (design: same bytes, whatever happens)."""
    captures = captures_of(read_golden(family))
    stores = {}
    for name, options in partitions.items():
        librarian("extract", *job_of(family), "--out", folder / name, "--capture", captures,
                  *options)
        stores[name] = read_store(folder / name)
    for name, store in stores.items():
        assert set(store) == set(stores["default"]), name
        for capture, values in store.items():
            np.testing.assert_array_equal(values, stores["default"][capture], f"{name} {capture}")


@pytest.mark.parametrize("family", STATEFUL)
def test_rows_do_not_depend_on_blocks_or_parts(family, librarian, memory_path):
    assert_same_rows(family, PARTITIONS, librarian, memory_path)


def test_rows_of_a_model_without_causal_mask_do_not_depend_on_parts(librarian, memory_path):
    """Its blocks hold whole samples, so a block smaller than the longest is refused."""
    longest = max(golden_meta("bert")["sample_lengths"])
    assert_same_rows("bert", {**PARTITIONS, "blocks": ["--block-tokens", longest],
                              "parts_and_blocks": ["--part-tokens", 20, "--block-tokens", longest]},
                     librarian, memory_path)
    done = librarian("extract", *job_of("bert"), "--out", memory_path / "refused",
                     "--block-tokens", longest - 1, exit_code=None)
    assert done.returncode != 0 and "--block-tokens" in done.stderr


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "amx"])
@pytest.mark.parametrize("family", ["llama_bias", "gemma2", "cohere", "gpt_neox", "bert"])
def test_every_path_agrees_with_transformers(family, isa, librarian, tmp_path):
    store, truth = tmp_path / "store", read_golden(family)
    done = librarian("extract", *job_of(family), "--out", store, "--dtype", "f32", "--isa", isa,
                     "--capture", captures_of(truth), exit_code=None)
    if done.returncode == USAGE and f"--isa {isa}: this processor cannot run it" in done.stderr:
        pytest.skip("this processor cannot run the path")
    assert done.returncode == 0, done.stderr
    assert part_attributes(store, 0)["device_kind"] == f"cpu-{isa}"
    wrong = errors_in_f32(read_store(store), truth)
    assert not wrong, "\n".join(wrong)
