"""The canonical token file: input_ids int32 [T], offsets int64 [N+1], loss_mask uint8 [T].

A safetensors file. Samples are packed without padding: sample i is tokens offsets[i] up to
offsets[i + 1].
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .failure import Refusal, one_line

_COPY_BYTES = 4 << 20
_HEADER_BYTES_MAX = 1 << 20
_TYPES = {"I32": np.dtype("<i4"), "I64": np.dtype("<i8"), "U8": np.dtype("u1")}


class TokenFileWriter:
    """Collects samples in nameless files beside the output; nothing of it is in memory.

    Use as a context: what is not published is gone at its end. @error OSError  The disk's.
    """

    def __init__(self, path: Path, has_mask: bool):
        self._path = path
        self.samples = self.tokens = self.loss_tokens = self.longest_sample = 0
        self._spills: dict[str, BinaryIO] = {}
        for name in ("offsets", "input_ids", *(["loss_mask"] if has_mask else [])):
            self._spills[name] = tempfile.TemporaryFile(dir=path.parent)
        self._spills["offsets"].write(struct.pack("<q", 0))

    def __enter__(self) -> TokenFileWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._spills.values():
            file.close()

    def append(self, input_ids: np.ndarray, loss_mask: np.ndarray | None) -> None:
        """@param input_ids, loss_mask  [tokens], at least one; the mask as said at the start."""
        self._spills["input_ids"].write(input_ids.astype("<i4", copy=False).tobytes())
        if "loss_mask" in self._spills:
            self._spills["loss_mask"].write(loss_mask.astype("u1", copy=False).tobytes())
            self.loss_tokens += int(np.count_nonzero(loss_mask))
        self.samples += 1
        self.tokens += len(input_ids)
        self.longest_sample = max(self.longest_sample, len(input_ids))
        self._spills["offsets"].write(struct.pack("<q", self.tokens))

    def publish(self, metadata: Mapping[str, str]) -> None:
        """Writes the file under a temporary name, makes it durable, and renames it."""
        number, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with os.fdopen(number, "wb") as file:
                file.write(self._header(metadata))
                for spill in self._spills.values():
                    spill.seek(0)
                    shutil.copyfileobj(spill, file, _COPY_BYTES)
                file.flush()
                os.fchmod(file.fileno(), 0o666 & ~_umask())
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _header(self, metadata: Mapping[str, str]) -> bytes:
        types = {"offsets": "I64", "input_ids": "I32", "loss_mask": "U8"}
        entries: dict[str, object] = {"__metadata__": dict(metadata)}
        end = 0
        # Widest type first, so that each array is aligned.
        for name, spill in self._spills.items():
            begin, end = end, end + spill.tell()
            width = _TYPES[types[name]].itemsize
            entries[name] = {"dtype": types[name], "shape": [(end - begin) // width],
                             "data_offsets": [begin, end]}
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        return struct.pack("<Q", len(header)) + header


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_sample(path: Path, sample: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(input_ids int32 [tokens], loss_mask uint8 [tokens] or None) of one sample; reads only it.

    @error Refusal  Not a token file, or no such sample.
    """
    try:
        with path.open("rb") as file:
            arrays = _arrays(file, path)
            offsets = arrays["offsets"]
            samples = len(offsets) - 1
            if not 0 <= sample < samples:
                raise Refusal(f"{path}: has samples 0 to {samples - 1}, not {sample}")
            begin, end = int(offsets[sample]), int(offsets[sample + 1])
            if not 0 <= begin < end <= len(arrays["input_ids"]):
                raise Refusal(f"{path}: the offsets of sample {sample} are wrong: {begin}, {end}")
            mask = arrays.get("loss_mask")
            return (np.array(arrays["input_ids"][begin:end]),
                    None if mask is None else np.array(mask[begin:end]))
    except OSError as error:
        raise Refusal(f"{path}: {error.strerror}") from error


def _arrays(file: BinaryIO, path: Path) -> dict[str, np.ndarray]:
    """The arrays, mapped."""
    try:
        header_bytes = struct.unpack("<Q", file.read(8))[0]
        if header_bytes > _HEADER_BYTES_MAX:
            raise ValueError(f"its header has {header_bytes} bytes")
        arrays = {}
        for name, entry in json.loads(file.read(header_bytes)).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                dtype = _TYPES[entry["dtype"]]
                arrays[name] = np.memmap(path, dtype, "r", 8 + header_bytes + begin,
                                         ((end - begin) // dtype.itemsize,))
        if arrays["offsets"].dtype != "<i8" or arrays["input_ids"].dtype != "<i4":
            raise ValueError("input_ids must be I32 and offsets I64")
        return arrays
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refusal(f"{path}: not a token file (safetensors with input_ids and offsets): "
                      f"{one_line(error)}") from error
