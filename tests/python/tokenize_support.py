"""What the tests of tokenize share: where the package is, an encoder, pieces with their masks."""

import os
import pathlib
import sys

import pytest

import small_tokenizers as small

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
_BINARY = pathlib.Path(os.environ.get("LIBRARIAN_BIN", REPOSITORY / "build/release/cli/librarian"))
_BUILT = _BINARY.resolve().parents[1] / "python"
# The build's, else the sources, which lack the decoder; tokenize does not need it.
PACKAGE_PATH = _BUILT if (_BUILT / "nexus_librarian/tokenize.py").exists() else (
    REPOSITORY / "activation_store/python")
if str(PACKAGE_PATH) not in sys.path:
    sys.path.insert(0, str(PACKAGE_PATH))

from nexus_librarian.tokenizing.encoder import Encoder  # noqa: E402
from nexus_librarian.tokenizing.failure import RowFailure  # noqa: E402
from nexus_librarian.tokenizing.tokenizer_files import load_tokenizer  # noqa: E402

TEMPLATES = {name: value for name, value in vars(small).items()
             if name.isupper() and isinstance(value, str)}
USER, ASSISTANT = "<|im_start|>user\n", "<|im_start|>assistant\n"


def talk(*texts):
    """Messages of a user and an assistant in turn."""
    return [{"role": "assistant" if turn % 2 else "user", "content": text}
            for turn, text in enumerate(texts)]


@pytest.fixture
def encoder(tmp_path):
    """encoder(template, tokenizer=..., options...) -> an Encoder."""
    def make(template=None, tokenizer=None, config=None, **options):
        folder = small.write_tokenizer(tmp_path / "tokenizer", tokenizer or small.byte_level(),
                                       template, **(config or {}))
        return Encoder(load_tokenizer(str(folder)), **options)
    return make


def encode(encoder, row):
    [result] = encoder.encode([row])
    if isinstance(result, RowFailure):
        raise result
    return result


def expect(encoder, row, pieces):
    """`pieces`: [(text, mask)...] whose borders are borders of tokens."""
    encodings = [(encoder.files.tokenizer.encode(text, add_special_tokens=False).ids, mask)
                 for text, mask in pieces]
    result = encode(encoder, row)
    assert result.input_ids.tolist() == [token for ids, _ in encodings for token in ids]
    assert result.loss_mask.tolist() == [mask for ids, mask in encodings for _ in ids]
