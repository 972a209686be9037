#!/usr/bin/env python3
"""Turn text files into Librarian's token file, one token per byte. Needs numpy only.

Goal: real text through the whole pipeline without a tokenizer to install. A token id is the byte's
value; each sample begins with id 256 (bos). The output is the canonical token file, safetensors
with input_ids int32 [tokens] and offsets int64 [samples + 1].

    tokenize_bytes.py text/*.txt --out tokens.safetensors                      # a paragraph a sample
    tokenize_bytes.py text/*.txt --out tokens.safetensors --sample-bytes 1024  # fixed length
"""

import argparse
import json
import pathlib
import re
import struct

import numpy as np

BOS_ID = 256


def paragraphs(data):
    """The byte strings between blank lines, without surrounding white space; none is empty."""
    pieces = re.split(rb"\n[ \t\r]*\n", data)
    return [piece.strip() for piece in pieces if piece.strip()]


def fixed_samples(data, sample_bytes):
    """Consecutive pieces of `sample_bytes` bytes; the last one may be shorter."""
    return [data[at : at + sample_bytes] for at in range(0, len(data), sample_bytes)]


def pack(samples):
    """(input_ids, offsets) of byte strings, each with bos in front."""
    ids = [np.concatenate(([BOS_ID], np.frombuffer(sample, np.uint8))) for sample in samples]
    offsets = np.cumsum([0] + [len(row) for row in ids], dtype=np.int64)
    return np.concatenate(ids).astype(np.int32), offsets


def token_file(input_ids, offsets):
    """The bytes of the safetensors file. The 8-byte array comes first, so both are aligned."""
    offsets_end = offsets.nbytes
    header = json.dumps({
        "__metadata__": {"tokenizer": "bytes"},
        "offsets": {"dtype": "I64", "shape": [len(offsets)], "data_offsets": [0, offsets_end]},
        "input_ids": {"dtype": "I32", "shape": [len(input_ids)],
                      "data_offsets": [offsets_end, offsets_end + input_ids.nbytes]},
    }, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return (struct.pack("<Q", len(header)) + header + offsets.astype("<i8").tobytes()
            + input_ids.astype("<i4").tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="+", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--sample-bytes", type=int, help="default: one sample per paragraph")
    options = parser.parse_args()
    if options.sample_bytes is not None and options.sample_bytes < 1:
        parser.error("--sample-bytes must be at least 1")
    samples = []
    for path in options.texts:
        data = path.read_bytes()
        samples += (fixed_samples(data, options.sample_bytes) if options.sample_bytes
                    else paragraphs(data))
    if not samples:
        parser.error("the texts are empty")
    input_ids, offsets = pack(samples)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(token_file(input_ids, offsets))
    print(f"{options.out}: {len(samples)} samples, {len(input_ids)} tokens")


if __name__ == "__main__":
    main()
