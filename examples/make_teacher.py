#!/usr/bin/env python3
"""Write a random Llama checkpoint: config.json, weight files, index. Needs numpy only.

Goal: a teacher to try the pipeline on, of any size, in seconds. The weights are random (bf16, std
1/sqrt(fan_in), norms near 1), so its activations are finite and of realistic size but mean nothing.

    make_teacher.py DIR [--hidden 1024 --layers 18 ...]    # the default has 246 million parameters
"""

import argparse
import json
import math
import pathlib
import struct
from dataclasses import dataclass

import numpy as np

# Every tensor is a run of one random block, each from another place: drawing is the slow part.
# The block's length is prime, so no row length divides it and no two rows of a matrix are equal.
BLOCK_VALUES = 1048573
EMBEDDING_STD = 0.5
NORM_STD = 0.05


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a Llama checkpoint, in elements."""

    hidden: int = 1024
    layers: int = 18
    ffn: int = 3584
    heads: int = 16
    kv_heads: int = 4
    vocab: int = 512
    max_positions: int = 4096

    @property
    def head_dim(self):
        return self.hidden // self.heads

    def config(self):
        """config.json as transformers 4 writes it."""
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "hidden_size": self.hidden, "num_hidden_layers": self.layers,
            "intermediate_size": self.ffn, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "vocab_size": self.vocab, "max_position_embeddings": self.max_positions,
            "hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
            "rope_scaling": None, "attention_bias": False, "mlp_bias": False,
            "attention_dropout": 0.0, "tie_word_embeddings": False, "bos_token_id": 256,
            "eos_token_id": 257, "initializer_range": 0.02, "pretraining_tp": 1, "use_cache": True,
            "torch_dtype": "bfloat16", "transformers_version": "4.57.6"}

    def tensors(self):
        """[(name, shape)] in checkpoint order."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        tensors = [("model.embed_tokens.weight", (self.vocab, self.hidden))]
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            tensors += [(prefix + name + ".weight", shape) for name, shape in (
                ("input_layernorm", (self.hidden,)),
                ("self_attn.q_proj", (queries, self.hidden)),
                ("self_attn.k_proj", (keys, self.hidden)),
                ("self_attn.v_proj", (keys, self.hidden)),
                ("self_attn.o_proj", (self.hidden, queries)),
                ("post_attention_layernorm", (self.hidden,)),
                ("mlp.gate_proj", (self.ffn, self.hidden)),
                ("mlp.up_proj", (self.ffn, self.hidden)),
                ("mlp.down_proj", (self.hidden, self.ffn)))]
        tensors += [("model.norm.weight", (self.hidden,)),
                    ("lm_head.weight", (self.vocab, self.hidden))]
        return tensors


def bf16_bytes(shape):
    return 2 * math.prod(shape)


def split_into_files(tensors, file_count):
    """Consecutive tensors in at most `file_count` files of about equal size.

    Returns {file name: [(name, shape)]}; each file has at least one tensor.
    """
    total_bytes = sum(bf16_bytes(shape) for _, shape in tensors)
    groups, done_bytes = [[]], 0
    for tensor in tensors:
        if groups[-1] and done_bytes * file_count >= len(groups) * total_bytes:
            groups.append([])
        groups[-1].append(tensor)
        done_bytes += bf16_bytes(tensor[1])
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group
            for i, group in enumerate(groups, start=1)}


def weight_file_header(tensors):
    """The first bytes of a safetensors file with these bf16 tensors, one behind the other."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors:
        end = at + bf16_bytes(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def weight_index(files):
    """model.safetensors.index.json as a dict."""
    return {"metadata": {"total_size": sum(bf16_bytes(s) for f in files.values() for _, s in f)},
            "weight_map": {name: file for file, group in files.items() for name, _ in group}}


def to_bf16(values):
    """float32 -> bf16 bits (uint16), rounded to nearest even; finite values only."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class RandomTensors:
    """Draws bf16 tensors; the same seed gives the same bytes."""

    def __init__(self, seed):
        self._normal = np.random.default_rng(seed).standard_normal(BLOCK_VALUES, np.float32)
        self._blocks = {}  # (mean, std) -> bf16 block
        self._at = 0

    def draw(self, name, shape):
        """Bits of the next tensor, uint16 [values]."""
        if "norm" in name:
            mean, std = 1.0, NORM_STD
        elif "embed_tokens" in name:
            mean, std = 0.0, EMBEDDING_STD
        else:
            mean, std = 0.0, 1 / math.sqrt(shape[1])
        if (mean, std) not in self._blocks:
            self._blocks[mean, std] = to_bf16(self._normal * np.float32(std) + np.float32(mean))
        value_count = math.prod(shape)
        values = np.resize(np.roll(self._blocks[mean, std], -self._at), value_count)
        # A step that is no multiple of the tensor's size, so that layers do not repeat each other.
        self._at = (self._at + value_count + 7919) % BLOCK_VALUES
        return values


def write_checkpoint(folder, shape, file_count, seed):
    """Write the checkpoint into `folder`, which is made; returns its bytes of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    files = split_into_files(shape.tensors(), file_count)
    random_tensors = RandomTensors(seed)
    for name, tensors in files.items():
        with open(folder / name, "wb") as file:
            file.write(weight_file_header(tensors))
            for tensor_name, tensor_shape in tensors:
                file.write(random_tensors.draw(tensor_name, tensor_shape))
    index = weight_index(files)
    for name, value in (("model.safetensors.index.json", index), ("config.json", shape.config())):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    return index["metadata"]["total_size"]


def add_shape_options(parser, default=LlamaShape()):
    """--hidden, --layers, ...: one option per field of LlamaShape."""
    for name in LlamaShape.__dataclass_fields__:
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=getattr(default, name))


def shape_of(options):
    shape = LlamaShape(**{name: getattr(options, name) for name in LlamaShape.__dataclass_fields__})
    if shape.hidden % shape.heads or shape.heads % shape.kv_heads or shape.head_dim % 2:
        raise SystemExit("hidden / heads must be a whole even number, heads / kv-heads a whole one")
    return shape


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    add_shape_options(parser)
    parser.add_argument("--files", type=int, default=4, help="weight files")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    weight_bytes = write_checkpoint(options.directory, shape_of(options), options.files,
                                    options.seed)
    print(f"{options.directory}: {weight_bytes / 2e6:.0f} million parameters, "
          f"{weight_bytes / 1e6:.0f} MB of bf16 weights")


if __name__ == "__main__":
    main()
