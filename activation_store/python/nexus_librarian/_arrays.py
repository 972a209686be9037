"""Arrays of the framework in use: torch tensors where torch is installed, else numpy arrays.

Nothing here goes from torch to numpy or back through torch's own bridge, because torch 1.13
(Debian's) cannot talk to numpy 2.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any, Iterable, Sequence

import numpy as np

from . import _decoder

_SHARED_BYTES_MIN = 256 << 10
_HUGE_PAGES_BYTES_MIN = 4 << 20

# The attribute `dtype` of an array in the store -> the numpy type with the same bits.
STORED_TYPES = {
    "bfloat16": np.dtype(np.uint16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
    "float8_e4m3fn": np.dtype(np.uint8),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}


class NumpyArrays:
    """numpy. bfloat16 is ml_dtypes' where that is installed, else uint16 with the same bits."""

    name = "numpy"

    def __init__(self) -> None:
        self._types = dict(STORED_TYPES)
        if importlib.util.find_spec("ml_dtypes"):
            import ml_dtypes

            self._types["bfloat16"] = np.dtype(ml_dtypes.bfloat16)

    def empty(self, shape: Sequence[int], dtype: str) -> np.ndarray:
        return np.empty(shape, self._types[dtype])

    def empty_batch(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """Room for a batch; unlike that of empty(), handed over by batch() without a copy."""
        return np.empty(shape, self._types[dtype] if isinstance(dtype, str) else dtype)

    def from_numpy(self, array: np.ndarray) -> np.ndarray:
        return array

    def bytes_of(self, array: np.ndarray) -> memoryview:
        """Its memory, writable. The array must be contiguous and have at least one element."""
        return memoryview(array.view(np.uint8).reshape(-1))

    def concatenate(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(arrays)

    def take_rows(self, array: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return array[rows]

    def scaled(self, array: np.ndarray, scale: float) -> np.ndarray:
        if array.dtype == np.uint16:
            return float_to_bf16(bf16_to_float(array) * np.float32(scale))
        return (array * np.asarray(scale, array.dtype)).astype(array.dtype, copy=False)

    def batch(self, values: dict[str, Any]) -> dict[str, Any]:
        return values

    def to_float(self, array: np.ndarray) -> np.ndarray:
        return bf16_to_float(array) if array.dtype == np.uint16 else array.astype(np.float32)


class TorchArrays:
    """torch, from 1.13 on. In DataLoader's workers large batches lie in shared memory, so that
    handing them over copies nothing."""

    name = "torch"

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._types = {
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
            "float32": torch.float32,
            "float8_e4m3fn": torch.uint8,
            "int32": torch.int32,
            "int64": torch.int64,
            "uint8": torch.uint8,
            "bool": torch.bool,
        }

    def _in_worker(self) -> bool:
        return self._torch.utils.data.get_worker_info() is not None

    def _empty(self, shape: tuple[int, ...], kind: Any, element_bytes: int) -> Any:
        size = math.prod(shape) * element_bytes
        if size >= _HUGE_PAGES_BYTES_MIN:  # numpy asks the kernel for huge pages, torch does not.
            memory = np.empty(size, np.uint8)
            return self._torch.frombuffer(memory, dtype=kind).reshape(shape)
        return self._torch.empty(shape, dtype=kind)

    def empty(self, shape: Sequence[int], dtype: str) -> Any:
        return self._empty(tuple(shape), self._types[dtype], STORED_TYPES[dtype].itemsize)

    def empty_batch(self, shape: Sequence[int], dtype: Any) -> Any:
        shape, kind = tuple(shape), self._types[dtype] if isinstance(dtype, str) else dtype
        element_bytes = self._torch.empty(0, dtype=kind).element_size()
        if math.prod(shape) * element_bytes >= _SHARED_BYTES_MIN and self._in_worker():
            from . import _shared

            return _shared.empty(shape, kind, element_bytes)
        return self._empty(shape, kind, element_bytes)

    def from_numpy(self, array: np.ndarray) -> Any:
        tensor = self._torch.empty(array.shape, dtype=self._types[array.dtype.name])
        if array.size:
            self.bytes_of(tensor)[:] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        return tensor

    def bytes_of(self, array: Any) -> memoryview:
        return _decoder.writable_memory(array.data_ptr(), array.numel() * array.element_size())

    def concatenate(self, arrays: Sequence[Any]) -> Any:
        shape = (sum(len(array) for array in arrays), *arrays[0].shape[1:])
        return self._torch.cat(list(arrays), out=self.empty_batch(shape, arrays[0].dtype))

    def take_rows(self, array: Any, rows: np.ndarray) -> Any:
        out = self.empty_batch((len(rows), *array.shape[1:]), array.dtype)
        index = self.from_numpy(rows.astype(np.int64, copy=False))
        return self._torch.index_select(array, 0, index, out=out)

    def scaled(self, array: Any, scale: float) -> Any:
        return array.mul_(scale)

    def to_float(self, array: Any) -> Any:
        return array.float()

    def batch(self, values: dict[str, Any]) -> dict[str, Any]:
        """A batch, in a form that leaves a worker without a copy."""
        if not self._in_worker():
            return values
        from . import _shared

        return _shared.SharedBatch(values)


Arrays = NumpyArrays | TorchArrays
_arrays: dict[str, Arrays] = {}


def arrays_of(framework: str | None) -> Arrays:
    """@param framework  "torch", "numpy", or None: torch where it is installed."""
    if framework is None:
        framework = "torch" if importlib.util.find_spec("torch") else "numpy"
    if framework not in ("torch", "numpy"):
        raise ValueError(f"framework is 'torch' or 'numpy', not {framework!r}")
    if framework not in _arrays:
        _arrays[framework] = TorchArrays() if framework == "torch" else NumpyArrays()
    return _arrays[framework]


def arrays_like(values: Iterable[Any]) -> Arrays:
    """The framework that the first array among these belongs to."""
    for value in values:
        if isinstance(value, np.ndarray):
            return arrays_of("numpy")
        if hasattr(value, "data_ptr"):
            return arrays_of("torch")
    raise ValueError("there is no array among the values")


def bf16_to_float(bits: np.ndarray) -> np.ndarray:
    """uint16 bits of bfloat16 -> float32; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float_to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 -> uint16 bits of bfloat16, nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
