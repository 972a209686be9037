"""Collators: lists of samples to batches, padded or packed.

Both take samples as ActivationStore.sample() gives them, and return dicts of the same names. Captures
that keep some rows only are joined by their rows, with `<capture>.rows` saying where these belong.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

import numpy as np

from ._arrays import Arrays, arrays_like
from .store import Part, Sample

def collate_padded(samples: Sequence[Sample], *, pad_id: int = 0) -> dict[str, Any]:
    """Samples side by side, each padded at its end to the longest, of B samples and T tokens.

    @param pad_id  Token id of the padding.
    @return  {capture: [B, T, width], zeros beyond a sample's end (a group: dict of such);
             "<capture>.rows": int64 [B, R], -1 beyond a sample's rows, for captures that keep some
             rows only, which are [B, R, width] themselves;
             "input_ids": int64 [B, T]; "loss_mask": bool [B, T], False beyond the end;
             "attention_mask": bool [B, T]; "lengths": int64 [B]}
    """
    arrays = _arrays_of(samples)
    lengths = np.array([len(sample["input_ids"]) for sample in samples], np.int64)

    def pad(name: str, values: Sequence[Any]) -> Any:
        value = pad_id if name == "input_ids" else -1 if name.endswith(".rows") else 0
        longest = max(len(array) for array in values)
        batch = arrays.empty_batch((len(values), longest, *values[0].shape[1:]),
                                   values[0].dtype)
        for row, array in enumerate(values):
            batch[row, : len(array)] = array
            batch[row, len(array) :] = value
        return batch

    batch = _joined(samples, pad)
    batch["attention_mask"] = arrays.from_numpy(np.arange(lengths.max()) < lengths[:, None])
    batch["lengths"] = arrays.from_numpy(lengths)
    return arrays.batch(batch)


def collate_packed(samples: Sequence[Sample]) -> dict[str, Any]:
    """Samples one after the other as one sequence of T tokens: no padding.

    @return  {capture: [T, width] (a group: dict of such); "<capture>.rows": int64 [R], positions in
             the sequence, for captures that keep some rows only, which are [R, width] themselves;
             "input_ids": int64 [T]; "loss_mask": bool [T];
             "position_ids": int64 [T], from 0 in each sample;
             "document_ids": int64 [T], number of the sample in the batch;
             "lengths": int64 [B]; "cu_seqlens": int32 [B + 1], where samples begin, then T;
             "max_seqlen": int}
    """
    arrays = _arrays_of(samples)
    lengths = np.array([len(sample["input_ids"]) for sample in samples], np.int64)
    begins = np.concatenate([[0], np.cumsum(lengths)])

    def pack(name: str, values: Sequence[Any]) -> Any:
        if name.endswith(".rows"):
            values = [rows + int(begin) for rows, begin in zip(values, begins)]
        whole = _whole(samples, values)
        return arrays.concatenate(values) if whole is None else whole

    batch = _joined(samples, pack)
    documents = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    batch["position_ids"] = arrays.from_numpy(np.arange(begins[-1]) - begins[documents])
    batch["document_ids"] = arrays.from_numpy(documents)
    batch["lengths"] = arrays.from_numpy(lengths)
    batch["cu_seqlens"] = arrays.from_numpy(begins.astype(np.int32))
    batch["max_seqlen"] = int(lengths.max())
    return arrays.batch(batch)


class AdjacentSample(dict):
    """A sample whose captures lie in memory between those of its batch's neighbours."""

    whole: dict[int, tuple[Any, list[Any]]]  # id() of the first piece -> whole array, all pieces.

    def __reduce__(self) -> tuple[Any, ...]:  # A copy has its own arrays.
        return dict, (dict(self),)


def read_adjacent(places: Sequence[tuple[Part, int]], captures: Sequence[str],
                  arrays: Arrays) -> list[Sample]:
    """Part.sample() of each of these places; collate_packed() of all of them then copies no rows."""
    samples = [AdjacentSample() for _ in places]
    whole: dict[int, tuple[Any, list[Any]]] = {}
    for capture in captures:
        members = [part.members(capture) for part, _ in places]
        infos = [{member: part.info(array) for member, array in arrays_of_part.items()}
                 for (part, _), arrays_of_part in zip(places, members)]
        if any(info != infos[0] for info in infos):  # Of several stores, and joined by nobody.
            return [part.sample(place, captures, arrays) for part, place in places]
        ranges = [part.row_range(capture, place) for part, place in places]
        ends = np.cumsum([last - first for first, last in ranges]).tolist()
        values: list[dict[str, Any]] = [{} for _ in places]
        for member, info in infos[0].items():
            room = arrays.empty_batch((ends[-1], info.width) if info.width else (ends[-1],),
                                      info.dtype)
            for (part, _), names, (first, last), end, value in zip(places, members, ranges, ends,
                                                                   values):
                begin = end - (last - first)
                part.read_into(names[member], first, last, room, begin, arrays)
                value[member] = room[begin:end]
            pieces = [value[member] for value in values]
            whole[id(pieces[0])] = room, pieces
        for (part, place), (first, last), sample, value in zip(places, ranges, samples, values):
            kept = part.kept(capture)
            if kept is not None:
                sample[capture + ".rows"] = arrays.from_numpy(
                    kept[first:last] - int(part.offsets[place]))
            sample[capture] = value.get("", value)
    for (part, place), sample in zip(places, samples):
        sample.update(part.sample(place, (), arrays))
        sample.whole = whole
    return samples


def _whole(samples: Sequence[Sample], values: Sequence[Any]) -> Any:
    """The array that consists of exactly these, or None."""
    if not isinstance(samples[0], AdjacentSample):
        return None
    room, pieces = samples[0].whole.get(id(values[0]), (None, []))
    same = len(pieces) == len(values) and all(a is b for a, b in zip(pieces, values))
    return room if same else None


def _arrays_of(samples: Sequence[Sample]) -> Arrays:
    if not samples:
        raise ValueError("a batch needs at least one sample")
    return arrays_like([samples[0]["input_ids"]])


def _joined(samples: Sequence[Sample],
            join: Callable[[str, Sequence[Any]], Any]) -> dict[str, Any]:
    """`join` of each name's values; in groups of each member's."""
    batch: dict[str, Any] = {}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        batch[name] = ({member: join(member, [value[member] for value in values])
                        for member in first} if isinstance(first, dict) else join(name, values))
    return batch


def read_padded(places: Sequence[tuple[Part, int]], captures: Sequence[str],
                arrays: Arrays) -> dict[str, Any]:
    """collate_padded() of the samples at these places of parts, each row decoded where it belongs."""
    def room(counts: Sequence[int]) -> tuple[tuple[int, ...], list[int]]:
        longest = max(counts)
        return (len(counts), longest), [row * longest for row in range(len(counts))]

    batch = collate_padded([part.sample(place, (), arrays) for part, place in places])
    return arrays.batch(_read(places, captures, arrays, batch, room, True))


def read_packed(places: Sequence[tuple[Part, int]], captures: Sequence[str],
                arrays: Arrays) -> dict[str, Any]:
    """collate_packed() of the samples at these places of parts, each row decoded where it belongs."""
    def room(counts: Sequence[int]) -> tuple[tuple[int, ...], list[int]]:
        return (sum(counts),), np.cumsum([0, *counts])[:-1].tolist()

    batch = collate_packed([part.sample(place, (), arrays) for part, place in places])
    return arrays.batch(_read(places, captures, arrays, batch, room, False))


def _read(places: Sequence[tuple[Part, int]], captures: Sequence[str], arrays: Arrays,
          batch: dict[str, Any], room: Callable[..., Any], pad: bool) -> dict[str, Any]:
    """Adds the captures to a batch. @param room  Rows of samples -> shape and begins of each."""
    lengths = [int(part.lengths[place]) for part, place in places]
    begins = room(lengths)[1]
    for capture in captures:
        ranges = [part.row_range(capture, place) for part, place in places]
        shape, at = room([last - first for first, last in ranges])
        if places[0][0].rows_name(capture) is not None:
            rows = np.full(shape, -1, np.int64).reshape(-1)
            for (part, place), (first, last), begin, base in zip(places, ranges, at, begins):
                rows[begin : begin + last - first] = part.kept(capture)[first:last] - \
                    int(part.offsets[place]) + (0 if pad else base)
            batch[capture + ".rows"] = arrays.from_numpy(rows.reshape(shape))
        values = {}
        for member in places[0][0].members(capture):
            info = places[0][0].info(places[0][0].members(capture)[member])
            width = (info.width,) if info.width else ()
            values[member] = arrays.empty_batch(shape + width, info.dtype)
            flat = values[member].reshape((-1, *width))
            for (part, place), (first, last), begin in zip(places, ranges, at):
                part.read_into(part.members(capture)[member], first, last, flat, begin, arrays)
                if pad:
                    flat[begin + last - first : begin + shape[1]] = 0
        batch[capture] = values.get("", values)
    return batch
