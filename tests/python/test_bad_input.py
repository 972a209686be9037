"""Input that is not what it claims to be: refused in one line that names it, nothing left behind.

Goal: whatever a stranger's checkpoint, token file or command line says, the program answers with
the documented exit code and one printable line that names the file, key or row; no part looks
finished afterwards. Servers that misbehave have their own file, test_bad_servers.py.
Method: tables of one change each to a golden checkpoint or a token file that works otherwise. The
`refused` fixture checks what all rows have in common.
"""

import json
import shutil
import struct

import numpy as np
import pytest

from support import (
    GOLDEN, read_safetensors, safetensors_header, token_arrays, write_safetensors, write_tokens)

BAD_INPUT, USAGE, BUSY, DOES_NOT_FIT = 3, 2, 4, 5
TOKENS = GOLDEN / "llama" / "tokens.safetensors"
EMBEDDING = "model.embed_tokens.weight"
VOCABULARY = 40


def cases(table):
    """Parameters of a test from {sentence: (change, words...)}."""
    return pytest.mark.parametrize(
        "change,words", [pytest.param(row[0], row[1:], id=name) for name, row in table.items()])


@pytest.fixture
def model(tmp_path):
    """A checkpoint of three weight files with an index."""
    return shutil.copytree(GOLDEN / "llama" / "model", tmp_path / "model")


@pytest.fixture
def one_file_model(tmp_path):
    """A checkpoint of one weight file without an index."""
    return shutil.copytree(GOLDEN / "llama_tf5" / "model", tmp_path / "model")


def extract(folder, tokens=TOKENS):
    return "extract", folder, "--tokens", tokens, "--out", folder.parent / "store"


# Weight files: a change maps the file's bytes to others.


def file_of(header, data, header_bytes=None):
    if isinstance(header, dict):
        header = json.dumps(header).encode()
    length = len(header) if header_bytes is None else header_bytes
    return struct.pack("<Q", length) + header + data


def parts_of(file):
    (header_bytes,) = struct.unpack_from("<Q", file)
    return file[8 : 8 + header_bytes], file[8 + header_bytes :]


def edited(edit):
    """The header as a dict goes through `edit`, which changes it in place."""

    def change(file):
        text, data = parts_of(file)
        header = json.loads(text)
        edit(header)
        return file_of(header, data)

    return change


def rewritten(rewrite):
    """The header's text goes through `rewrite`."""

    def change(file):
        text, data = parts_of(file)
        return file_of(rewrite(text.strip()), data)

    return change


def embedding(**fields):
    """Other fields in the embedding's entry."""
    return edited(lambda header: header[EMBEDDING].update(fields))


def renamed(name):
    return edited(lambda header: header.update({name: header.pop(EMBEDDING)}))


def shifted(begin, end):
    """The last tensor's place moves by so many bytes."""

    def edit(header):
        header.pop("__metadata__", None)
        last = max(header.values(), key=lambda entry: entry["data_offsets"])
        last["data_offsets"] = [last["data_offsets"][0] + begin, last["data_offsets"][1] + end]
        last["shape"] = [(last["data_offsets"][1] - last["data_offsets"][0]) // 2]

    return edited(edit)


def first_entry_twice(text):
    return text.replace(b"{", b'{"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
                        b'"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},', 1)


BROKEN_WEIGHT_FILES = {
    "an empty file": (lambda file: b"",),
    "a file of one byte": (lambda file: file[:1],),
    "no header at all": (lambda file: file[:9],),
    "half a length": (lambda file: file[:7],),
    "a length and nothing else": (lambda file: file[:8],),
    "a length of 2^64 - 1": (lambda file: b"\xff" * 8 + file[8:], str(2**64 - 1)),
    "a length of 2^63": (lambda file: struct.pack("<Q", 1 << 63) + file[8:], str(1 << 63)),
    "a length of 100 MB and one byte": (
        lambda file: struct.pack("<Q", 100_000_001) + file[8:], "100000001"),
    "a length of 0": (lambda file: bytes(8) + file[8:], "claims 0 bytes"),
    "a length one byte beyond the file": (
        lambda file: struct.pack("<Q", len(file) - 7) + file[8:], "in a file of"),
    "a file that ends in its header": (lambda file: file[:100],),
    "a file that ends behind its header": (
        lambda file: file[: 8 + len(parts_of(file)[0])], "of 0"),
    "a file that is a byte short": (lambda file: file[:-1], "tensor '"),
    "a file with a byte too many": (lambda file: file + b"\0", "bytes of data"),
    "a header that is not JSON": (rewritten(lambda text: text.replace(b":", b"=", 1)), "syntax"),
    "a header that is cut off": (rewritten(lambda text: text[:-1] + b" "),),
    "a header that is a list": (rewritten(lambda text: b"[" + text + b"]"), "JSON object"),
    "a header behind a space": (rewritten(lambda text: b" " + text), "JSON object"),
    "a header behind a byte order mark": (rewritten(lambda text: b"\xef\xbb\xbf" + text),),
    "a header padded with newlines": (rewritten(lambda text: text + b"\n\n"), "JSON object"),
    "a header padded with zeros": (rewritten(lambda text: text + bytes(4)), "JSON object"),
    "a header that goes on behind a zero": (
        rewritten(lambda text: text + b'\0, "unseen": 1}'), "JSON object"),
    "two headers": (rewritten(lambda text: text + b"{}"), "syntax"),
    "an empty header": (rewritten(lambda text: b"{}"),),
    "invalid UTF-8 in a name": (rewritten(lambda text: text.replace(b"model.e", b"\xff\xfe", 1)),),
    "a tensor named twice": (rewritten(first_entry_twice), "second entry", "'x'"),
    "a field given twice": (rewritten(lambda text: text.replace(
        b'"dtype"', b'"dtype": "BF16", "dtype"', 1)), "repeated field", "dtype"),
    "an unknown field": (embedding(order="C"), "order", EMBEDDING),
    "no dtype": (edited(lambda header: header[EMBEDDING].pop("dtype")), EMBEDDING),
    "no shape": (edited(lambda header: header[EMBEDDING].pop("shape")), EMBEDDING),
    "no place": (edited(lambda header: header[EMBEDDING].pop("data_offsets")), EMBEDDING),
    "a name with a newline": (renamed("a\nb"), "not printable"),
    "a name with an escape character": (renamed("\x1b[2J"), "not printable"),
    "a name that is not ASCII": (renamed("modèl"), "not printable"),
    "a name with a zero": (renamed("a\0b"), "not printable"),
    "an empty name": (renamed(""), "empty"),
    "a name of 513 bytes": (renamed("n" * 513), "too long"),
    "an unknown dtype": (embedding(dtype="F7"), "F7", EMBEDDING),
    "a dtype with a newline": (embedding(dtype="B\nF"), EMBEDDING),
    "a dtype that is a number": (embedding(dtype=16), EMBEDDING),
    "a wider dtype than its bytes": (embedding(dtype="F32"), EMBEDDING),
    "a shape of floating point numbers": (embedding(shape=[40.0, 64.0]), "40.0", EMBEDDING),
    "a negative shape": (embedding(shape=[-40, -64]), "negative", EMBEDDING),
    "a shape that overflows": (embedding(shape=[1 << 33, 1 << 33]), "overflow", EMBEDDING),
    "a shape above 2^64": (embedding(shape=[1 << 65]), EMBEDDING),
    "a shape of nine dimensions": (embedding(shape=[1] * 9), "8 dimensions", EMBEDDING),
    "a shape that is nested": (embedding(shape=[[40, 64]]), EMBEDDING),
    "a shape that is null": (embedding(shape=None), EMBEDDING),
    "a place of three numbers": (embedding(data_offsets=[0, 1, 2]), EMBEDDING),
    "a place of one number": (embedding(data_offsets=[0]), EMBEDDING),
    "a place that goes backwards": (embedding(data_offsets=[5120, 0]), EMBEDDING),
    "a place in scientific notation": (rewritten(lambda text: text.replace(
        b'"data_offsets":[0', b'"data_offsets":[0e1', 1)), "0e1"),
    "an overlap": (shifted(-2, -2), "where the tensor before it ends"),
    "a hole": (shifted(2, 2), "where the tensor before it ends"),
    "a tensor beyond the end": (shifted(0, 2), "where the tensor before it ends"),
    "bytes that no tensor covers": (shifted(0, -2), "bytes of data"),
    "an entry that is a list": (edited(lambda header: header.update({EMBEDDING: []})),),
    "an entry that is null": (edited(lambda header: header.update({EMBEDDING: None})),),
    "nesting without end": (rewritten(lambda text: b'{"a":' * 50_000 + b"1" + b"}" * 50_000),),
    "lists without end": (rewritten(lambda text: b'{"a":' + b"[" * 99_999 + b"}"),),
    "metadata that is nested": (edited(lambda header: header.update(
        __metadata__={"format": {"a": "b"}})), "out of place"),
    "metadata that is a number": (edited(lambda header: header.update(__metadata__={"n": 1})),),
    "a Git LFS pointer": (
        lambda file: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "Git LFS pointer"),
    "a web page": (lambda file: b"<!doctype html><title>Sign in</title>", "web page"),
    "a pickle": (lambda file: b"PK\x03\x04" + bytes(100),),
}


@cases(BROKEN_WEIGHT_FILES)
def test_a_broken_weight_file_is_refused(change, words, one_file_model, refused):
    path = one_file_model / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))
    refused(*extract(one_file_model), exit_code=BAD_INPUT, names=[path, *words])


def test_a_header_of_100_mb_is_refused_without_reading_it_twice(one_file_model, refused):
    """A sparse file whose header is the largest that is allowed, and zeros."""
    path = one_file_model / "model.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 100_000_000) + b"{")
        file.truncate(200_000_000)
    refused(*extract(one_file_model), exit_code=BAD_INPUT, names=[path, "JSON object"])


# Tensors: a change maps {name: array} to others. bf16 arrays are uint16.


def without(name):
    return lambda tensors: tensors.pop(name)


def also(name, array):
    return lambda tensors: tensors.update({name: array})


def instead(name, make):
    return lambda tensors: tensors.update({name: make(tensors[name])})


def rename(old, new):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


QUERY = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.layers.2.input_layernorm.weight"
WRONG_TENSORS = {
    "no embedding": (without(EMBEDDING), EMBEDDING, "missing"),
    "no final norm": (without("model.norm.weight"), "model.norm.weight", "missing"),
    "a layer without its queries": (without(QUERY), QUERY, "missing"),
    "a layer without its norm": (without(NORM), NORM, "missing"),
    "a tensor nobody knows": (
        also("model.layers.0.mlp.router.weight", np.zeros(4, np.uint16)), "mlp.router"),
    "a bias the config does not have": (
        also("model.layers.0.self_attn.q_proj.bias", np.zeros(64, np.uint16)), "q_proj.bias"),
    "a layer number with a leading zero": (
        rename(QUERY, QUERY.replace(".1.", ".01.")), "layers.01."),
    "a negative layer number": (rename(QUERY, QUERY.replace(".1.", ".-1.")), "layers.-1."),
    "a layer number beyond 2^31": (
        rename(QUERY, QUERY.replace(".1.", ".4294967297.")), "layers.4294967297."),
    "transposed queries": (
        instead("model.layers.0.mlp.up_proj.weight", np.transpose), "[64, 28]", "[28, 64]"),
    "flattened queries": (instead(QUERY, np.ravel), QUERY, "[4096]", "[64, 64]"),
    "an empty tensor": (instead(NORM, lambda array: array[:0]), NORM, "[0]"),
    "an embedding with a row missing": (
        instead(EMBEDDING, lambda array: array[:-1]), EMBEDDING, "[39, 64]"),
    "weights of eight bits": (instead(QUERY, lambda array: array.astype(np.uint8)), QUERY, "U8"),
    "weights of 64 bits": (instead(QUERY, lambda array: array.astype(np.int64)), QUERY, "I64"),
}


@cases(WRONG_TENSORS)
def test_tensors_that_do_not_make_the_model_are_refused(change, words, one_file_model, refused):
    path = one_file_model / "model.safetensors"
    tensors = read_safetensors(path, widen_bf16=False)
    change(tensors)
    write_safetensors(path, tensors)
    refused(*extract(one_file_model), exit_code=BAD_INPUT, names=[one_file_model, *words])


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I8"])
def test_weights_of_an_unsupported_dtype_are_refused(dtype, one_file_model, refused):
    path = one_file_model / "model.safetensors"
    tensors = read_safetensors(path, widen_bf16=False)
    tensors[QUERY] = tensors[QUERY].astype(np.uint8)
    header = safetensors_header(tensors)
    header[QUERY]["dtype"] = dtype
    write_safetensors(path, tensors, header)
    refused(*extract(one_file_model), exit_code=BAD_INPUT, names=[path, QUERY, dtype])


# The index: a change maps the document to another one, or to text.

SECOND_FILE = "model-00002-of-00003.safetensors"


def sends(file):
    """The index sends one tensor to this file."""
    return lambda index: index["weight_map"].update({QUERY: file})


WRONG_INDEXES = {
    "an empty document": (lambda index: "",),
    "a list": (lambda index: [], "JSON object"),
    "half a document": (lambda index: json.dumps(index)[:-10], "syntax"),
    "no weight_map": (lambda index: index.pop("weight_map"), "weight_map"),
    "an empty weight_map": (lambda index: index["weight_map"].clear(), "weight_map"),
    "a weight_map that is a list": (lambda index: index.update(weight_map=[]), "weight_map"),
    "a file that is a number": (sends(2), QUERY, "plain name"),
    "a tensor twice": (
        lambda index: json.dumps(index).replace(f'"{QUERY}"', f'"{QUERY}": "a", "{QUERY}"'), QUERY,
        "twice"),
    "weight_map twice": (
        lambda index: '{"weight_map": {},' + json.dumps(index)[1:], "weight_map", "twice"),
    "a file above": (sends("../model.safetensors"), QUERY, "../model.safetensors"),
    "an absolute path": (sends("/etc/model.safetensors"), QUERY, "/etc/"),
    "a path through a directory": (sends("sub/model.safetensors"), QUERY, "sub/"),
    "a backslash": (sends("..\\model.safetensors"), QUERY, "plain name"),
    "a zero in a name": (sends("a\0.safetensors"), QUERY, "plain name"),
    "a name that is not ASCII": (sends("modèl.safetensors"), QUERY, "plain name"),
    "a URL": (sends("http://example.com/model.safetensors"), QUERY, "plain name"),
    "a query": (sends("model.safetensors?x=.safetensors"), QUERY, "plain name"),
    "an escaped slash": (sends("..%2fmodel.safetensors"), QUERY, "plain name"),
    "a hidden file": (sends(".model.safetensors"), QUERY, "plain name"),
    "a pickle": (sends("pytorch_model.bin"), QUERY, "pytorch_model.bin"),
    "a file name of 300 bytes": (sends("n" * 288 + ".safetensors"), QUERY, "plain name"),
    "a file that is not there": (
        lambda index: index["weight_map"].update(ghost="model-00000-of-00003.safetensors"),
        "model-00000-of-00003.safetensors", "not there"),
    "a tensor in another file than it says": (
        sends("model-00003-of-00003.safetensors"), QUERY),
    "a tensor that no file has": (
        lambda index: index["weight_map"].update(ghost=SECOND_FILE), "ghost", SECOND_FILE),
    "a tensor left out": (lambda index: index["weight_map"].pop(QUERY), QUERY, "not expect"),
    "a newline in a tensor's name": (
        lambda index: index["weight_map"].update({"a\nlibrarian: all is well": "../x"}),),
    "an escape character in a tensor's name": (
        lambda index: index["weight_map"].update({"\x1b[2J": "../x"}),),
    "a ghost with a newline in its name": (
        lambda index: index["weight_map"].update({"a\nb": SECOND_FILE}),),
}


@cases(WRONG_INDEXES)
def test_a_wrong_index_is_refused(change, words, model, refused):
    path = model / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    changed = change(index)
    if isinstance(changed, list):
        index, changed = changed, None
    path.write_text(changed if isinstance(changed, str) and changed[:1] in ("", "{")
                    else json.dumps(index))
    refused(*extract(model), exit_code=BAD_INPUT, names=[model, *words])


# config.json: a change maps the document to another one, or to text.


def with_keys(**keys):
    return lambda config: config.update(keys)


def without_key(key):
    return lambda config: config.pop(key)


def rope(**keys):
    """Llama 3's rope with other keys."""
    return lambda config: config["rope_scaling"].update(keys)


WRONG_CONFIGS = {
    "an empty document": (lambda config: "",),
    "a list": (lambda config: "[]", "JSON object"),
    "half a document": (lambda config: json.dumps(config)[:-1] + " ", "syntax"),
    "something behind it": (lambda config: json.dumps(config) + "{}", "syntax"),
    "something behind a zero": (lambda config: json.dumps(config) + "\0{}", "NUL"),
    "a key twice": (lambda config: '{"hidden_size": 64,' + json.dumps(config)[1:], "hidden_size"),
    "deep nesting": (lambda config: '{"a":' * 5000 + "1" + "}" * 5000, "nesting"),
    "invalid UTF-8": (lambda config: b'{"model_type": "\xff\xfe"}',),
    "no model_type": (without_key("model_type"), "model_type"),
    "an unknown model_type": (with_keys(model_type="gpt_neo"), "model_type", "gpt_neo"),
    "a model_type that is a number": (with_keys(model_type=1), "model_type"),
    "a model_type with a newline": (with_keys(model_type="a\nb"), "model_type"),
    "a model_type with an escape character": (with_keys(model_type="\x1b[2J"), "model_type"),
    "a model_type that is cut inside a character": (with_keys(model_type="é" * 63 + "x"),
                                                    "model_type"),
    "no hidden_size": (without_key("hidden_size"), "hidden_size", "missing"),
    "no num_hidden_layers": (without_key("num_hidden_layers"), "num_hidden_layers", "missing"),
    "a null vocab_size": (with_keys(vocab_size=None), "vocab_size", "missing"),
    "a negative hidden_size": (with_keys(hidden_size=-64), "hidden_size", "-64"),
    "a hidden_size of 0": (with_keys(hidden_size=0), "hidden_size", "is 0"),
    "a hidden_size of 2^40": (with_keys(hidden_size=1 << 40), "hidden_size", str(1 << 40)),
    "a hidden_size of 10^30": (with_keys(hidden_size=10**30), "hidden_size"),
    "a hidden_size of 64.5": (with_keys(hidden_size=64.5), "hidden_size", "64.5"),
    "a hidden_size that is text": (with_keys(hidden_size="64"), "hidden_size"),
    "a hidden_size that is a list": (with_keys(hidden_size=[64]), "hidden_size"),
    "a million layers": (with_keys(num_hidden_layers=1_000_000), "num_hidden_layers"),
    "more layers than the file has": (with_keys(num_hidden_layers=4), "model.layers.3."),
    "no attention heads": (with_keys(num_attention_heads=0), "num_attention_heads"),
    "more heads than dimensions": (
        lambda config: config.update(num_attention_heads=128, head_dim=None), "head_dim"),
    "key heads that do not divide the heads": (
        with_keys(num_key_value_heads=3), "num_key_value_heads"),
    "more key heads than heads": (with_keys(num_key_value_heads=8), "num_key_value_heads"),
    "an odd head_dim": (with_keys(head_dim=15), "head_dim", "odd"),
    "a head_dim of a million": (with_keys(head_dim=1_000_000), "head_dim"),
    "a negative epsilon": (with_keys(rms_norm_eps=-1e-5), "rms_norm_eps"),
    "an infinite epsilon": (
        lambda config: json.dumps(config).replace("1e-05", "1e999"), ),
    "NaN, which is not JSON": (with_keys(rms_norm_eps=float("nan")), "syntax"),
    "a rope_theta of 0": (with_keys(rope_theta=0), "rope_theta"),
    "a rope_theta that is text": (with_keys(rope_theta="10000"), "rope_theta"),
    "an unknown rope type": (rope(rope_type="yarn"), "rope_scaling", "yarn"),
    "an unknown rope key": (rope(beta=1), "rope_scaling", "beta"),
    "a rope key with a newline": (rope(**{"a\nb": 1}), "rope_scaling"),
    "no rope factor": (lambda config: config["rope_scaling"].pop("factor"), "factor", "missing"),
    "a negative rope factor": (rope(factor=-8.0), "factor"),
    "rope frequencies the wrong way round": (rope(high_freq_factor=0.5), "high_freq_factor"),
    "rope settings that are text": (with_keys(rope_scaling="llama3"), "rope_scaling"),
    "an unknown key": (with_keys(residual_multiplier=0.5), "residual_multiplier"),
    "an unknown key with a newline": (with_keys(**{"a\nlibrarian: b": 1}),),
    "an unknown key with an escape character": (with_keys(**{"\x1b[2J": 1}),),
    "an unknown key that is cut inside a character": (with_keys(**{"é" * 127: 1}),),
    "quantised weights": (
        with_keys(quantization_config={"quant_method": "gptq"}), "quantization_config"),
    "another activation": (with_keys(hidden_act="mish"), "hidden_act", "mish"),
    "an unknown dtype": (with_keys(torch_dtype="float8_e4m3fn"), "dtype", "float8_e4m3fn"),
    "a dtype that is a number": (with_keys(torch_dtype=16), "dtype"),
    "a flag that is text": (with_keys(attention_bias="false"), "attention_bias"),
    "a bias the file does not have": (with_keys(attention_bias=True), "bias", "missing"),
    "a vocabulary of another size": (with_keys(vocab_size=41), EMBEDDING, "[41, 64]"),
    "a width of another size": (with_keys(intermediate_size=32), "[64, 28]", "[64, 32]"),
    "layer_types in a family without them": (
        with_keys(layer_types=["full_attention"] * 3), "layer_types"),
    "an image model around the text model": (with_keys(vision_config={}), "vision_config"),
}


def write_changed(path, change):
    """config.json or a part of it after `change`, which edits the dict or returns the text."""
    document = json.loads(path.read_text())
    changed = change(document)
    if isinstance(changed, str) and changed[:1] in ("", "[", "{"):
        changed = changed.encode()
    path.write_bytes(changed if isinstance(changed, bytes) else json.dumps(document).encode())


@cases(WRONG_CONFIGS)
def test_a_wrong_config_is_refused(change, words, model, refused):
    write_changed(model / "config.json", change)
    refused(*extract(model), exit_code=BAD_INPUT, names=[model, *words])


@pytest.mark.parametrize("layer_types,word", [
    (["full_attention"], "layer_types"), ("full_attention", "layer_types"),
    (["full_attention", "full_attention", "linear_attention"], "linear_attention"),
    (["full_attention", "full_attention", 3], "layer_types"),
    (["full_attention", "full_attention", "a\nb"], "layer_types")], ids=lambda value: ascii(value))
def test_wrong_layer_types_are_refused(layer_types, word, tmp_path, refused):
    model = shutil.copytree(GOLDEN / "qwen3" / "model", tmp_path / "model")
    write_changed(model / "config.json", with_keys(layer_types=layer_types))
    refused(*extract(model), exit_code=BAD_INPUT, names=[model / "config.json", word])


# Model directories.


def test_a_directory_without_config_is_refused(model, refused):
    (model / "config.json").unlink()
    refused(*extract(model), exit_code=BAD_INPUT, names=["config.json", model])


def test_a_directory_without_weights_is_refused(one_file_model, refused):
    (one_file_model / "model.safetensors").unlink()
    refused(*extract(one_file_model), exit_code=BAD_INPUT,
            names=[one_file_model, "model.safetensors"])


def test_a_model_that_is_a_file_is_refused(model, refused):
    refused(*extract(model / "config.json", TOKENS)[:4], "--out", model.parent / "store",
            exit_code=BAD_INPUT, names=[model / "config.json"])


def test_a_model_that_is_not_there_is_refused(tmp_path, refused):
    refused(*extract(tmp_path / "nowhere"), exit_code=BAD_INPUT, names=[tmp_path / "nowhere"])


def test_a_config_that_is_a_directory_is_refused(model, refused):
    (model / "config.json").unlink()
    (model / "config.json").mkdir()
    refused(*extract(model), exit_code=BAD_INPUT, names=[model / "config.json"])


# Token files.


def tensors_of(**tensors):
    """A token file of exactly these tensors."""
    return lambda path: write_safetensors(path, {name: np.asarray(array)
                                                 for name, array in tensors.items()})


IDS, OFFSETS = np.array([1, 2, 3], np.int32), np.array([0, 2, 3], np.int64)
WRONG_TOKENS = {
    "an id as large as the vocabulary": (
        lambda path: write_tokens(path, [[1, 2], [3, VOCABULARY]]), "sample 1", "position 1",
        str(VOCABULARY)),
    "a negative id": (lambda path: write_tokens(path, [[1], [-1]]), "sample 1", "-1"),
    "an id of 2^31 - 1": (lambda path: write_tokens(path, [[2**31 - 1]]), "sample 0"),
    "an empty sample": (lambda path: write_tokens(path, [[1], [], [2]]), "sample 1", "empty"),
    "no samples": (lambda path: write_tokens(path, []), "no samples"),
    "no offsets": (tensors_of(input_ids=IDS), "offsets"),
    "no ids": (tensors_of(offsets=OFFSETS), "input_ids"),
    "empty offsets": (tensors_of(input_ids=IDS, offsets=OFFSETS[:0]), "offsets"),
    "offsets that begin at 1": (
        tensors_of(input_ids=IDS, offsets=np.array([1, 3], np.int64)), "offsets"),
    "offsets that begin below 0": (
        tensors_of(input_ids=IDS, offsets=np.array([-1, 3], np.int64)), "offsets"),
    "offsets that go backwards": (
        tensors_of(input_ids=IDS, offsets=np.array([0, 2, 1, 3], np.int64)), "sample 1"),
    "offsets that go beyond the end in between": (
        tensors_of(input_ids=IDS, offsets=np.array([0, 9, 3], np.int64)), "sample 1"),
    "offsets that go far below 0 in between": (
        tensors_of(input_ids=IDS, offsets=np.array([0, -(2**63), 3], np.int64)), "sample 0"),
    "offsets that end too early": (
        tensors_of(input_ids=IDS, offsets=np.array([0, 2], np.int64)), "offsets", "3"),
    "offsets that end too late": (
        tensors_of(input_ids=IDS, offsets=np.array([0, 4], np.int64)), "offsets", "3"),
    "ids of 64 bits": (
        tensors_of(input_ids=IDS.astype(np.int64), offsets=OFFSETS), "input_ids", "I64"),
    "offsets of 32 bits": (
        tensors_of(input_ids=IDS, offsets=OFFSETS.astype(np.int32)), "offsets", "I32"),
    "ids in two dimensions": (
        tensors_of(input_ids=IDS.reshape(1, 3), offsets=OFFSETS), "input_ids", "2-d"),
    "floating point ids": (
        tensors_of(input_ids=IDS.astype(np.float32), offsets=OFFSETS), "input_ids", "F32"),
    "a mask that is too short": (
        tensors_of(input_ids=IDS, offsets=OFFSETS, loss_mask=np.ones(2, np.uint8)), "loss_mask"),
    "a mask with a 2": (
        lambda path: write_tokens(path, [[1, 2, 3]], [1, 0, 2]), "loss_mask", "token 2"),
    "a mask of 32 bits": (
        tensors_of(input_ids=IDS, offsets=OFFSETS, loss_mask=np.ones(3, np.int32)), "loss_mask"),
    "an unknown tensor": (
        tensors_of(input_ids=IDS, offsets=OFFSETS, labels=IDS), "labels"),
    "a broken header": (
        lambda path: write_safetensors(path, token_arrays([[1]]), b'{"input_ids": 1}'),
        "input_ids"),
    "a web page": (lambda path: path.write_text("<html>not found</html>"), "web page"),
    "an empty file": (lambda path: path.write_bytes(b""),),
}


@cases(WRONG_TOKENS)
def test_a_wrong_token_file_is_refused(change, words, model, refused):
    path = model.parent / "wrong.safetensors"
    change(path)
    refused(*extract(model, path), exit_code=BAD_INPUT, names=[path, *words])


GOOD_ROW = '{"input_ids": [1, 2]}'
WRONG_ROWS = {
    "not JSON": ("input_ids: [1]",),
    "a list": ("[1, 2]", "JSON object"),
    "half a row": ('{"input_ids": [1, 2]', "syntax"),
    "two rows in a line": (GOOD_ROW + GOOD_ROW, "syntax"),
    "no ids": ('{"id": "x"}', "input_ids"),
    "ids that are text": ('{"input_ids": "1 2"}', "input_ids"),
    "an id that is text": ('{"input_ids": [1, "2"]}', "2"),
    "an id of 1.5": ('{"input_ids": [1, 1.5]}', "1.5"),
    "a negative id": ('{"input_ids": [1, -2]}', "-2"),
    "an id of 2^31": ('{"input_ids": [2147483648]}', "2147483648"),
    "an id of 10^30": ('{"input_ids": [1' + "0" * 30 + "]}", "token id"),
    "nested ids": ('{"input_ids": [[1, 2]]}', "token id"),
    "an unknown key": ('{"input_ids": [1], "labels": [1]}', "labels"),
    "an unknown key with a newline": ('{"input_ids": [1], "a\\nb": 1}',),
    "ids given twice": ('{"input_ids": [1], "input_ids": [2]}', "input_ids"),
    "a mask that only some rows have": ('{"input_ids": [1], "loss_mask": [1]}', "loss_mask"),
    "bytes that are not UTF-8": (b'{"input_ids": [1], "id": "\xff"}',),
    "a zero byte": (b'{"input_ids": [1]}\0',),
}


@pytest.mark.parametrize("row,words", [
    pytest.param(row[0], row[1:], id=name) for name, row in WRONG_ROWS.items()])
def test_a_wrong_row_of_jsonl_is_refused_by_its_number(row, words, model, refused):
    path = model.parent / "rows.jsonl"
    row = row if isinstance(row, bytes) else row.encode()
    path.write_bytes(b"\n".join([GOOD_ROW.encode(), b"", GOOD_ROW.encode(), row, b""]))
    refused(*extract(model, path), exit_code=BAD_INPUT, names=[f"{path}: row 2", *words])


@pytest.mark.parametrize("row,words", [
    ('{"input_ids": [1, 40]}', ["sample 2", "40"]), ('{"input_ids": []}', ["sample 2", "empty"])],
    ids=["an id as large as the vocabulary", "an empty row"])
def test_a_row_that_does_not_suit_the_model_is_refused_by_its_number(row, words, model, refused):
    path = model.parent / "rows.jsonl"
    path.write_text(f"{GOOD_ROW}\n{GOOD_ROW}\n{row}\n")
    refused(*extract(model, path), exit_code=BAD_INPUT, names=[path, *words])


@pytest.mark.parametrize("mask,word", [
    ("[1]", "as long as"), ("[1, 2]", "not 0 or 1"), ("[1, true]", "not 0 or 1"), ("1", "list")])
def test_a_wrong_mask_of_jsonl_is_refused_by_its_row(mask, word, model, refused):
    path = model.parent / "rows.jsonl"
    path.write_text(f'{{"input_ids": [1, 2], "loss_mask": {mask}}}\n')
    refused(*extract(model, path), exit_code=BAD_INPUT, names=[f"{path}: row 0", word])


def saved(array):
    return lambda path: np.save(path, array)


def bytes_of_npy(change):
    def write(path):
        np.save(path, np.ones((2, 3), np.int32))
        path.write_bytes(change(path.read_bytes()))

    return write


WRONG_ARRAYS = {
    "floating point": (saved(np.ones((2, 3))),),
    "Fortran order": (saved(np.asfortranarray(np.ones((2, 3), np.int32))), "C order"),
    "three dimensions": (saved(np.ones((1, 2, 3), np.int32)), "1-d or 2-d"),
    "no dimension": (saved(np.int32(1)), "1-d or 2-d"),
    "big-endian": (saved(np.ones((2, 3), ">i4")),),
    "text": (saved(np.array(["a"])),),
    "objects": (lambda path: np.save(path, np.array([None]), allow_pickle=True),),
    "bool": (saved(np.ones((2, 3), bool)),),
    "a negative id": (saved(np.array([1, -1], np.int32)), "-1"),
    "an id of 2^40": (saved(np.array([1, 1 << 40], np.int64)), str(1 << 40)),
    "an id outside the vocabulary": (saved(np.array([[1, 2], [3, 99]], np.int64)), "sample 1"),
    "no elements": (saved(np.ones((0,), np.int32)),),
    "no rows": (saved(np.ones((0, 3), np.int32)),),
    "no columns": (saved(np.ones((3, 0), np.int32)),),
    "a file that is cut off": (bytes_of_npy(lambda data: data[:-1]),),
    "a file with a byte too many": (bytes_of_npy(lambda data: data + b"\0"),),
    "a header that is cut off": (bytes_of_npy(lambda data: data[:50]),),
    "another magic": (bytes_of_npy(lambda data: b"X" + data[1:]),),
    "another version": (bytes_of_npy(lambda data: data[:6] + b"\x09" + data[7:]),),
    "a shape that overflows": (bytes_of_npy(lambda data: data.replace(
        b"(2, 3), }" + b" " * 30, b"(4294967296, 4294967296), }" + b" " * 12)),),
    "a shape that claims a petabyte": (bytes_of_npy(lambda data: data.replace(
        b"(2, 3), }" + b" " * 20, b"(1099511627776, 99), }" + b" " * 7)),),
}


@cases(WRONG_ARRAYS)
def test_a_wrong_npy_file_is_refused(change, words, model, refused):
    path = model.parent / "wrong.npy"
    change(path)
    refused(*extract(model, path), exit_code=BAD_INPUT, names=[path, *words])


def test_a_token_file_that_is_not_there_is_refused(model, refused):
    path = model.parent / "nowhere.safetensors"
    refused(*extract(model, path), exit_code=BAD_INPUT, names=["--tokens", path])


def test_a_token_file_that_is_a_directory_is_refused(model, refused):
    path = model.parent / "folder.jsonl"
    path.mkdir()
    refused(*extract(model, path), exit_code=BAD_INPUT, names=[path])


@pytest.mark.parametrize("name", ["tokens.txt", "tokens", "tokens.npz", ".npy.gz"])
def test_a_token_file_of_another_kind_is_refused(name, model, refused):
    path = model.parent / name
    path.write_text("1 2 3")
    refused(*extract(model, path), exit_code=USAGE, names=[path, ".jsonl"])


# Values that are not numbers.

NOT_FINITE = {"NaN": 0x7FC0, "infinity": 0x7F80, "minus infinity": 0xFF80}


@pytest.mark.parametrize("kind", NOT_FINITE)
@pytest.mark.parametrize("where", ["model.layers.1.mlp.down_proj.weight", EMBEDDING])
def test_weights_that_are_not_finite_stop_the_job_unless_allowed(
        kind, where, one_file_model, refused, librarian):
    """The embedding's row is one that the samples use; a single value is enough."""
    path = one_file_model / "model.safetensors"
    tensors = {name: array.copy()
               for name, array in read_safetensors(path, widen_bf16=False).items()}
    row = read_safetensors(TOKENS)["input_ids"][5] if where == EMBEDDING else 5
    tensors[where][row, 3] = NOT_FINITE[kind]
    write_safetensors(path, tensors)
    line = refused(*extract(one_file_model), exit_code=BAD_INPUT)
    assert "finite" in line or "NaN" in line
    done = librarian(*extract(one_file_model), "--allow-nonfinite")
    librarian("verify", one_file_model.parent / "store")
    assert "complete" in done.stdout


# Output directories.


def test_a_foreign_directory_is_left_alone(model, refused):
    store = model.parent / "store"
    store.mkdir()
    (store / "thesis.tex").write_text("do not lose this")
    refused(*extract(model), exit_code=BUSY, names=[store, "thesis.tex"])
    assert [path.name for path in store.iterdir()] == ["thesis.tex"]


def test_the_directory_of_another_job_is_left_alone(model, librarian, refused):
    store = model.parent / "store"
    librarian(*extract(model))
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    done = librarian(*extract(model), "--capture", "embed", exit_code=BUSY)
    assert done.stderr.count("\n") == 1 and "captures" in done.stderr and str(store) in done.stderr
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


def test_an_output_path_that_is_a_file_is_left_alone(model, refused):
    store = model.parent / "store"
    store.write_text("do not lose this")
    refused(*extract(model), exit_code=BUSY, names=[store])
    assert store.read_text() == "do not lose this"


def test_an_output_path_below_a_file_is_refused(model, refused):
    (model.parent / "file").write_text("")
    refused("extract", model, "--tokens", TOKENS, "--out", model.parent / "file" / "store",
            exit_code=DOES_NOT_FIT, names=[model.parent / "file"])


def test_an_output_path_that_links_to_nothing_is_refused(model, refused):
    store = model.parent / "store"
    store.symlink_to(model.parent / "nowhere")
    refused(*extract(model), exit_code=BUSY, names=[store])
    assert store.is_symlink() and not (model.parent / "nowhere").exists()


def test_samples_that_an_index_of_keys_would_cut_are_refused(librarian, tmp_path):
    """The golden's samples are as short as its index_topk; here one is longer."""
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "glm_moe_dsa" / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"index_topk": 33}))
    tokens = GOLDEN / "glm_moe_dsa" / "tokens.safetensors"
    done = librarian("plan", folder, "--tokens", tokens, exit_code=BAD_INPUT)
    assert "the longest sample has 34 tokens" in done.stderr
    assert "--max-length 33 cuts it" in done.stderr
    librarian("plan", folder, "--tokens", tokens, "--max-length", 33)
