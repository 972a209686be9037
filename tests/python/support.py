"""Reading for tests: safetensors, golden files and stores, without any reader of ours.

Stores are read with zarr-python, so that what the tests accept is what other people's tools see.
"""

import json
import pathlib
import struct

import numpy as np
import zarr

from make_teacher import to_bf16

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
SAFETENSORS_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
                     "U8": "u1"}


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


def round_to(values, type_name):
    """float32 values rounded once to "f32", "f16" or "bf16", as float32."""
    if type_name == "bf16":
        return bf16_to_f32(to_bf16(values))
    if type_name == "f16":
        return values.astype(np.float16).astype(np.float32)
    return values


def golden_meta(family):
    return json.loads((GOLDEN / family / "meta.json").read_text())


def read_golden(family, type_name):
    """{capture: float32 [tokens, hidden]} under every name the golden file can give.

    See tests/golden/README.md for the names that are stored once or derived.
    """
    folder = GOLDEN / golden_meta(family).get("golden_of", family)
    stored = read_safetensors(folder / f"golden_{type_name}.safetensors")
    captures = {name: array.astype(np.float32) for name, array in stored.items()}
    resid = captures["embed"]
    for layer in range(sum(name.endswith("resid_post") for name in captures)):
        prefix = f"blocks.{layer}."
        captures[prefix + "resid_pre"] = resid
        if prefix + "attn_out" in captures and prefix + "resid_mid" not in captures:
            captures[prefix + "resid_mid"] = round_to(resid + captures[prefix + "attn_out"],
                                                      type_name)
        resid = captures[prefix + "resid_post"]
    captures["final.pre_norm"] = resid
    return captures


def relative_error_per_token(value, reference):
    """|value - reference| / |reference| for each row (L2 norms), float64 [tokens]."""
    value, reference = value.astype(np.float64), reference.astype(np.float64)
    return np.linalg.norm(value - reference, axis=1) / np.linalg.norm(reference, axis=1)


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

