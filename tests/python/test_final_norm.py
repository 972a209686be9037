"""The final norm that an export applies itself, from the skeleton in DIR/model/."""

import json

import numpy as np
import pytest

from export_support import FAMILIES, as_f32, export_main, read_torch_file
from support import GOLDEN, golden_meta, read_golden, relative_error_per_token

pytest.importorskip("nexus_librarian")
from nexus_librarian.export.final_norm import _GEMMA, _PLAIN  # noqa: E402

F32_ERROR_MAX = 2e-5
BAD_INPUT, DAMAGED = 3, 7


def model_type(family):
    return json.loads((GOLDEN / family / "model/config.json").read_text())["model_type"]


def extract_before_the_norm(librarian, family, folder, *options):
    """A store with the state before the norm only, and the skeleton; returns its path."""
    librarian("extract", GOLDEN / family / "model", "--tokens", GOLDEN / family / "tokens.safetensors",
              "--out", folder, "--capture", "hf:0,final.pre_norm", *options)
    if not (folder / "model/librarian.json").exists():
        pytest.skip("this program writes no skeleton")
    return folder


@pytest.mark.parametrize("family", [f for f in FAMILIES if model_type(f) in _PLAIN | _GEMMA])
def test_the_norm_of_the_skeleton_is_transformers_norm(family, librarian, memory_path):
    """Goal: hidden_state of SpecForge's records is output_hidden_states[-1], in f32 per token.

    Method: for every golden family with a norm of this kind.
    """
    store = extract_before_the_norm(librarian, family, memory_path / "store", "--dtype", "f32")
    out = memory_path / "out"
    assert export_main(store, "--to", "specforge", "--capture", "embed", "--out", out) == 0
    offsets = np.cumsum([0, *golden_meta(family)["sample_lengths"]])
    truth = read_golden(family)["final.post_norm"]
    for sample, (begin, end) in enumerate(zip(offsets, offsets[1:])):
        got = read_torch_file(out / f"rows_0-2000/data_{sample}.ckpt")["hidden_state"][0]
        assert relative_error_per_token(got, truth[begin:end]).max() <= F32_ERROR_MAX


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_the_norm_is_rounded_as_the_captured_one(family, librarian, memory_path):
    """Goal: in bf16, an export by the skeleton equals one of final.post_norm: at most one bit apart,
    where our device adds in another order, and in most values not at all."""
    without = extract_before_the_norm(librarian, family, memory_path / "without")
    exact = memory_path / "exact"
    librarian("extract", GOLDEN / family / "model", "--tokens", GOLDEN / family / "tokens.safetensors",
              "--out", exact, "--capture", "hf:0,final.post_norm")
    records = []
    for store in (without, exact):
        out = memory_path / f"out-{store.name}"
        assert export_main(store, "--to", "specforge", "--capture", "embed", "--out", out) == 0
        records.append([read_torch_file(path)["hidden_state"].astype(np.int32)
                        for path in sorted(out.rglob("*.ckpt"))])
    apart = np.concatenate([np.abs(a - b).ravel() for a, b in zip(*records)])
    assert apart.max() <= 1 and (apart > 0).mean() < 0.01


def test_a_norm_of_another_kind_is_not_guessed(librarian, memory_path, capsys):
    store = extract_before_the_norm(librarian, "gpt2", memory_path / "store")
    assert export_main(store, "--to", "specforge", "--capture", "embed",
                       "--out", memory_path / "out") == BAD_INPUT
    assert "--capture final.post_norm" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["librarian.json", "config.json", "model.safetensors"])
def test_a_damaged_skeleton_is_found(name, librarian, memory_path, capsys):
    store = extract_before_the_norm(librarian, "llama", memory_path / "store")
    path = store / "model" / name
    data = bytearray(path.read_bytes())
    at = data.rindex(b"e-05") + 3 if name == "config.json" else len(data) - 8
    if name == "model.safetensors":
        at = norm_weight_at(data)
    data[at] ^= 1
    path.write_bytes(data)
    assert export_main(store, "--to", "specforge", "--capture", "embed",
                       "--out", memory_path / "out") == DAMAGED
    assert name in capsys.readouterr().err


def norm_weight_at(data):
    """Where the norm's weight lies in a safetensors file."""
    header_bytes = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + header_bytes])["model.norm.weight"]
    return 8 + header_bytes + entry["data_offsets"][0]


def test_one_block_of_rows_is_as_many(monkeypatch):
    """Goal: the blocks of rows that bound memory do not show."""
    from nexus_librarian.export import final_norm
    states = np.random.default_rng(1).standard_normal((37, 24)).astype(np.float32)
    norm = final_norm.FinalNorm(np.linspace(0.5, 2, 24, dtype=np.float32), 1e-5)
    whole = norm(states)
    monkeypatch.setattr(final_norm, "_BLOCK_ROWS", 5)
    np.testing.assert_array_equal(norm(states), whole)
    assert as_f32(whole).shape == (37, 24)
