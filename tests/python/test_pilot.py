"""`librarian pilot`: what the teacher makes of a few samples.

Goal: its numbers are those of transformers' logits; what a long run would waste is said first.
Method: golden checkpoints, whose logits transformers computed (make_logits.py).
"""

import json
import os
import shutil
import sys

import numpy as np
import tokenizers

from tokenize_support import PACKAGE_PATH
from support import GOLDEN, read_safetensors, write_safetensors

BAD_INPUT = 3
ERROR_MAX = 1e-4


def softmax_of(family):
    logits = read_safetensors(GOLDEN / family / "logits_f32.safetensors")["logits"].astype(np.float64)
    return logits, np.log(np.exp(logits).sum(axis=1))


def pilot(librarian, family, tokens, folder, *options, exit_code=0):
    """The `pilot` event, and nothing left of its directory."""
    done = librarian("pilot", GOLDEN / family / "model", "--tokens", tokens, "--dtype", "f32", "--json",
                     *options, exit_code=exit_code, env={**os.environ, "TMPDIR": str(folder)})
    assert not list(folder.glob("librarian-pilot-*"))
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def masked_tokens(folder, mask):
    tokens = read_safetensors(GOLDEN / "llama" / "tokens.safetensors")
    file = folder / "masked.safetensors"
    write_safetensors(file, {"input_ids": tokens["input_ids"].astype(np.int32),
                             "offsets": tokens["offsets"].astype(np.int64),
                             "loss_mask": mask.astype(np.uint8)})
    return file, tokens


def test_perplexity_and_top_1_are_of_the_loss_tokens(librarian, memory_path):
    mask = np.arange(77) % 4 == 1
    file, tokens = masked_tokens(memory_path, mask)
    got, _ = pilot(librarian, "llama", file, memory_path)
    logits, sums = softmax_of("llama")
    ids, starts = tokens["input_ids"], set(tokens["offsets"][:-1])
    rows = [token - 1 for token in np.flatnonzero(mask) if token not in starts]
    log_prob = np.array([logits[row, ids[row + 1]] - sums[row] for row in rows])
    assert got["event"] == "pilot" and got["predicted"] == len(rows)
    assert abs(got["perplexity"] / np.exp(-log_prob.mean()) - 1) < ERROR_MAX
    hits = np.mean([logits[row].argmax() == ids[row + 1] for row in rows])
    assert abs(got["top1_share"] - hits) < ERROR_MAX
    assert got["masked_in"] == mask.sum() and got["nonfinite"] == 0
    lengths = np.diff(tokens["offsets"])
    assert got["longest_sample"] == lengths.max() and got["samples"] == len(lengths)
    sample = got["shown_sample"]
    begin, end = tokens["offsets"][sample : sample + 2]
    assert got["shown_ids"] == ids[begin:end].tolist()
    assert got["shown_mask"] == mask[begin:end].astype(int).tolist()


def test_samples_bounds_what_is_looked_at(librarian, memory_path):
    got, _ = pilot(librarian, "gpt2", GOLDEN / "gpt2" / "tokens.safetensors", memory_path,
                   "--samples", 2)
    assert got["samples"] == 2 and not got["has_loss_mask"]
    assert got["masked_in"] == got["tokens"] == got["predicted"] + 2


def test_a_mask_that_keeps_nothing_is_refused(librarian, memory_path):
    file, _ = masked_tokens(memory_path, np.zeros(77))
    got, error = pilot(librarian, "llama", file, memory_path, exit_code=BAD_INPUT)
    assert got["event"] == "error" and "has no token in" in error


def test_the_sample_is_shown_as_text_with_what_counts_marked(librarian, memory_path, monkeypatch):
    # A tokenizer with a character an id, as many as the golden model has.
    model = memory_path / "model"
    shutil.copytree(GOLDEN / "llama" / "model", model)
    characters = "abcdefghijklmnopqrstuvwxyz ?!.,;:-+*0123"
    vocabulary = {character: number for number, character in enumerate(characters)}
    tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [])).save(str(model / "tokenizer.json"))
    text, begin = "what is it? a book", 11
    tokens = memory_path / "tokens.safetensors"
    write_safetensors(tokens, {"input_ids": np.array([vocabulary[c] for c in text], np.int32),
                               "offsets": np.array([0, len(text)], np.int64),
                               "loss_mask": np.array([i > begin for i in range(len(text))], np.uint8)})
    job = ["pilot", model, "--tokens", tokens]
    monkeypatch.setenv("LIBRARIAN_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE_PATH))
    shown = librarian(*job).stdout.splitlines()[-1].replace(" ", "")
    assert shown == "whatisit?\u27e6abook\u27e7"
    event = json.loads(librarian(*job, "--json").stdout.splitlines()[-1])
    assert event["shown_text"].replace(" ", "").strip() == shown
    # Without the package ids have to do, and it says why.
    monkeypatch.setenv("LIBRARIAN_PYTHON", "/nonexistent")
    done = librarian(*job)
    assert "[0]" in done.stdout and "nexus-librarian[tokenize]" in done.stderr
