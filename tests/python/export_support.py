"""What the tests of exports and of trainers share: jobs on golden models, and readers by the schema."""

import json
import pathlib
import pickle
import shutil
import zipfile

import numpy as np
import pytest

from support import GOLDEN, bf16_to_f32, golden_meta, read_safetensors, write_tokens

# Those whose final state after the norm transformers gives.
FAMILIES = sorted(path.parent.name for path in GOLDEN.glob("*/meta.json")
                  if "final.post_norm" in golden_meta(path.parent.name)["hidden_states"])
SAMPLE_LENGTHS = [9, 30, 17, 24, 5, 28, 12, 20, 1, 33]
NAN_TOKEN = 39  # Of the vocabulary of 40 ids; draft_job() uses it in no sample unless told to.
HIDDEN = ["blocks.0.resid_post", "blocks.1.resid_post"]


def export_main(*arguments):
    """Exit code of `librarian export ARGUMENTS`, in this process."""
    command = pytest.importorskip("nexus_librarian.export.command")
    return command.main([str(argument) for argument in arguments])


def draft_tokens(path, nan_samples=()):
    """A token file with a loss mask; returns its path. Samples in `nan_samples` hold NAN_TOKEN."""
    draw = np.random.default_rng(7)
    samples = [draw.integers(3, NAN_TOKEN, length).tolist() for length in SAMPLE_LENGTHS]
    for sample in nan_samples:
        samples[sample][-1] = NAN_TOKEN
    mask = np.concatenate([np.arange(length) >= length // 3 for length in SAMPLE_LENGTHS])
    return write_tokens(path, samples, mask.astype(np.uint8))


def model_with_nan(folder):
    """The golden llama with an embedding of NaN for NAN_TOKEN; returns its folder."""
    folder = pathlib.Path(shutil.copytree(GOLDEN / "llama/model", folder))
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    path = folder / index["model.embed_tokens.weight"]
    data = bytearray(path.read_bytes())
    header_bytes = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + header_bytes])["model.embed_tokens.weight"]
    row = 8 + header_bytes + entry["data_offsets"][0] + NAN_TOKEN * entry["shape"][1] * 2
    data[row : row + 2] = b"\xc0\x7f"
    path.write_bytes(data)
    return folder


def extract_draft_store(librarian, folder, tokens, *options, model=GOLDEN / "llama/model",
                        captures="resid_post@[0,1],final.pre_norm,final.post_norm"):
    """A store of the golden llama in several parts, as a draft model needs it; returns its path."""
    librarian("extract", model, "--tokens", tokens, "--out", folder, "--part-tokens", 64,
              "--capture", captures, *options)
    return folder


def read_hidden_states(folder, record):
    """(float32 [S, L + 1, d], token ids) of a record, by speculators' schema alone."""
    tensors = read_safetensors(pathlib.Path(folder) / f"hidden_states/hs_{record}.safetensors")
    assert set(tensors) == {"hidden_states", "token_ids"}
    assert tensors["hidden_states"].shape[0] == len(tensors["token_ids"])
    return tensors["hidden_states"], tensors["token_ids"]


class _TorchUnpickler(pickle.Unpickler):
    """Reads the pickle of a torch.save file as numpy; names anything else that it holds."""

    TYPES = {"BFloat16Storage": "<u2", "LongStorage": "<i8", "FloatStorage": "<f4"}

    def __init__(self, archive):
        super().__init__(archive.open("archive/data.pkl"))
        self._archive = archive

    def persistent_load(self, identity):
        kind, storage_type, entry, device, elements = identity
        assert (kind, device) == ("storage", "cpu")
        storage = np.frombuffer(self._archive.read(f"archive/data/{entry}"), self.TYPES[storage_type])
        assert len(storage) == elements
        return storage

    def find_class(self, module, name):
        if module == "torch":
            return name
        return {("torch._utils", "_rebuild_tensor_v2"): self._tensor,
                ("collections", "OrderedDict"): dict}[module, name]

    @staticmethod
    def _tensor(storage, offset, size, stride, requires_grad, hooks):
        assert not requires_grad and not hooks
        width = storage.itemsize
        return np.lib.stride_tricks.as_strided(storage[offset:], size, [s * width for s in stride])


def read_torch_file(path):
    """What torch.load gives, with numpy arrays (bfloat16 as bits), by the format alone."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED  # torch maps entries into memory.
        return _TorchUnpickler(archive).load()


def as_f32(values):
    """A sample's array of either framework, as float32 numpy."""
    if hasattr(values, "data_ptr"):
        return np.array(values.float().tolist(), np.float32).reshape(tuple(values.shape))
    if values.dtype.name == "bfloat16":
        values = values.view(np.uint16)
    return bf16_to_f32(values) if values.dtype == np.uint16 else values.astype(np.float32)


def folder_bytes(folder):
    """{relative path: bytes} of every file."""
    folder = pathlib.Path(folder)
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}
