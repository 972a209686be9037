"""Batches of single rows: windows of rows are read into memory and their rows dealt to batches."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np

from .store import ActivationStore, Part


def row_counts(parts: Sequence[Part], captures: Sequence[str],
               drop_first: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows to skip, rows to take) of each sample: int64 [samples] both.

    Rows are those that the captures keep; all captures must keep the same.
    """
    skip, take = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for part in parts:
        kept = {part.rows_name(capture) for capture in captures}
        if len(kept) > 1:
            raise ValueError("token batches need captures that keep the same rows; these keep "
                             f"{', '.join(sorted(name or 'all' for name in kept))}")
        begins, ends = part.offsets[:-1], part.offsets[1:]
        firsts = np.minimum(begins + drop_first, ends)
        rows = part.kept(captures[0]) if captures else None
        if rows is not None:
            begins, firsts, ends = (np.searchsorted(rows, at) for at in (begins, firsts, ends))
        skip.append(firsts - begins)
        take.append(ends - firsts)
    return np.concatenate(skip), np.concatenate(take)


class TokenWindows:
    """Makes token batches in the epoch's order; keeps the windows of the group it is in."""

    def __init__(self, plan: Any, captures: Sequence[str], store: ActivationStore,
                 scale: dict[str, float] | None) -> None:
        """@param plan  The epoch's _RowPlan."""
        self._plan, self._captures, self._store = plan, list(captures), store
        self._scale = scale or {}
        self._group = -1
        self._windows: dict[int, _Window] = {}
        self._free: list[_Window] = []  # Their buffers are used again.

    def batch(self, number: int) -> dict[str, Any]:
        """Batch `number` of the epoch: {capture: [n, width], "input_ids": int64 [n]}."""
        plan, arrays = self._plan, self._store.arrays
        number, place = divmod(number, plan.window_rows // plan.batch_rows)
        if number // plan.lanes != self._group:  # All of a group end before the next begins.
            self._group = number // plan.lanes
            self._free += self._windows.values()
            self._windows = {}
        if number not in self._windows:
            room = self._free.pop() if self._free else _Window()
            self._windows[number] = self._load(number, room)
        window = self._windows[number]
        rows = window.order[place * plan.batch_rows : (place + 1) * plan.batch_rows]
        batch: dict[str, Any] = {}
        for capture, members in window.values.items():
            taken = {member: arrays.take_rows(array, rows) for member, array in members.items()}
            batch[capture] = taken.get("", taken)
            if capture in self._scale:
                batch[capture] = arrays.scaled(batch[capture], self._scale[capture])
        batch["input_ids"] = arrays.from_numpy(window.ids[rows])
        return arrays.batch(batch)

    def _load(self, number: int, window: _Window) -> _Window:
        arrays, at = self._store.arrays, 0
        window.order = self._plan.permutation(number)
        window.ids = np.empty(len(window.order), np.int64)
        for key, place, begin, end in self._plan.pieces(number):
            part = self._store.part(key)
            base = int(part.offsets[place])
            kept = part.kept(self._captures[0]) if self._captures else None
            if kept is not None:
                base = int(np.searchsorted(kept, base))
            rows = slice(base + begin, base + end)
            window.ids[at : at + end - begin] = \
                part.tokens("input_ids")[rows if kept is None else kept[rows]]
            for capture in self._captures:
                members = window.values.setdefault(capture, {})
                for member, array in part.members(capture).items():
                    if member not in members:
                        members[member] = part.empty(array, self._plan.window_rows, arrays)
                    part.read_into(array, rows.start, rows.stop, members[member], at, arrays)
            at += end - begin
        return window


class _Window:
    """Rows in memory: {capture: {member, or "": [window_rows, width]}}."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, Any]] = {}
        self.ids = np.zeros(0, np.int64)
        self.order = np.zeros(0, np.int64)
