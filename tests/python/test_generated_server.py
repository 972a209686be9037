"""The virtual checkpoint is one a reader of files would accept."""

import http.client
import json

import numpy as np
import pytest

from generated_server import LLAMA_1B, PERIOD_BYTES, GeneratedServer
from make_teacher import LlamaShape, bf16_bytes
from support import bf16_to_f32, read_safetensors

SMALL = LlamaShape(hidden=512, layers=2, ffn=1024, heads=8, kv_heads=2, vocab=512)


@pytest.fixture(scope="module")
def server():
    with GeneratedServer(SMALL, file_count=3) as server:
        yield server


def get(server, name, byte_range=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    headers = {"Range": f"bytes={byte_range[0]}-{byte_range[1] - 1}"} if byte_range else {}
    connection.request("GET", "/model/" + name, headers=headers)
    response = connection.getresponse()
    body = response.read()
    assert response.status == (206 if byte_range else 200), body
    return body


def test_index_headers_and_config_agree(server, tmp_path):
    assert json.loads(get(server, "config.json"))["num_hidden_layers"] == 2
    index = json.loads(get(server, "model.safetensors.index.json"))
    shapes = dict(SMALL.tensors())
    assert set(index["weight_map"]) == set(shapes)
    found = {}
    for name in sorted(set(index["weight_map"].values())):
        (tmp_path / name).write_bytes(get(server, name))
        found |= {tensor: (name, values) for tensor, values
                  in read_safetensors(tmp_path / name).items()}
    for tensor, shape in shapes.items():
        file, values = found[tensor]
        assert index["weight_map"][tensor] == file
        assert values.shape == shape
        assert np.isfinite(values).all() and 0.015 < values.std() < 0.025
    assert len(set(index["weight_map"].values())) == 3


def test_any_range_is_the_same_bytes(server):
    name = "model-00002-of-00003.safetensors"
    whole = get(server, name)
    assert len(whole) > PERIOD_BYTES
    for begin, end in ((0, 9), (5, 3000), (777_777, 1_800_001), (len(whole) - 3, len(whole))):
        assert get(server, name, (begin, end)) == whole[begin:end]


def test_rows_of_a_matrix_differ(server):
    values = bf16_to_f32(np.frombuffer(get(server, "model-00001-of-00003.safetensors")[-1 << 19 :],
                                       np.uint16)).reshape(-1, SMALL.hidden)
    assert len(np.unique(values, axis=0)) == len(values)


def test_the_default_has_more_than_a_billion_parameters():
    parameters = sum(bf16_bytes(shape) for _, shape in LLAMA_1B.tensors()) / 2
    assert LLAMA_1B.layers == 16 and 1.05e9 < parameters < 1.15e9
