"""Batches from DataLoader's workers to the trainer without a copy, in memory that is used again.

torch shares a worker's tensors in memory made anew for each, and the kernel then clears every page:
more work than decoding. Here a worker keeps its pieces of shared memory (memfd). A piece begins with
a page whose first byte says that it is taken; the trainer's process clears it when the last tensor
in it is gone, and the worker may use the piece again. Nothing has a name in a file system: the
trainer opens the worker's descriptor through /proc, and all is gone with the processes.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from typing import Any

import numpy as np
import torch

_HEADER_BYTES = mmap.PAGESIZE
_MESSAGE_BYTES_MAX = 256 << 10  # Smaller arrays travel as bytes in the message.


class _Piece:
    """One piece of a worker's shared memory."""

    def __init__(self, number: int, room_bytes: int) -> None:
        self.number, self.room_bytes = number, room_bytes
        self.descriptor = os.memfd_create("nexus_librarian")
        os.ftruncate(self.descriptor, _HEADER_BYTES + room_bytes)
        self.memory = mmap.mmap(self.descriptor, _HEADER_BYTES + room_bytes)
        self.handed_over = False

    @property
    def taken(self) -> bool:
        return self.memory[0] != 0

    def close(self) -> None:
        os.close(self.descriptor)  # The mapping goes with the last array in it.


class _Pool:
    """A process's pieces."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.token = os.urandom(8)
        self._pieces: list[_Piece] = []
        self._made = 0
        self.retired: list[int] = []  # What the trainer may unmap; told with the next batch.
        self.by_address: dict[int, _Piece] = {}

    def take(self, size: int) -> np.ndarray:
        """uint8 [size] in a piece that nobody uses."""
        free = [piece for piece in self._pieces if not piece.taken]
        fitting = [piece for piece in free if piece.room_bytes >= size]
        if fitting:
            piece = min(fitting, key=lambda candidate: candidate.room_bytes)
        else:
            for small in free:  # They would never fit again: batches vary around a size.
                self._pieces.remove(small)
                self.retired.append(small.number)
                small.close()
            piece = _Piece(self._made, size + size // 4)
            self._made += 1
            self._pieces.append(piece)
        piece.memory[0], piece.handed_over = 1, False
        array = np.frombuffer(piece.memory, np.uint8, size, _HEADER_BYTES)
        address = array.ctypes.data
        self.by_address[address] = piece
        weakref.finalize(array, self._gone, address, piece).atexit = False
        return array

    def _gone(self, address: int, piece: _Piece) -> None:
        self.by_address.pop(address, None)
        if not piece.handed_over:
            piece.memory[0] = 0


_pool: _Pool | None = None


def _pool_here() -> _Pool:
    global _pool
    if _pool is None or _pool.process != os.getpid():
        _pool = _Pool()
    return _pool


def empty(shape: tuple[int, ...], dtype: torch.dtype, element_bytes: int) -> torch.Tensor:
    """A tensor in shared memory; a SharedBatch that holds it is handed over without a copy."""
    count = math.prod(shape)
    memory = _pool_here().take(count * element_bytes)
    return torch.frombuffer(memory, dtype=dtype, count=count).reshape(shape)


class SharedBatch(dict):
    """A worker's batch, which arrives as a plain dict. Pickling gives its tensors away."""

    def __copy__(self) -> SharedBatch:  # torch's default_convert copies; that hands nothing over.
        return SharedBatch(self)

    def __reduce__(self) -> tuple[Any, ...]:
        pool = _pool_here()
        packed = {name: _packed(value, pool) for name, value in self.items()}
        retired, pool.retired = pool.retired, []
        return _unpack, ((pool.process, pool.token), retired, packed)


def _packed(value: Any, pool: _Pool) -> tuple[Any, ...]:
    if isinstance(value, dict):
        return ("dict", {name: _packed(item, pool) for name, item in value.items()})
    if not isinstance(value, torch.Tensor) or value.is_cuda or not value.is_contiguous():
        return ("value", value)
    size = value.numel() * value.element_size()
    piece = pool.by_address.get(value.data_ptr())
    if piece is not None and not piece.handed_over:
        piece.handed_over = True
        return ("piece", piece.number, piece.descriptor, _HEADER_BYTES + piece.room_bytes, size,
                value.dtype, tuple(value.shape))
    if size >= _MESSAGE_BYTES_MAX:
        return ("value", value)  # Made by others: torch's own way.
    from . import _decoder

    data = bytes(_decoder.writable_memory(value.data_ptr(), size)) if size else b""
    return ("bytes", data, value.dtype, tuple(value.shape))


_mapped: dict[tuple[int, bytes], dict[int, mmap.mmap]] = {}  # The trainer's: pieces of each worker.


def _unpack(worker: tuple[int, bytes], retired: list[int],
            packed: dict[str, Any]) -> dict[str, Any]:
    if worker not in _mapped:
        for other in [other for other in _mapped if not os.path.exists(f"/proc/{other[0]}")]:
            del _mapped[other]
        _mapped[worker] = {}
    for number in retired:
        _mapped[worker].pop(number, None)
    return {name: _unpacked(worker, value) for name, value in packed.items()}


def _unpacked(worker: tuple[int, bytes], value: tuple[Any, ...]) -> Any:
    kind, *rest = value
    if kind == "dict":
        return {name: _unpacked(worker, item) for name, item in rest[0].items()}
    if kind == "value":
        return rest[0]
    if kind == "bytes":
        data, dtype, shape = rest
        if not data:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)
    number, descriptor, mapping_bytes, size, dtype, shape = rest
    memory = _mapped[worker].get(number)
    if memory is None:
        with open(f"/proc/{worker[0]}/fd/{descriptor}", "r+b") as file:
            memory = _mapped[worker][number] = mmap.mmap(file.fileno(), mapping_bytes)
    array = np.frombuffer(memory, np.uint8, size, _HEADER_BYTES)
    weakref.finalize(array, _release, memory).atexit = False
    return torch.frombuffer(array, dtype=dtype).reshape(shape)


def _release(memory: mmap.mmap) -> None:
    memory[0] = 0
