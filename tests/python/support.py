"""Reading for tests: safetensors, golden files and stores, without any reader of ours.

Stores are read with zarr-python, so that what the tests accept is what other people's tools see.
"""

import json
import pathlib
import struct
import subprocess
import tempfile
import threading

import numpy as np
import zarr

from make_teacher import LlamaShape, write_checkpoint

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
SAFETENSORS_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
                     "U8": "u1", "BOOL": "?"}


def bf16_to_f32(bits):
    """uint16 bits of bf16 -> float32; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def read_safetensors(path, widen_bf16=True):
    """{name: array}; bf16 as float32, or as its uint16 bits when `widen_bf16` is false."""
    data = pathlib.Path(path).read_bytes()
    (header_bytes,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + header_bytes])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        begin, end = (8 + header_bytes + at for at in entry["data_offsets"])
        array = np.frombuffer(data[begin:end], SAFETENSORS_TYPES[entry["dtype"]])
        if entry["dtype"] == "BF16" and widen_bf16:
            array = bf16_to_f32(array)
        arrays[name] = array.reshape(entry["shape"])
    return arrays


def read_raw_tensors(path):
    """{name: (dtype, shape, bytes)} of a weight file, and its metadata."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {name: (entry["dtype"], entry["shape"],
                      data[8 + length + entry["data_offsets"][0]:8 + length + entry["data_offsets"][1]])
               for name, entry in header.items()}
    return tensors, metadata


def write_raw_tensors(path, tensors):
    """{name: (dtype, shape, bytes)} as one weight file."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(t[2] for t in tensors.values()))


def golden_meta(family):
    return json.loads((GOLDEN / family / "meta.json").read_text())


def read_golden(family):
    """{capture: float32 [tokens, hidden]} under every name the family's golden file can give.

    See tests/golden/README.md for the names that are stored once or derived.
    """
    meta = golden_meta(family)
    captures = read_safetensors(GOLDEN / meta.get("golden_of", family) / "golden_f32.safetensors")
    resid = captures["embed"]
    for layer in range(sum(name.endswith("resid_post") for name in captures)):
        prefix = f"blocks.{layer}."
        captures[prefix + "resid_pre"] = resid
        if prefix + "attn_out" in captures and meta["resid_mid"] == "sum":
            captures[prefix + "resid_mid"] = resid + captures[prefix + "attn_out"]
        resid = captures[prefix + "resid_post"]
    if "final.post_norm" in captures:
        captures["final.pre_norm"] = resid
    return captures


def relative_error_per_token(value, reference):
    """|value - reference| / |reference| for each row (L2 norms), float64 [tokens].

    0 where a row is equal, also if it is all zeros (a relu can close every channel).
    """
    value, reference = value.astype(np.float64), reference.astype(np.float64)
    difference, length = (np.linalg.norm(row, axis=1) for row in (value - reference, reference))
    return np.divide(difference, length, out=np.zeros_like(length), where=difference != 0)


def part_folders(store):
    """Folders of the store's complete parts, in order."""
    return sorted(path.parent for path in pathlib.Path(store).glob("part-*/zarr.json"))


def read_array(array):
    """A store's array as numpy; bf16 widened to float32, the other types as they are."""
    values = array[...]
    return bf16_to_f32(values) if array.attrs["dtype"] == "bfloat16" else values


def read_part(folder):
    """{name: array} of one part: every capture and alias, and tokens/input_ids etc."""
    group = zarr.open_group(folder, mode="r")
    arrays = {name: read_array(array) for name, array in group.arrays()}
    for name, target in group.attrs.get("aliases", {}).items():
        arrays[name] = arrays[target]
    for name, array in group["tokens"].arrays():
        arrays["tokens/" + name] = read_array(array)
    return arrays


def read_store(store):
    """Captures of all parts joined in sample order, and the parts' input_ids.

    Parts hold consecutive samples, so joining them by number restores the order of the input.
    """
    parts = [read_part(folder) for folder in part_folders(store)]
    assert parts, f"{store} has no complete part"
    names = [name for name in parts[0] if name == "tokens/input_ids" or "/" not in name]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def stored_types(store):
    """The attribute `dtype` of every capture array in the store, as a set."""
    types = set()
    for folder in part_folders(store):
        types |= {array.attrs["dtype"] for _, array in zarr.open_group(folder, mode="r").arrays()}
    return types


def layer_count(model_folder):
    return json.loads((pathlib.Path(model_folder) / "config.json").read_text())["num_hidden_layers"]


def safetensors_header(tensors):
    """{name: {"dtype", "shape", "data_offsets"}} for arrays one behind the other.

    The type is numpy's; uint16 arrays are taken as bf16 bits.
    """
    names = {np.dtype(code): name for name, code in SAFETENSORS_TYPES.items()}
    header, at = {}, 0
    for name, array in tensors.items():
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape),
                        "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    return header


def write_safetensors(path, tensors, header=None):
    """Write {name: array}; `header` (a dict, or JSON text as bytes) replaces the honest one."""
    if not isinstance(header, bytes):
        header = json.dumps(safetensors_header(tensors) if header is None else header).encode()
    data = b"".join(array.tobytes() for array in tensors.values())
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(header)) + header + data)


def token_arrays(samples, loss_mask=None):
    """The canonical tensors of a list of samples, each a list of ids."""
    offsets = np.cumsum([0] + [len(sample) for sample in samples])
    tensors = {"input_ids": np.array([i for s in samples for i in s], np.int32),
               "offsets": np.array(offsets, np.int64)}
    if loss_mask is not None:
        tensors["loss_mask"] = np.array(loss_mask, np.uint8)
    return tensors


def write_tokens(path, samples, loss_mask=None):
    """A canonical token file; returns its path."""
    write_safetensors(path, token_arrays(samples, loss_mask))
    return path


# Jobs that are interrupted, shared or repeated, and the comparison of what they leave.


def store_files(store):
    """{relative path: bytes} of everything below `store`, directories as None.

    Left out is what belongs to a run and not to the result: report.json and the store's own .lock.
    """
    store = pathlib.Path(store)
    return {path.relative_to(store).as_posix(): path.read_bytes() if path.is_file() else None
            for path in store.rglob("*")
            if path not in (store / "report.json", store / ".lock")}


def differing_files(store, other):
    """Names that only one of two stores has, or whose bytes differ: [] is what `diff -r` means."""
    one, two = store_files(store), store_files(other)
    return sorted(name for name in one.keys() | two.keys()
                  if name not in one or name not in two or one[name] != two[name])


class RaggedJob:
    """A job of 4 parts, 6 layers and 2 captures that takes a fraction of a second.

    Its samples are ragged: some of length 1, some across the border of a shard (32 rows), one
    longer than two shards. `replacement`/model has the shapes of `original`/model and other weights.
    """

    SAMPLE_LENGTHS = [30, 1, 5, 33, 20, 7, 90, 3, 31, 1, 40, 16, 12, 60, 2, 1]
    PART_TOKENS = 100
    PART_COUNT = 4
    SHAPE = LlamaShape(hidden=64, layers=6, ffn=128, heads=4, kv_heads=2, vocab=256)
    LAYERS = range(-1, 6)  # -1: the embedding
    GEOMETRY = ["--chunk-tokens", 16, "--shard-tokens", 32]
    CAPTURES = ["--capture", "resid_post@all,attn_out@all"]

    def __init__(self, folder):
        """Write both checkpoints and the tokens into `folder`."""
        self.folder = pathlib.Path(folder)
        self.original, self.replacement = self.folder / "original", self.folder / "replacement"
        for seed, parent in enumerate([self.original, self.replacement]):
            write_checkpoint(parent / "model", self.SHAPE, 3, seed)
        draw = np.random.default_rng(7)
        self.tokens = write_tokens(
            self.folder / "tokens.safetensors",
            [draw.integers(0, self.SHAPE.vocab, length).tolist() for length in self.SAMPLE_LENGTHS])

    def extract(self, model, store, *options, captures=CAPTURES, part_tokens=PART_TOKENS,
                host_memory="256MiB", threads=2):
        """Arguments of `librarian extract` for this job; None leaves the limit to the program."""
        limit = [] if host_memory is None else ["--host-memory", host_memory]
        return ["extract", model, "--tokens", self.tokens, "--out", store, *captures,
                "--part-tokens", part_tokens, *self.GEOMETRY, *limit, "--threads", threads,
                *options]


class Program:
    """A running program that prints one JSON event per line."""

    SECONDS_MAX = 60  # A program of these tests that needs longer hangs.

    def __init__(self, command):
        self._errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(list(map(str, command)), text=True,
                                        stdout=subprocess.PIPE, stderr=self._errors)
        self._changed = threading.Condition()  # re-entrant
        self._events = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            if line.endswith("\n"):  # Else a kill cut it short.
                with self._changed:
                    self._events.append(json.loads(line))
                    self._changed.notify_all()
        with self._changed:
            self._events.append(None)  # The end.
            self._changed.notify_all()

    def events(self, name):
        """The events of this name so far."""
        with self._changed:
            return [event for event in self._events if event and event["event"] == name]

    def wait_for(self, name, count=1):
        """Wait for the event to have come `count` times; False if the program ends before."""
        with self._changed:
            arrived = self._changed.wait_for(
                lambda: None in self._events or len(self.events(name)) >= count, self.SECONDS_MAX)
        assert arrived, f"{name} did not come"
        return len(self.events(name)) >= count

    def end(self, signal_number=None):
        """Wait for the end, after sending a signal if one is given; returns the exit code.

        That of a killed program is minus the signal's number.
        """
        if signal_number is not None:
            self.process.send_signal(signal_number)
        code = self.process.wait(self.SECONDS_MAX)
        self._reader.join()
        self.process.stdout.close()
        return code

    @property
    def stderr(self):
        """What it has said on standard error."""
        self._errors.seek(0)
        return self._errors.read()


class Journal:
    """What a part's journal says; what a kill cut off at its end is not there."""

    MAGIC = 0x314A424C
    HEAD, TAIL_BYTES = struct.Struct("<IIQI"), 4  # magic, payload bytes, sequence, CRC; CRC

    def __init__(self, path):
        data, at, self.records = pathlib.Path(path).read_bytes(), 0, []
        while len(data) - at >= self.HEAD.size + self.TAIL_BYTES:
            magic, payload_bytes, sequence, _ = self.HEAD.unpack_from(data, at)
            begin = at + self.HEAD.size
            at = begin + payload_bytes + self.TAIL_BYTES
            if at > len(data):
                break
            assert (magic, sequence) == (self.MAGIC, len(self.records)), path
            self.records.append(json.loads(data[begin : begin + payload_bytes]))

    def layers(self):
        """Layers with a record, in order."""
        return [record["layer"] for record in self.records if record["type"] == "layer"]

    def finished_layers(self, last_layer):
        """Those that are never computed again: up to the last one whose state is durable."""
        layers = [record for record in self.records if record["type"] == "layer"]
        while layers and layers[-1]["state"]["kind"] == "none" and layers[-1]["layer"] < last_layer:
            layers.pop()
        return [record["layer"] for record in layers]


def part_attributes(store, part):
    """Attributes of a complete part's group."""
    return json.loads((pathlib.Path(store) / f"part-{part:05d}/zarr.json").read_text())["attributes"]


def last_run(store):
    """What the last process to run the job reports of itself."""
    return json.loads((pathlib.Path(store) / "report.json").read_text())["runs"][-1]
