"""Rows of the input files, one at a time: JSON lines and parquet. Memory does not grow with them."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .failure import EXIT_USAGE, Refusal, one_line

ROW_BYTES_MAX = 64 << 20
COLUMNS = ("input_ids", "loss_mask", "messages", "conversations", "prompt", "response", "text",
           "system", "tools", "chat_template_kwargs")
_PARQUET_ROWS = 256

Row = dict[str, Any]
# Line or row number from 1; the row, or why it is none; about how many bytes it has.
NumberedRow = tuple[int, Row | str, int]


def read_rows(place: str) -> Iterator[NumberedRow]:
    """The rows of a file in order; '-' is standard input.

    @error Refusal  It cannot be read at all.
    """
    if place == "-":
        yield from _json_lines(sys.stdin.buffer, "standard input")
        return
    path = Path(place)
    name = path.name.lower()
    if name.endswith(".parquet"):
        yield from _parquet_rows(path)
        return
    if not name.endswith((".jsonl", ".ndjson", ".json", ".jsonl.gz", ".json.gz")):
        raise Refusal(f"--input {place}: must be .jsonl, .jsonl.gz or .parquet", EXIT_USAGE)
    try:
        with gzip.open(path) if name.endswith(".gz") else path.open("rb") as file:
            yield from _json_lines(file, place)
    except (OSError, EOFError) as error:
        raise Refusal(f"--input {place}: {one_line(getattr(error, 'strerror', None) or error)}"
                      ) from error


def _json_lines(file: BinaryIO, place: str) -> Iterator[NumberedRow]:
    number = 0
    while line := file.readline(ROW_BYTES_MAX + 1):
        number += 1
        if len(line) > ROW_BYTES_MAX:
            while line and not line.endswith(b"\n"):
                line = file.readline(ROW_BYTES_MAX)
            yield number, f"longer than {ROW_BYTES_MAX >> 20} MiB", 0
            continue
        line = line.strip() if number > 1 else line.removeprefix(b"\xef\xbb\xbf").strip()
        if number == 1 and line.startswith(b"["):
            raise Refusal(f"--input {place}: is a JSON list; one JSON object a line is needed")
        if line:
            yield number, _parse(line), len(line)


def _parse(line: bytes) -> Row | str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {one_line(error, 100)}"
    return row if isinstance(row, dict) else "not a JSON object"


def _parquet_rows(path: Path) -> Iterator[NumberedRow]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise Refusal(f"--input {path}: parquet needs the Python package pyarrow: pip install "
                      "'nexus-librarian[tokenize]'", EXIT_USAGE) from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
            columns = [name for name in file.schema_arrow.names if name in COLUMNS]
            if not columns:
                raise Refusal(f"--input {path}: none of its columns is one of "
                              f"{', '.join(COLUMNS)}")
            for batch in file.iter_batches(_PARQUET_ROWS, columns=columns, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield number, _without_nulls(row), batch.nbytes // batch.num_rows
    except (OSError, pyarrow.ArrowException) as error:
        raise Refusal(f"--input {path}: {one_line(error)}") from error


def _without_nulls(value: Any) -> Any:
    """A column has every field for every row; what a row lacks is null. Templates ask whether a
    field is there. Content alone may be null in a message."""
    if isinstance(value, dict):
        return {key: _without_nulls(entry) for key, entry in value.items()
                if entry is not None or key == "content"}
    if isinstance(value, list):
        return [_without_nulls(entry) for entry in value]
    return value
