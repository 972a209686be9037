#!/usr/bin/env python3
"""A range server for a Llama checkpoint that does not exist.

Goal: stream billions of parameters over HTTP without a byte of disk. config.json, the index and the
headers are real; the weights are a function of the byte offset: a seeded block of bf16 values
N(0, 0.02^2), repeated. All are small (norm weights too), so every activation stays finite.

    generated_server.py --layers 16 --hidden 2048 ... [--files 4] [--port-file FILE] [--seed 0]

The default is a Llama of 1.1 billion parameters.
"""

import argparse
import hashlib
import json
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples"))

from make_teacher import (  # noqa: E402
    LlamaShape, add_shape_options, bf16_bytes, shape_of, split_into_files, to_bf16,
    weight_file_header, weight_index)
from range_server import (  # noqa: E402
    BytesResource, RangeServer, add_server_options, serve_until_stopped, server_options)

LLAMA_1B = LlamaShape(hidden=2048, layers=16, ffn=8192, heads=32, kv_heads=8, vocab=32768)
WEIGHT_STD = 0.02
# Near 1 MiB, and half of it a prime: rows of no width repeat inside a matrix of fewer rows.
PERIOD_BYTES = 2 * 524287
TILES = 8  # Copies held in memory, so that one send covers several periods.


class WeightBlock:
    """The repeated block: byte i of a weight file's data is block[(phase + i) % PERIOD_BYTES]."""

    def __init__(self, seed):
        normal = np.random.default_rng(seed).standard_normal(PERIOD_BYTES // 2, np.float32)
        block = to_bf16(normal * np.float32(WEIGHT_STD)).tobytes()
        self._tiles = memoryview(block * TILES)

    def bytes_at(self, position, byte_count):
        """Up to `byte_count` bytes from `position` of the endless repetition, without a copy."""
        begin = position % PERIOD_BYTES
        return self._tiles[begin : begin + byte_count]


class GeneratedFile:
    """One virtual weight file; see FileResource for the interface."""

    content_type = "application/octet-stream"

    def __init__(self, header, data_bytes, block, phase):
        self._header = memoryview(header)
        self._block = block
        self._phase = phase
        self.size = len(header) + data_bytes
        identity = header + f"{data_bytes} {phase}".encode()
        self.etag = '"' + hashlib.sha256(identity).hexdigest()[:32] + '"'

    def _piece(self, begin, byte_count):
        byte_count = min(byte_count, self.size - begin)
        if begin < len(self._header):
            return self._header[begin : begin + byte_count]
        return self._block.bytes_at(self._phase + begin - len(self._header), byte_count)

    def send(self, connection, begin, byte_count):
        return connection.send(self._piece(begin, byte_count))

    def read(self, begin, byte_count):
        """All of the bytes [begin, begin + byte_count) that exist."""
        data = bytearray()
        while len(data) < byte_count and begin + len(data) < self.size:
            data += self._piece(begin + len(data), byte_count - len(data))
        return bytes(data)

    def close(self):
        pass


class GeneratedServer(RangeServer):
    """Serves the checkpoint under the path /model/."""

    def __init__(self, shape=LLAMA_1B, *, file_count=4, seed=0, **options):
        super().__init__(".", **options)
        files = split_into_files(shape.tensors(), file_count)
        block = WeightBlock(seed)
        self._resources = {
            "/model/config.json": _json_resource(shape.config()),
            "/model/model.safetensors.index.json": _json_resource(weight_index(files))}
        for number, (name, tensors) in enumerate(files.items()):
            data_bytes = sum(bf16_bytes(tensor_shape) for _, tensor_shape in tensors)
            self._resources["/model/" + name] = GeneratedFile(
                weight_file_header(tensors), data_bytes, block, phase=number * 7918 + seed * 2)

    def lookup(self, path):
        return self._resources.get(path)


def _json_resource(value):
    return BytesResource(json.dumps(value, indent=2).encode(), "application/json")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_shape_options(parser, LLAMA_1B)
    parser.add_argument("--files", type=int, default=4, help="weight files")
    parser.add_argument("--seed", type=int, default=0)
    add_server_options(parser)
    options = parser.parse_args()
    server = GeneratedServer(shape_of(options), file_count=options.files, seed=options.seed,
                             **server_options(options))
    serve_until_stopped(server, options)


if __name__ == "__main__":
    main()
