"""Files for torch.load, without torch: a zip of one pickle and one entry per tensor.

@source  pytorch torch/serialization.py (_save, _load) and caffe2/serialize/inline_container.cc: entries
         stored, in one folder, data aligned to 64 bytes; a tensor in the pickle is
         torch._utils._rebuild_tensor_v2(storage, 0, size, stride, False, OrderedDict()), its storage a
         persistent id ("storage", torch.<Type>Storage, entry, "cpu", elements).
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from typing import Any, BinaryIO, Mapping

import numpy as np

_FOLDER = "archive"
_ALIGNMENT_BYTES = 64
_LOCAL_HEADER_BYTES = 30
_STORAGES = {"bfloat16": "BFloat16Storage", "uint16": "BFloat16Storage", "float16": "HalfStorage",
             "float32": "FloatStorage", "int64": "LongStorage"}


def write_tensors(file: BinaryIO, tensors: Mapping[str, np.ndarray]) -> None:
    """What torch.save({name: tensor}) writes; uint16 and ml_dtypes' bfloat16 are torch.bfloat16."""
    pickled = pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.MARK
    for entry, (name, array) in enumerate(tensors.items()):
        pickled += _text(name) + _tensor(str(entry), array)
    _write(file, pickled + pickle.SETITEMS + pickle.STOP, list(tensors.values()))


def write_value(file: BinaryIO, value: Any) -> None:
    """What torch.save(value) writes of plain Python values."""
    _write(file, pickle.dumps(value, protocol=2), [])


def read_int64(path: str, entry: int) -> np.ndarray | None:
    """A tensor of int64 in a file of write_tensors(), flat; None if it is no such file."""
    try:
        with zipfile.ZipFile(path) as archive:
            data = archive.read(f"{_FOLDER}/data/{entry}")
    except (zipfile.BadZipFile, KeyError, EOFError):
        return None
    return np.frombuffer(data, np.int64) if len(data) % 8 == 0 else None


def _tensor(entry: str, array: np.ndarray) -> bytes:
    strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
    storage = (pickle.MARK + _text("storage") + _global("torch", _STORAGES[array.dtype.name])
               + _text(entry) + _text("cpu") + _int(array.size) + pickle.TUPLE + pickle.BINPERSID)
    return (_global("torch._utils", "_rebuild_tensor_v2") + pickle.MARK + storage + _int(0)
            + _ints(array.shape) + _ints(strides) + pickle.NEWFALSE
            + _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
            + pickle.TUPLE + pickle.REDUCE)


def _text(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _int(value: int) -> bytes:
    if value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    return pickle.LONG1 + b"\x08" + struct.pack("<q", value)


def _ints(values: Any) -> bytes:
    return pickle.MARK + b"".join(map(_int, values)) + pickle.TUPLE


def _write(file: BinaryIO, pickled: bytes, arrays: list[np.ndarray]) -> None:
    # allowZip64 is the default; the time is zip's first, so that equal content gives equal bytes.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, file, "data.pkl", pickled)
        _add(archive, file, "byteorder", b"little")
        for entry, array in enumerate(arrays):
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            _add(archive, file, f"data/{entry}", memoryview(data))
        _add(archive, file, "version", b"3\n")


def _add(archive: zipfile.ZipFile, file: BinaryIO, name: str, data: bytes | memoryview) -> None:
    entry = zipfile.ZipInfo(f"{_FOLDER}/{name}")
    at = file.tell() + _LOCAL_HEADER_BYTES + len(entry.filename) + 4
    entry.extra = struct.pack("<2sH", b"FB", -at % _ALIGNMENT_BYTES) + b"Z" * (-at % _ALIGNMENT_BYTES)
    archive.writestr(entry, data)
