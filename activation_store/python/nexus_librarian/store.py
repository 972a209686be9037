"""ActivationStore: samples of captures by name, from the parts of stores that are complete."""

from __future__ import annotations

import bisect
import json
import os
from collections import OrderedDict
from typing import Any, Iterable, NamedTuple, Sequence

import numpy as np

from . import _decoder
from ._arrays import STORED_TYPES, Arrays, arrays_of

Sample = dict[str, Any]
FP8 = "float8_e4m3fn"

_TOKEN_CACHE_BYTES_MAX = 256 << 20


class PartKey(NamedTuple):
    """One part of one of a store's directories."""

    store: int  # Index into ActivationStore.paths.
    part: int  # Its number in that directory.


class Origin(NamedTuple):
    """Where a sample comes from."""

    path: str  # The store's directory.
    part: int  # Number of the part.
    sample: int  # Number of the sample in that store's job, from 0.
    input_row: int  # Row of the input file it was made of.


class CaptureInfo(NamedTuple):
    """What an array of a part holds; see ActivationStore.capture_info()."""

    width: int  # Columns; 0 for one value per row.
    dtype: str  # "bfloat16", "float16", "float32" or "int32": what sample() gives.
    stored_dtype: str  # The same, or "float8_e4m3fn" with lossy["scales"] naming the scales' array.
    chunk_tokens: int
    shard_tokens: int
    rows: str | None  # Array of the rows that are kept, e.g. "tokens/rows_loss"; None: all.
    lossy: dict[str, Any] | None


class ActivationStore:
    """Read access to one store or to several, one after the other.

    Opening reads each job.json and nothing for a shard or part, so it takes milliseconds whatever the
    size. Complete parts of a job that still runs are there; refresh() finds those completed since.
    Everything read is checked (seals, CRC32C): a damaged or missing file raises DamagedStoreError with
    its name, never wrong or fill values. Starts no threads; may be used from several, pickled, and
    used after fork().

    Samples are numbered from 0 in the order of the jobs. While parts are missing, the numbers run over
    the complete ones, and refresh() appends: a number once given stays.
    """

    def __init__(self, path: str | os.PathLike | Sequence[str | os.PathLike], *,
                 framework: str | None = None) -> None:
        """
        @param path       A store's directory, or several.
        @param framework  "torch" or "numpy": what samples are made of. None: torch if installed.
                          numpy has no bfloat16: without ml_dtypes such arrays are uint16, same bits.
        @raise NotInStoreError    No store there. @raise DamagedStoreError | LaterFormatError
        """
        single = isinstance(path, (str, os.PathLike))
        self.paths: list[str] = [os.fspath(p) for p in ([path] if single else path)]
        if not self.paths:
            raise ValueError("no store was given: a path or a list of paths is needed")
        self._framework = framework
        self._keys: list[PartKey] = []
        self._first: list[int] = [0]  # First sample of each part, and the number of samples.
        self._lengths: np.ndarray | None = None
        self._open_jobs()
        self.refresh()

    def _open_jobs(self) -> None:
        self._jobs = [_Job(path) for path in self.paths]
        self._parts: dict[PartKey, Part] = {}
        self._cache = _TokenCache()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "framework": self._framework, "keys": self._keys,
                "identities": [job.identity_digest for job in self._jobs]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.paths, self._framework = state["paths"], state["framework"]
        self._keys, self._first, self._lengths = [], [0], None
        self._open_jobs()
        for job, identity in zip(self._jobs, state["identities"]):
            if job.identity_digest != identity:
                raise _decoder.StoreError(
                    f"{job.path}: another store lies there now; open it anew")
        self._append(state["keys"])

    def _append(self, keys: Iterable[PartKey]) -> None:
        for key in keys:
            self._keys.append(PartKey(*key))
            self._first.append(self._first[-1] + self._jobs[key[0]].partition[key[1]][1])

    @property
    def arrays(self) -> Arrays:
        """The framework that samples are made of."""
        return arrays_of(self._framework)

    def refresh(self) -> int:
        """Look for parts completed since; returns how many samples were added, at the end."""
        known, before = set(self._keys), len(self)
        self._append(PartKey(store, number)
                     for store, job in enumerate(self._jobs) for number in job.complete_parts()
                     if (store, number) not in known)
        if len(self) != before:
            self._lengths = None
        return len(self) - before

    @property
    def parts(self) -> list[PartKey]:
        """The complete parts that are in use, in the order of their samples."""
        return list(self._keys)

    @property
    def complete(self) -> bool:
        """True if every part of every job is there (as of the last refresh())."""
        return len(self._keys) == sum(len(job.partition) for job in self._jobs)

    @property
    def identities(self) -> list[str]:
        """Identity digest of each store, 64 hex digits: equal for equal jobs."""
        return [job.identity_digest for job in self._jobs]

    @property
    def samples(self) -> int:
        """Number of samples that can be read, as len()."""
        return self._first[-1]

    def __len__(self) -> int:
        return self._first[-1]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sample: int64 [samples]. For samplers that pack bins."""
        if self._lengths is None:
            parts = [self.part(key).lengths for key in self._keys]
            self._lengths = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        return self._lengths

    @property
    def captures(self) -> list[str]:
        """Names that were asked for and that every store has; empty while no part is complete."""
        firsts = {key.store: key for key in reversed(self._keys)}
        names = [self.part(firsts[store]).captures for store in sorted(firsts)]
        return [name for name in names[0] if all(name in other for other in names)] if names else []

    def capture_info(self, capture: str) -> dict[str, CaptureInfo]:
        """The arrays of a capture in the first complete part: {"": info}, or one for each member of
        a group such as logits.topk ("ids", "log_prob", ...)."""
        if not self._keys:
            raise _decoder.NotInStoreError(f"{', '.join(self.paths)}: no part is complete yet")
        part = self.part(self._keys[0])
        return {member: part.info(array) for member, array in part.members(capture).items()}

    def part(self, key: PartKey) -> Part:
        """A complete part, opened when it is first asked for."""
        if self._process != os.getpid():  # After fork() nothing of the parent's is used.
            self._open_jobs()
        part = self._parts.get(key)
        if part is None:
            part = self._parts[key] = Part(self._jobs[key.store], key.part, self._cache)
        return part

    def locate(self, sample: int) -> tuple[PartKey, int]:
        """The part of a sample and its place in that part; negative numbers count from the end."""
        if not -len(self) <= sample < len(self):
            raise IndexError(f"{', '.join(self.paths)}: no sample {sample}; there are {len(self)}"
                             + ("" if self.complete else " in the parts that are complete"))
        sample %= len(self)
        at = bisect.bisect_right(self._first, sample) - 1
        return self._keys[at], sample - self._first[at]

    def sample(self, sample: int, captures: Sequence[str] | None = None, *,
               raw: bool = False) -> Sample:
        """One sample.

        @param captures  Names, aliases or arrays; None: all of .captures.
        @param raw       fp8 arrays as stored, uint8 [rows, width] with `<capture>.scales` float32
                         [rows], instead of dequantised.
        @return  {capture: [tokens, width]; a group such as logits.topk gives a dict of arrays;
                 "<capture>.rows": int64 [rows], positions in the sample, where only some are kept;
                 "input_ids": int64 [tokens]; "loss_mask": bool [tokens] if the job had one}
        @raise NotInStoreError   No such capture. @raise DamagedStoreError
        """
        key, place = self.locate(sample)
        names = self.captures if captures is None else captures
        return self.part(key).sample(place, names, self.arrays, raw)

    def origin(self, sample: int) -> Origin:
        """Where a sample comes from."""
        key, place = self.locate(sample)
        job, part = self._jobs[key.store], self.part(key)
        return Origin(job.path, key.part, job.partition[key.part][0] + place,
                      int(part.tokens("sample_index")[place]))

    def __repr__(self) -> str:
        paths = ", ".join(self.paths)
        return f"ActivationStore({paths!r}: {len(self)} samples in {len(self._keys)} parts)"


class _Job:
    """One store's job.json."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._native = _decoder.open_job(path)
        facts = json.loads(self._native.facts())
        self.identity_digest: str = facts["identity_digest"]
        # What the model computed in, and so what fp8 rows become.
        self.compute_type: str = {"f32": "float32", "f16": "float16"}.get(
            facts["identity"].get("dtype"), "bfloat16")
        self.partition: list[list[int]] = facts["parts"]  # [first sample, samples, tokens] each
        self.complete_parts = self._native.complete_parts
        self.open_part = self._native.open_part


class _TokenCache:
    """Token arrays of the parts used last, up to a number of bytes."""

    def __init__(self) -> None:
        self._arrays: OrderedDict[tuple[int, str], np.ndarray] = OrderedDict()
        self._bytes = 0

    def get(self, part: Part, name: str) -> np.ndarray:
        key = (id(part), name)  # Parts live as long as the store, and so the cache.
        array = self._arrays.pop(key, None)
        if array is None:
            array = part.read_tokens(name)
            self._bytes += array.nbytes
        self._arrays[key] = array
        while self._bytes > _TOKEN_CACHE_BYTES_MAX and len(self._arrays) > 1:
            self._bytes -= self._arrays.popitem(last=False)[1].nbytes
        return array


class Part:
    """One complete part. Rows are counted in the part, samples too, from 0."""

    def __init__(self, job: _Job, number: int, cache: _TokenCache) -> None:
        self._native = job.open_part(number)
        self._where = f"{job.path}: part {number}"
        self._cache = cache
        facts = json.loads(self._native.facts())
        self.captures: list[str] = facts["captures"]
        self._aliases: dict[str, str] = facts["aliases"]
        self._groups: dict[str, dict[str, str]] = facts["groups"]
        self._compute_type = job.compute_type
        self._arrays: dict[str, dict[str, Any]] = facts["arrays"]
        self._infos: dict[str, CaptureInfo] = {}
        self.has_loss_mask = "tokens/loss_mask" in self._arrays
        self.offsets = self.read_tokens("offsets")  # int64 [samples + 1]
        self.lengths = np.diff(self.offsets)

    def read_tokens(self, name: str) -> np.ndarray:
        dtype = self._arrays.get("tokens/" + name, {"dtype": "uint8"})["dtype"]
        return np.frombuffer(self._native.tokens(name), STORED_TYPES[dtype])

    def tokens(self, name: str) -> np.ndarray:
        """tokens/<name> of the whole part."""
        return self._cache.get(self, name)

    def members(self, capture: str) -> dict[str, str]:
        """{"": array} of a capture, or {member: array} of a group."""
        if capture in self._groups:
            return self._groups[capture]
        array = self._aliases.get(capture, capture)
        if array not in self._arrays or array.startswith("tokens/"):
            raise _decoder.NotInStoreError(
                f"{self._where} has no capture {capture!r}; it has {', '.join(self.captures)}")
        return {"": array}

    def info(self, array: str) -> CaptureInfo:
        if array not in self._infos:
            facts = json.loads(self._native.array_facts(array))
            stored = facts["dtype"]
            self._infos[array] = CaptureInfo(
                facts["width"], self._compute_type if stored == FP8 else stored, stored,
                facts["chunk_tokens"], facts["shard_tokens"], facts["rows_array"], facts["lossy"])
        return self._infos[array]

    def rows_name(self, capture: str) -> str | None:
        """Name of the token array with the rows that a capture keeps; None: it keeps all."""
        name = self.info(next(iter(self.members(capture).values()))).rows
        return None if name is None else name.removeprefix("tokens/")

    def kept(self, capture: str) -> np.ndarray | None:
        """int64 [rows]: the rows in the part that a capture keeps, rising; None: all."""
        name = self.rows_name(capture)
        return None if name is None else self.tokens(name)

    def row_range(self, capture: str, place: int) -> tuple[int, int]:
        """Rows of a capture's arrays that hold a sample."""
        begin, end = int(self.offsets[place]), int(self.offsets[place + 1])
        kept = self.kept(capture)
        return (begin, end) if kept is None else tuple(np.searchsorted(kept, (begin, end)).tolist())

    def empty(self, array: str, rows: int, arrays: Arrays, raw: bool = False) -> Any:
        """Room for rows of an array, as read_into() fills it."""
        info = self.info(array)
        return arrays.empty((rows, info.width) if info.width else (rows,),
                            info.stored_dtype if raw else info.dtype)

    def read_into(self, array: str, begin: int, end: int, into: Any, at: int, arrays: Arrays,
                  raw: bool = False) -> None:
        """Rows [begin, end) of an array into rows from `at` on of what empty() gave."""
        if end <= begin:
            return
        memory, info = arrays.bytes_of(into), self.info(array)
        row_bytes = len(memory) // len(into)
        memory = memory[at * row_bytes : (at + end - begin) * row_bytes]
        if info.stored_dtype == FP8 and not raw:
            self._native.read_dequantised(array, begin, end, info.dtype, memory)
        else:
            self._native.read_rows(array, begin, end, memory)

    def read(self, array: str, begin: int, end: int, arrays: Arrays, raw: bool = False) -> Any:
        """Rows [begin, end) of an array."""
        values = self.empty(array, end - begin, arrays, raw)
        self.read_into(array, begin, end, values, 0, arrays, raw)
        return values

    def sample(self, place: int, captures: Iterable[str], arrays: Arrays,
               raw: bool = False) -> Sample:
        """See ActivationStore.sample()."""
        begin, end = int(self.offsets[place]), int(self.offsets[place + 1])
        sample: Sample = {}
        for capture in captures:
            first, last = self.row_range(capture, place)
            kept = self.kept(capture)
            if kept is not None:
                sample[capture + ".rows"] = arrays.from_numpy(kept[first:last] - begin)
            values = {}
            for member, array in self.members(capture).items():
                values[member] = self.read(array, first, last, arrays, raw)
                lossy = self.info(array).lossy or {}
                if raw and "scales" in lossy:
                    sample[capture + ".scales"] = self.read(lossy["scales"], first, last, arrays)
            sample[capture] = values.get("", values)
        sample["input_ids"] = arrays.from_numpy(
            self.tokens("input_ids")[begin:end].astype(np.int64))
        if self.has_loss_mask:
            sample["loss_mask"] = arrays.from_numpy(
                self.tokens("loss_mask")[begin:end].astype(np.bool_))
        return sample
