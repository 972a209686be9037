"""Exports of one file per sample: which samples, in which files, and what is there already."""

from __future__ import annotations

from typing import Any, BinaryIO, Iterator, Protocol

import numpy as np

from .._states import DraftStates, SampleStates
from ..store import ActivationStore
from .errors import BAD_INPUT, DAMAGED, ExportError
from .output import Output, Progress


class RecordFormat(Protocol):
    """How one sample becomes one file."""

    states: DraftStates

    def file_name(self, record: int) -> str:
        """File of a record; records are numbered from 0 without gaps."""

    def file_bytes(self, tokens: int) -> int:
        """Bytes of its data, about."""

    def is_finite(self, states: SampleStates) -> bool:
        """No NaN and no infinity in it."""

    def write(self, file: BinaryIO, sample: int, states: SampleStates) -> int:
        """Writes the file's content; returns its bytes."""

    def token_ids(self, path: str) -> np.ndarray | None:
        """The token ids of a file; None if it cannot be read."""


def export_records(output: Output, form: RecordFormat, samples: int, skip_nonfinite: bool,
                   what: str) -> None:
    """Writes the files that are missing, and compares the token ids of those that are there.

    @param samples  The first this many of the store.
    @raise ExportError  NaN or infinity (exit code 3); a file of other tokens (7); no room (5).
    """
    store = form.states.store
    lengths = store.lengths[:samples]
    skipped = {entry["sample"] for entry in output.skipped}
    output.check_room(sum(form.file_bytes(int(lengths[sample]))
                          for record, sample in enumerate(_kept(samples, skipped))
                          if not output.has(form.file_name(record))))
    progress = Progress(what, samples)
    record = 0
    for sample in range(samples):
        if sample in skipped:
            continue
        name = form.file_name(record)
        if output.has(name):
            compare_token_ids(store.sample(sample, [])["input_ids"],
                              form.token_ids(output.path(name)), output.path(name), sample)
            progress.step(sample + 1, 0)
        else:
            states = form.states.read(sample)
            if not form.is_finite(states):
                refuse_or_skip(output, store, sample, skip_nonfinite)
                continue
            with output.new_file(name) as file:
                written = form.write(file, sample, states)
            progress.step(sample + 1, written)
        record += 1
    progress.end()
    if output.has(form.file_name(record)):
        raise ExportError(DAMAGED, f"{output.path(form.file_name(record))}: more files than samples; "
                          "remove the folder and export again")


def kept_samples(output: Output, samples: int) -> Iterator[int]:
    """The samples that have a record, in order."""
    return _kept(samples, {entry["sample"] for entry in output.skipped})


def refuse_or_skip(output: Output, store: ActivationStore, sample: int, skip: bool) -> None:
    """What happens to a sample with NaN or infinity."""
    where = store.origin(sample)
    reason = f"NaN or infinity (input row {where.input_row} of {where.path}, part {where.part})"
    if not skip:
        raise ExportError(BAD_INPUT, f"sample {sample} has {reason}; --skip-nonfinite leaves such "
                          "samples out and lists them")
    output.skip(sample, reason)


def compare_token_ids(expected: Any, found: np.ndarray | None, path: str, sample: int) -> None:
    """@raise ExportError  They differ (exit code 7)."""
    if found is None or found.tolist() != expected.tolist():
        raise ExportError(DAMAGED, f"{path}: not the token ids of sample {sample}; remove the folder "
                          "and export again")


def _kept(samples: int, skipped: set[int]) -> Iterator[int]:
    return (sample for sample in range(samples) if sample not in skipped)
