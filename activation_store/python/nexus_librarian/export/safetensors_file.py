"""Writes a safetensors file piece by piece, all shapes known before.

@source  huggingface/safetensors README, "Format": u64 header bytes, JSON header, data without holes.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any, BinaryIO, Mapping, Sequence

import numpy as np

_TYPE_BYTES = {"F8_E4M3": 1, "U8": 1, "BOOL": 1, "BF16": 2, "F16": 2, "F32": 4, "I32": 4, "I64": 8}
_NUMPY_TYPES = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "I64": "<i8"}
_HEADER_BYTES_MAX = 100_000_000  # Larger headers are refused by safetensors itself.


def tensor_bytes(kind: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor; `kind` is safetensors' name of its type."""
    return _TYPE_BYTES[kind] * math.prod(shape)


class SafetensorsFile:
    """A safetensors file to be filled: each tensor's rows in order, tensors in any order."""

    def __init__(self, file: BinaryIO, tensors: Mapping[str, tuple[str, Sequence[int]]],
                 metadata: Mapping[str, str]) -> None:
        """@param tensors  {name: (type, shape)}; the data lies in this order."""
        self._file = file
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        at = 0
        for name, (kind, shape) in tensors.items():
            size = tensor_bytes(kind, shape)
            header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        if len(text) > _HEADER_BYTES_MAX:
            raise RuntimeError(f"a safetensors header of {len(text)} bytes")
        file.write(struct.pack("<Q", len(text)) + text)
        begin = 8 + len(text)
        self.bytes = begin + at
        self._next = {name: begin + header[name]["data_offsets"][0] for name in tensors}
        self._end = {name: begin + header[name]["data_offsets"][1] for name in tensors}

    def append(self, name: str, array: np.ndarray) -> None:
        """The next rows of a tensor."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        end = self._next[name] + data.nbytes
        if end > self._end[name]:
            raise RuntimeError(f"{name}: more rows than its shape says")
        self._file.seek(self._next[name])
        self._file.write(data)
        self._next[name] = end

    def finish(self) -> None:
        """@raise RuntimeError  A tensor is not full: a mistake of ours."""
        for name, end in self._end.items():
            if self._next[name] != end:
                raise RuntimeError(f"{name}: fewer rows than its shape says")


def read_tensor(path: str, name: str) -> np.ndarray | None:
    """One tensor of a file, flat, bfloat16 as uint16 bits; None if the file has no such tensor or is
    no safetensors file."""
    try:
        with open(path, "rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if header_bytes > _HEADER_BYTES_MAX:
                return None
            entry = json.loads(file.read(header_bytes))[name]
            begin, end = entry["data_offsets"]
            kind = _NUMPY_TYPES[entry["dtype"]]
            file.seek(8 + header_bytes + begin)
            data = file.read(end - begin)
            return np.frombuffer(data, kind) if len(data) == end - begin else None
    except (ValueError, KeyError, TypeError, struct.error):
        return None
