"""Ids back to text that shows which of it counts for the loss."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import tokenizers

from .failure import Refusal, one_line
from .token_file import read_sample

LOSS_BEGIN, LOSS_END = "\u27e6", "\u27e7"  # White square brackets.


def read_ids(place: str, sample: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Ids and loss mask: of a sample of a token file, or of standard input (`-`), which is one JSON
    object {"input_ids": [...], "loss_mask": [...]} or numbers between white space."""
    if place != "-":
        return read_sample(Path(place), sample)
    text = sys.stdin.read()
    try:
        if text.lstrip().startswith("{"):
            row = json.loads(text)
            ids, mask = row["input_ids"], row.get("loss_mask")
        else:
            ids, mask = [int(word) for word in text.replace(",", " ").split()], None
        ids = np.array(ids, np.int32)
        mask = None if mask is None else np.array(mask, np.uint8)
        if ids.ndim != 1 or len(ids) == 0 or (mask is not None and mask.shape != ids.shape):
            raise ValueError("ids and mask must be lists of one length, at least 1")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise Refusal("standard input: neither numbers nor a JSON object with input_ids: "
                      f"{one_line(error)}") from error
    return ids, mask


def segments(tokenizer: tokenizers.Tokenizer, ids: np.ndarray,
             mask: np.ndarray | None) -> list[dict[str, Any]]:
    """[{"text", "loss", "tokens"}] for each run of tokens with one mask; texts join to the whole.

    @error Refusal  An id that the tokenizer does not have.

    Tokens may hold parts of characters, so a run's text is what the whole text has more with it.
    """
    ids_end = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if ids.min() < 0 or ids.max() >= ids_end:
        raise Refusal(f"the tokenizer's ids are below {ids_end}, and these are {ids.min()} to "
                      f"{ids.max()}; use the tokenizer that made them")
    counts = np.zeros(len(ids), bool) if mask is None else mask != 0
    borders = [0, *(np.flatnonzero(np.diff(counts)) + 1).tolist(), len(ids)]
    result, done = [], ""
    for begin, end in zip(borders[:-1], borders[1:], strict=True):
        text = tokenizer.decode(ids[:end].tolist(), skip_special_tokens=False)
        # A decoder may change its mind about what came before, e.g. half a character.
        same = _common_prefix(done, text)
        if same < len(done) and result:
            result[-1]["text"] = result[-1]["text"][: len(result[-1]["text"]) + same - len(done)]
        result.append({"text": text[same:], "loss": bool(counts[begin]), "tokens": end - begin})
        done = text
    return result


def _common_prefix(a: str, b: str) -> int:
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    return next(index for index in range(length) if a[index] != b[index])


def print_marked(parts: list[dict[str, Any]], out: TextIO) -> None:
    """The text with what counts for the loss in white square brackets."""
    for part in parts:
        # Text from strangers must not drive the terminal.
        text = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode()
                       for c in part["text"])
        out.write(f"{LOSS_BEGIN}{text}{LOSS_END}" if part["loss"] else text)
    out.write("\n")
