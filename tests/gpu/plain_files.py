"""Reading and writing for the GPU checks with Python's standard library alone.

The machine with the GPU may have nothing else. Stores are read in the form that `--codec none` gives
them (activation_store/FORMAT.md); their checksums are what `librarian verify` is for.
"""

import array
import json
import pathlib
import random
import struct

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CRC_BYTES = 4
# Every tensor of a random checkpoint is a run of one block, whose length is prime: no two rows of a
# matrix are equal.
BLOCK_VALUES = 262139
WEIGHT_SCALE = 0.03


def floats(data, dtype):
    """The values of little-endian bytes."""
    if dtype == "float16":
        return array.array("f", struct.unpack(f"<{len(data) // 2}e", data))
    if dtype == "bfloat16":
        data = array.array("I", (bits << 16 for bits in array.array("H", data))).tobytes()
    return array.array("f", data)


def rows_of(values, width):
    return [values[at : at + width] for at in range(0, len(values), width)]


def read_f32_safetensors(path):
    """{name: rows} of a file of float32 matrices."""
    data = pathlib.Path(path).read_bytes()
    (header_bytes,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + header_bytes])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + header_bytes + at for at in entry["data_offsets"])
        assert entry["dtype"] == "F32", (path, name)
        tensors[name] = rows_of(floats(data[begin:end], "float32"), entry["shape"][1])
    return tensors


def read_array(folder):
    """(rows, dtype) of one capture of a part."""
    meta = json.loads((folder / "zarr.json").read_text())
    count, width = meta["shape"]
    dtype = meta["attributes"]["dtype"]
    shard_rows = meta["chunk_grid"]["configuration"]["chunk_shape"][0]
    sharding = meta["codecs"][0]["configuration"]
    assert [codec["name"] for codec in sharding["codecs"]] == ["bytes", "crc32c"], folder
    chunk_rows = sharding["chunk_shape"][0]
    chunk_bytes = chunk_rows * width * ELEMENT_BYTES[dtype]
    data = b""
    for shard in range(-(-count // shard_rows)):
        stored = (folder / f"c/{shard}/0").read_bytes()
        chunks = -(-min(shard_rows, count - shard * shard_rows) // chunk_rows)
        for at in range(0, chunks * (chunk_bytes + CRC_BYTES), chunk_bytes + CRC_BYTES):
            data += stored[at : at + chunk_bytes]
    return rows_of(floats(data[: count * width * ELEMENT_BYTES[dtype]], dtype), width), dtype


def read_store(store):
    """({capture or alias: rows of all parts in order}, the set of stored types)."""
    captures, types = {}, set()
    for group in sorted(pathlib.Path(store).glob("part-*/zarr.json")):
        attributes = json.loads(group.read_text())["attributes"]
        of_part = {}
        for folder in sorted(path.parent for path in group.parent.glob("*/zarr.json")):
            if folder.name != "tokens":
                of_part[folder.name], dtype = read_array(folder)
                types.add(dtype)
        for name, target in attributes.get("aliases", {}).items():
            of_part[name] = of_part[target]
        for name, rows in of_part.items():
            captures.setdefault(name, []).extend(rows)
    return captures, types


def store_files(store):
    """{relative path: bytes} of what is the result, and not of one run (report.json, .lock)."""
    store = pathlib.Path(store)
    return {path.relative_to(store).as_posix(): path.read_bytes()
            for path in store.rglob("*")
            if path.is_file() and path not in (store / "report.json", store / ".lock")}


def differing_files(store, other):
    """Names that only one of two stores has, or whose bytes differ."""
    one, two = store_files(store), store_files(other)
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


def write_safetensors(path, tensors):
    """Write [(name, type, shape, pieces of bytes)]."""
    header, at = {}, 0
    for name, dtype, shape, pieces in tensors:
        size = sum(map(len, pieces))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, _, pieces in tensors:
            for piece in pieces:
                file.write(piece)


def random_bf16(seed, scale, centre):
    """A block of random bf16 values, as bytes."""
    draw = random.Random(seed)
    values = array.array("f", (centre + scale * draw.uniform(-1, 1) for _ in range(BLOCK_VALUES)))
    return array.array("H", (bits >> 16 for bits in array.array("I", values.tobytes()))).tobytes()


def write_random_llama(folder, *, hidden, layers, ffn, heads, kv_heads, vocab, seed=0):
    """Write a Llama checkpoint of random weights in bf16, quickly."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    head_dim = hidden // heads
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "num_hidden_layers": layers, "intermediate_size": ffn, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head_dim, "vocab_size": vocab,
        "max_position_embeddings": 8192, "hidden_act": "silu", "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0, "rope_scaling": None, "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    shapes = [("model.embed_tokens.weight", (vocab, hidden))]
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes += [(prefix + name + ".weight", shape) for name, shape in (
            ("input_layernorm", (hidden,)),
            ("self_attn.q_proj", (heads * head_dim, hidden)),
            ("self_attn.k_proj", (kv_heads * head_dim, hidden)),
            ("self_attn.v_proj", (kv_heads * head_dim, hidden)),
            ("self_attn.o_proj", (hidden, heads * head_dim)),
            ("post_attention_layernorm", (hidden,)),
            ("mlp.gate_proj", (ffn, hidden)),
            ("mlp.up_proj", (ffn, hidden)),
            ("mlp.down_proj", (hidden, ffn)))]
    shapes += [("model.norm.weight", (hidden,)), ("lm_head.weight", (vocab, hidden))]
    blocks = {1: random_bf16(seed, 0.05, 1.0), 2: random_bf16(seed + 1, WEIGHT_SCALE, 0.0)}
    tensors = []
    for number, (name, shape) in enumerate(shapes):
        block = memoryview(blocks[len(shape)])
        size, begin = 2, 2 * (number * 7919 % BLOCK_VALUES)
        for length in shape:
            size *= length
        pieces = []
        while size > 0:
            pieces.append(block[begin : begin + size])
            size, begin = size - len(pieces[-1]), 0
        tensors.append((name, "BF16", list(shape), pieces))
    write_safetensors(folder / "model.safetensors", tensors)


def write_tokens(path, lengths, vocab, seed=0):
    """Write a token file with samples of these lengths."""
    draw = random.Random(seed)
    ids = array.array("i", (draw.randrange(vocab) for _ in range(sum(lengths))))
    offsets = array.array("q", [sum(lengths[:i]) for i in range(len(lengths) + 1)])
    write_safetensors(path, [("input_ids", "I32", [len(ids)], [ids.tobytes()]),
                             ("offsets", "I64", [len(offsets)], [offsets.tobytes()])])
