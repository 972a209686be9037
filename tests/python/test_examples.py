"""The example tools write what the formats demand."""

import json
import subprocess
import sys

import numpy as np
import pytest

from conftest import REPOSITORY
from make_teacher import LlamaShape, write_checkpoint
from support import read_safetensors
from tokenize_bytes import BOS_ID, fixed_samples, pack, paragraphs

EXAMPLES = REPOSITORY / "examples"
TINY = LlamaShape(hidden=32, layers=2, ffn=48, heads=4, kv_heads=2, vocab=258)


def test_a_teacher_is_complete_and_its_values_have_their_scale(tmp_path):
    write_checkpoint(tmp_path, TINY, file_count=3, seed=1)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    tensors = {}
    for name in set(index["weight_map"].values()):
        tensors |= read_safetensors(tmp_path / name)
    assert {name: array.shape for name, array in tensors.items()} == dict(TINY.tensors())
    assert index["metadata"]["total_size"] == sum(2 * array.size for array in tensors.values())
    assert abs(tensors["model.norm.weight"].mean() - 1) < 0.05
    down = tensors["model.layers.1.mlp.down_proj.weight"]
    assert abs(down.std() * np.sqrt(TINY.ffn) - 1) < 0.1
    first, second = (tensors[f"model.layers.{i}.mlp.down_proj.weight"] for i in (0, 1))
    assert not np.array_equal(first, second)


def test_a_teacher_depends_on_its_seed_only(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_checkpoint(tmp_path / name, TINY, file_count=1, seed=seed)
    file = "model-00001-of-00001.safetensors"
    a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
    assert a == b and a != c


def test_samples_are_cut_as_told_and_begin_with_bos():
    assert paragraphs(b"\n\none\ntwo\n \n\nthree\n") == [b"one\ntwo", b"three"]
    assert fixed_samples(b"abcdefg", 3) == [b"abc", b"def", b"g"]
    input_ids, offsets = pack([b"ab", b"\xff"])
    assert input_ids.tolist() == [BOS_ID, 97, 98, BOS_ID, 255]
    assert offsets.tolist() == [0, 3, 5]


@pytest.mark.parametrize("options", [[], ["--sample-bytes", "100"]])
def test_the_token_file_holds_the_text(tmp_path, options):
    text, out = EXAMPLES / "text" / "how_it_works.txt", tmp_path / "tokens.safetensors"
    subprocess.run([sys.executable, EXAMPLES / "tokenize_bytes.py", text, "--out", out, *options],
                   check=True, timeout=60)
    arrays = read_safetensors(out)
    ids, offsets = arrays["input_ids"], arrays["offsets"]
    assert (ids.dtype, offsets.dtype) == (np.int32, np.int64)
    assert (ids[offsets[:-1]] == BOS_ID).all() and (np.diff(offsets) > 1).all()
    assert b'"tokenizer":"bytes"' in out.read_bytes()[:200]
    if options:
        assert bytes(ids[ids != BOS_ID].astype(np.uint8)) == text.read_bytes()
