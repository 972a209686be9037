"""Plain safetensors: shards of whole samples, every capture as [rows, width], and an index.

    index.json          {"samples", "tokens", "captures": {tensor: {"dtype", "width"}},
                         "shards": [{"file", "first_sample", "samples", "tokens", "bytes"}]}
    shard-00000.safetensors
        <capture>       [tokens, width] of the shard's samples, one after the other; a group such as
                        logits.topk has <capture>.<member>
        input_ids       int64 [tokens];  loss_mask  bool [tokens], if the store has one
        offsets         int64 [samples + 1]: rows offsets[i]..offsets[i+1] are the shard's sample i
        sample          int64 [samples]: its number in the store
        <capture>.rows  int64 [rows], for a capture that keeps some tokens only: which row of the
                        shard's tokens each of its rows is
"""

from __future__ import annotations

import json
import os
from typing import Iterator, NamedTuple, Sequence

import numpy as np

from ..store import ActivationStore, Sample
from . import values
from .errors import BAD_INPUT, ExportError
from .output import Output, Progress
from .records import compare_token_ids, refuse_or_skip
from .safetensors_file import SafetensorsFile, read_tensor, tensor_bytes

INDEX = "index.json"


class _Column(NamedTuple):
    kind: str  # safetensors' name of its type.
    shape: tuple[int, ...]  # Of one row.
    rows_of: str  # The capture that says how many rows a sample has; "" is one per token.


class ShardExport:
    """An export of some captures into shards."""

    def __init__(self, output: Output, store: ActivationStore, captures: Sequence[str],
                 samples: int, shard_bytes_max: int, skip_nonfinite: bool) -> None:
        self._output, self._store, self._captures = output, store, list(captures)
        self._samples, self._shard_bytes_max = samples, shard_bytes_max
        self._skip_nonfinite = skip_nonfinite
        self._rows = {capture: self._row_counts(capture) for capture in self._captures}
        self._rows[""] = store.lengths[:samples]
        self._partial = {capture for capture in self._captures
                         if f"{capture}.rows" in store.sample(0, [capture])}
        self._columns = {name: _Column(values.safetensors_name(array), array.shape[1:], rows_of)
                         for name, array, rows_of in self._arrays(store.sample(0, self._captures))}

    def _row_counts(self, capture: str) -> np.ndarray:
        """Rows of a capture in each sample: int64 [samples]."""
        store, counts = self._store, []
        for key in store.parts:
            part = store.part(key)
            kept = part.kept(capture)
            counts.append(part.lengths if kept is None
                          else np.diff(np.searchsorted(kept, part.offsets)))
        return np.concatenate(counts)[:self._samples]

    def _arrays(self, sample: Sample) -> Iterator[tuple[str, np.ndarray, str]]:
        """(tensor, rows of this sample, capture that counts them) in the order of the file."""
        yield "input_ids", sample["input_ids"], ""
        if "loss_mask" in sample:
            yield "loss_mask", sample["loss_mask"], ""
        for capture in self._captures:
            rows_of = capture if capture in self._partial else ""
            value = sample[capture]
            if rows_of:
                yield f"{capture}.rows", sample[f"{capture}.rows"], rows_of
            for name, array in value.items() if isinstance(value, dict) else [("", value)]:
                yield f"{capture}.{name}".rstrip("."), array, rows_of

    def run(self) -> None:
        """@raise ExportError"""
        progress = Progress("safetensors", self._samples)
        shards, first = [], 0
        row_bytes = sum(tensor_bytes(column.kind, column.shape) for column in self._columns.values())
        self._output.check_room(self._missing_bytes(row_bytes))
        while (chosen := self._next_shard(first)):
            name = f"shard-{len(shards):05d}.safetensors"
            path = self._output.path(name)
            if self._output.has(name):
                compare_token_ids(self._token_ids(chosen), read_tensor(path, "input_ids"), path,
                                  chosen[0])
            elif (bad := self._write(name, chosen, progress)) is not None:
                refuse_or_skip(self._output, self._store, bad, self._skip_nonfinite)
                continue  # The shard is cut anew, without the sample.
            shards.append({"file": name, "first_sample": chosen[0], "samples": len(chosen),
                           "tokens": int(self._rows[""][chosen].sum()),
                           "bytes": os.path.getsize(path)})
            first = chosen[-1] + 1
        progress.end()
        with self._output.new_file(INDEX) as file:
            file.write(json.dumps({
                "librarian_export": 1, "samples": sum(shard["samples"] for shard in shards),
                "tokens": sum(shard["tokens"] for shard in shards),
                "captures": {name: {"dtype": column.kind, "width": (*column.shape, 0)[0]}
                             for name, column in self._columns.items()},
                "shards": shards}, indent=1).encode() + b"\n")

    def _missing_bytes(self, row_bytes: int) -> int:
        there = sum(entry.stat().st_size for entry in os.scandir(self._output.folder))
        return max(0, int(self._rows[""].sum()) * row_bytes - there)

    def _sample_bytes(self, sample: int) -> int:
        return 16 + sum(tensor_bytes(column.kind, (int(self._rows[column.rows_of][sample]),
                                                   *column.shape))
                        for column in self._columns.values())

    def _next_shard(self, first: int) -> list[int]:
        """Samples of the shard that begins with `first` or the next one that is not left out."""
        skipped = {entry["sample"] for entry in self._output.skipped}
        chosen, size = [], 0
        for sample in range(first, self._samples):
            if sample in skipped:
                continue
            size += self._sample_bytes(sample)
            if chosen and size > self._shard_bytes_max:
                break
            chosen.append(sample)
        return chosen

    def _token_ids(self, chosen: Sequence[int]) -> np.ndarray:
        return np.concatenate([self._store.sample(sample, [])["input_ids"] for sample in chosen])

    def _write(self, name: str, chosen: Sequence[int], progress: Progress) -> int | None:
        """Writes a shard; or returns a sample that has NaN or infinity, and there is no shard."""
        rows = {rows_of: int(counts[chosen].sum()) for rows_of, counts in self._rows.items()}
        tensors = {"offsets": ("I64", (len(chosen) + 1,)), "sample": ("I64", (len(chosen),))}
        for tensor, column in self._columns.items():
            tensors[tensor] = (column.kind, (rows[column.rows_of], *column.shape))
        # Wide types first: then every tensor is aligned to its own.
        order = sorted(tensors, key=lambda tensor: -tensor_bytes(tensors[tensor][0], ()))
        try:
            with self._output.new_file(name) as file:
                out = SafetensorsFile(file, {tensor: tensors[tensor] for tensor in order}, {})
                offsets = np.concatenate([[0], np.cumsum(self._rows[""][chosen])])
                out.append("offsets", offsets.astype(np.int64))
                out.append("sample", np.array(chosen, np.int64))
                for begin, sample in zip(offsets.tolist(), chosen):
                    self._append(out, sample, begin)
                    progress.step(sample + 1, self._sample_bytes(sample))
                out.finish()
        except _NotFinite as found:
            return found.sample
        return None

    def _append(self, out: SafetensorsFile, sample: int, begin: int) -> None:
        for tensor, array, rows_of in self._arrays(self._store.sample(sample, self._captures)):
            column = self._columns[tensor]
            if (values.safetensors_name(array), array.shape[1:]) != (column.kind, column.shape):
                raise ExportError(BAD_INPUT, f"{tensor}: sample {sample} is {array.dtype} "
                                  f"{list(array.shape)}, those before have another type or width; "
                                  "export such stores one by one")
            # A group's values may be NaN by their meaning: no token follows a sample's last one.
            if tensor in self._captures and not values.is_finite(array):
                raise _NotFinite(sample)
            out.append(tensor, array + begin if tensor == f"{rows_of}.rows" else array)


class _NotFinite(Exception):
    def __init__(self, sample: int) -> None:
        super().__init__()
        self.sample = sample
