"""logits.topk of golden checkpoints against transformers' own logits.

Goal: ids, log-probabilities, logsumexp and gold log-probability are those of a full softmax over the
logits that transformers computes, for a head of its own, a tied one, a bias, a cap and a scale.
Method: extract with k of the whole and of a part of the vocabulary in f32; a softmax in float64 over
tests/golden/<family>/logits_f32.safetensors (make_logits.py).
"""

import json

import numpy as np
import pytest

from support import GOLDEN, part_folders, read_safetensors, read_store, write_safetensors

FAMILIES = sorted(path.parent.name for path in GOLDEN.glob("*/logits_f32.safetensors"))
SUM_ERROR_MAX = 2e-5
F16_ULPS_MAX = 1
USAGE, BAD_INPUT = 2, 3


def job_of(family):
    return GOLDEN / family / "model", "--tokens", GOLDEN / family / "tokens.safetensors"


def softmax_of(family):
    """(logits, logsumexp) in float64."""
    logits = read_safetensors(GOLDEN / family / "logits_f32.safetensors")["logits"].astype(np.float64)
    most = logits.max(axis=1, keepdims=True)
    return logits, (most[:, 0] + np.log(np.exp(logits - most).sum(axis=1)))


def gold_of(family, logits, logsumexp):
    """Log-probability of the token behind each one, NaN at a sample's end."""
    tokens = read_safetensors(GOLDEN / family / "tokens.safetensors")
    gold = np.full(len(logsumexp), np.nan)
    ids, ends = tokens["input_ids"], set(tokens["offsets"][1:])
    for row in range(len(gold)):
        if row + 1 not in ends:
            gold[row] = logits[row, ids[row + 1]] - logsumexp[row]
    return gold


def assert_full_softmax(family, got, k, rows=slice(None)):
    logits, logsumexp = (values[rows] for values in softmax_of(family))
    ids, log_prob = got["logits.topk.ids"], got["logits.topk.log_prob"]
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    # Where ids differ the two logits are as good as equal: float32 sums in another order.
    theirs, ours = np.take_along_axis(logits, order, 1), np.take_along_axis(logits, ids, 1)
    assert np.abs(theirs - ours).max() <= SUM_ERROR_MAX
    assert (ids != order).mean() < 0.01
    assert all(len(set(row)) == k for row in ids)
    wanted = (ours - logsumexp[:, None]).astype(np.float32)
    ulp = np.spacing(np.abs(wanted).astype(np.float16)).astype(np.float64)
    assert (np.abs(log_prob.astype(np.float64) - wanted) <= F16_ULPS_MAX * ulp + SUM_ERROR_MAX).all()
    assert np.abs(got["logits.topk.logsumexp"] - logsumexp).max() <= SUM_ERROR_MAX * 10
    gold = gold_of(family, *softmax_of(family))[rows]
    np.testing.assert_allclose(got["logits.topk.gold_log_prob"], gold, atol=SUM_ERROR_MAX * 10)
    return ids


@pytest.mark.parametrize("k", [5, 40])
@pytest.mark.parametrize("family", FAMILIES)
def test_top_k_is_a_full_softmax_of_transformers_logits(family, k, librarian, memory_path):
    store = memory_path / "store"
    librarian("extract", *job_of(family), "--out", store, "--dtype", "f32",
              "--capture", f"logits.topk(k={k}),final.post_norm")
    got = read_store(store)
    assert_full_softmax(family, got, k)
    group = json.loads((part_folders(store)[0] / "zarr.json").read_text())["attributes"]
    assert group["groups"]["logits.topk"]["ids"] == "logits.topk.ids"


def test_rows_do_not_depend_on_blocks(librarian, memory_path):
    stores = {}
    for name, options in {"whole": [], "blocks": ["--block-tokens", 16]}.items():
        librarian("extract", *job_of("gemma2"), "--out", memory_path / name,
                  "--capture", "logits.topk(k=7)", *options)
        stores[name] = read_store(memory_path / name)
    for name, values in stores["whole"].items():
        np.testing.assert_array_equal(values, stores["blocks"][name], name)


def test_loss_keeps_the_rows_that_predict_masked_in_tokens(librarian, memory_path):
    tokens = read_safetensors(GOLDEN / "llama" / "tokens.safetensors")
    mask = np.arange(len(tokens["input_ids"])) % 3 == 0
    file = memory_path / "masked.safetensors"
    write_safetensors(file, {"input_ids": tokens["input_ids"].astype(np.int32),
                             "offsets": tokens["offsets"].astype(np.int64),
                             "loss_mask": mask.astype(np.uint8)})
    librarian("extract", GOLDEN / "llama" / "model", "--tokens", file, "--dtype", "f32",
              "--out", memory_path / "store", "--capture", "logits.topk(k=4,positions=loss)")
    starts = set(tokens["offsets"][:-1])
    rows = [row - 1 for row in np.flatnonzero(mask) if row not in starts]
    ids = assert_full_softmax("llama", read_store(memory_path / "store"), 4, rows)
    assert len(ids) == len(rows)


@pytest.mark.parametrize("family,capture,said", [
    ("bert", "logits.topk", "has no head"),
    ("llama", "logits.topk(positions=loss)", "has no loss_mask"),
])
def test_what_cannot_be_is_refused_by_name(family, capture, said, librarian, memory_path):
    done = librarian("extract", *job_of(family), "--out", memory_path / "store",
                     "--capture", capture, exit_code=None)
    assert done.returncode in (USAGE, BAD_INPUT) and said in done.stderr
    assert not (memory_path / "store").exists()
