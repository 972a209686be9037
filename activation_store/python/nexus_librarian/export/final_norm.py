"""The model's final norm from the teacher's skeleton in DIR/model/, for states captured before it.

Only root-mean-square norms, whose weight is one tensor: for any other model the state after the norm
has to be captured.
"""

from __future__ import annotations

import json
import mmap
import os
from typing import Any

import numpy as np

from .. import _decoder
from .._arrays import float_to_bf16
from ..store import ActivationStore
from . import values
from .safetensors_file import read_tensor

# The norm of these computes weight * x / rms(x); of those that begin with gemma, (1 + weight) * ...
_PLAIN = {"exaone4", "glm4", "granite", "llama", "ministral3", "mistral", "olmo2", "olmo3", "phi3",
          "qwen2", "qwen3", "seed_oss", "smollm3"}
_GEMMA = {"gemma", "gemma2", "gemma3", "gemma3_text"}
_WEIGHTS = ("model.norm.weight", "language_model.model.norm.weight",
            "model.language_model.norm.weight")
_TENSORS = "model.safetensors"
_BLOCK_ROWS = 1024  # Bounds the float32 copies.


class FinalNorm:
    """y = x / sqrt(mean(x^2) + epsilon) * weight in float32, rounded once to the type of x.

    @tolerance  tests/python/test_final_norm.py: f32 2e-5 per token against transformers.
    """

    def __init__(self, weight: np.ndarray, epsilon: float) -> None:
        """@param weight  float32 [width]; Gemma's with 1 added."""
        self._weight, self._epsilon = weight, np.float32(epsilon)

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """@param states  [tokens, width] as a numpy store gives them; the result is of that type."""
        normed = np.empty_like(states)
        for begin in range(0, len(states), _BLOCK_ROWS):
            rows = values.to_float(states[begin : begin + _BLOCK_ROWS])
            mean_square = np.mean(rows * rows, axis=1, keepdims=True)
            rows = rows / np.sqrt(mean_square + self._epsilon) * self._weight
            into = values.bits(normed)[begin : begin + _BLOCK_ROWS]
            into[:] = float_to_bf16(rows) if into.dtype == np.uint16 else rows
        return normed


def final_norm_of(store: ActivationStore) -> FinalNorm | None:
    """The norm of a store's model; None without a skeleton, for another kind of norm, or for stores
    of several models.

    @raise DamagedStoreError  The skeleton is not what was written.
    """
    norms = [_read(path, identity) for path, identity in zip(store.paths, store.identities)]
    if any(norm is None for norm in norms) or len({(w.tobytes(), e) for w, e in norms}) != 1:
        return None
    return FinalNorm(*norms[0])


def _read(path: str, identity: str) -> tuple[np.ndarray, float] | None:
    folder = os.path.join(path, "model")
    seal = _sealed(os.path.join(folder, "librarian.json"))
    if seal is None:
        return None
    if seal["identity_digest"] != identity:
        raise _decoder.DamagedStoreError(f"{folder}: the skeleton of another job")
    digests = {entry["path"]: entry["xxh3"] for entry in seal["files"]}
    config = json.loads(bytes(_checked(folder, "config.json", digests)))
    text = config.get("text_config", config)
    kind, epsilon = config.get("model_type"), text.get("rms_norm_eps")
    if kind not in _PLAIN | _GEMMA or epsilon is None:
        return None
    tensors = os.path.join(folder, _TENSORS)
    weight = next((found for name in _WEIGHTS
                   if (found := read_tensor(tensors, name)) is not None), None)
    _checked(folder, _TENSORS, digests)
    if weight is None:
        return None
    weight = values.to_float(weight)
    return (weight + 1 if kind in _GEMMA else weight), float(epsilon)


def _sealed(path: str) -> dict[str, Any] | None:
    """A sealed JSON document (FORMAT.md 2); None: there is none."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return None
    try:
        document = json.loads(data)
        digest = document["xxh3"].encode()
        whole = data.count(digest) == 1 and _decoder.xxh3_128(
            data.replace(digest, b"0" * len(digest))) == digest.decode()
    except (ValueError, KeyError, AttributeError, TypeError):
        whole = False
    if not whole:
        raise _decoder.DamagedStoreError(f"{path}: not what was written")
    return document


def _checked(folder: str, name: str, digests: dict[str, str]) -> mmap.mmap:
    """A file's content, compared with its digest in librarian.json."""
    path = os.path.join(folder, name)
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, ValueError):  # mmap has no empty files.
        data = None
    if data is None or _decoder.xxh3_128(data) != digests.get(name):
        raise _decoder.DamagedStoreError(f"{path}: not what was written")
    return data
