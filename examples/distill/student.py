"""The student: a small decoder-only transformer in plain torch, and the projections beside it."""

import json
import math
import pathlib
import zlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

INITIAL_STD = 0.02
SAFETENSORS_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Families whose embedding, final norm and head mean the same as the student's: no scaling of the
# embedding, a norm that multiplies by its weight, no soft cap on the logits.
LLAMA_LIKE = {"llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"}


@dataclass(frozen=True)
class StudentShape:
    vocab: int
    width: int
    layers: int
    heads: int
    ffn: int
    rope_theta: float = 10000.0


class RMSNorm(nn.Module):
    def __init__(self, width, device):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, device=device))

    def forward(self, x):
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)
        return (x.float() * scale).to(x.dtype) * self.weight


def rope(x, theta):
    """Turns [B, heads, T, head_dim] by its positions 0..T-1; halves rotate, as in Llama."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.shape[-2], device=x.device)[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def causal_attention(queries, keys, values):
    """[B, heads, T, head_dim] each. Samples are padded at their ends, so the padding needs no mask:
    no token sees what comes after it."""
    if hasattr(F, "scaled_dot_product_attention"):  # torch 2.0 and later.
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    tokens = queries.shape[-2]
    future = torch.ones(tokens, tokens, dtype=torch.bool, device=queries.device).triu(1)
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ values


class Block(nn.Module):
    def __init__(self, shape, device):
        super().__init__()
        self.heads, self.theta = shape.heads, shape.rope_theta
        self.attention_norm = RMSNorm(shape.width, device)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False, device=device)
        self.attention_out = nn.Linear(shape.width, shape.width, bias=False, device=device)
        self.ffn_norm = RMSNorm(shape.width, device)
        self.gate = nn.Linear(shape.width, shape.ffn, bias=False, device=device)
        self.up = nn.Linear(shape.width, shape.ffn, bias=False, device=device)
        self.down = nn.Linear(shape.ffn, shape.width, bias=False, device=device)

    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, tokens, 3, self.heads, -1)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        mixed = causal_attention(rope(queries, self.theta), rope(keys, self.theta), values)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        h = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Student(nn.Module):
    """input_ids [B, T] -> the residual stream after each layer, and logits of chosen rows."""

    def __init__(self, shape, device):
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab, shape.width, device=device)
        self.blocks = nn.ModuleList(Block(shape, device) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.width, device)
        self.head = nn.Linear(shape.width, shape.vocab, bias=False, device=device)

    def forward(self, input_ids):
        """@return  [layers] tensors [B, T, width]: the residual stream after each layer."""
        x = self.embedding(input_ids)
        after_layers = []
        for block in self.blocks:
            x = block(x)
            after_layers.append(x)
        return after_layers

    def logits(self, last_hidden):
        """[rows, width] of the last layer -> [rows, vocab]."""
        return self.head(self.norm(last_hidden))


class Distilled(nn.Module):
    """What is trained: the student, and a projection into the teacher's space for each anchor."""

    def __init__(self, shape, anchor_captures, teacher_width, device):
        """@param anchor_captures  Names of the teacher's captures that the student is held to."""
        super().__init__()
        self.student = Student(shape, device)
        # Parameter names must not contain dots, capture names do.
        self.projections = nn.ModuleDict({
            name.replace(".", "_"): nn.Linear(shape.width, teacher_width, device=device)
            for name in anchor_captures})

    def project(self, capture, hidden):
        return self.projections[capture.replace(".", "_")](hidden)


def build(shape, anchor_captures, teacher_width, device, seed):
    """Makes the model on the meta device, which costs nothing, and fills it on `device`.

    Weights are drawn one parameter at a time, each from its own generator: beside the model itself
    there is never more than one parameter in host memory, and a parameter's first values depend on
    the seed and its name only, not on the device or on what else the model has.
    """
    model = Distilled(shape, anchor_captures, teacher_width, device="meta").to_empty(device=device)
    residual_std = INITIAL_STD / math.sqrt(2 * shape.layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                std = INITIAL_STD
                if name.startswith("projections."):
                    std = 1 / math.sqrt(shape.width)
                elif name.endswith(("attention_out.weight", "down.weight")):
                    std = residual_std
                generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
                parameter.copy_(torch.empty(parameter.shape).normal_(0, std, generator=generator))
    return model


def read_safetensors(path):
    """{name: (dtype name, shape, byte range)} of a safetensors file, and where its data begins."""
    with open(path, "rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
    header.pop("__metadata__", None)
    return {name: (facts["dtype"], facts["shape"], facts["data_offsets"])
            for name, facts in header.items()}, 8 + header_bytes


def copy_from_teacher(student, teacher_folder, config):
    """Copies embedding, final norm and head of the teacher's skeleton into a student of its width.

    @return  Names in the skeleton of what was copied.
    @raise ValueError  The teacher's family or sizes do not fit, or the skeleton is not there.
    """
    if config.get("model_type") not in LLAMA_LIKE:
        raise ValueError(f"{teacher_folder}: embedding and head of a {config.get('model_type')} "
                         "model mean something else than the student's; leave --copy-from-teacher "
                         "out")
    path = pathlib.Path(teacher_folder) / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{path} is not there; extract without --skeleton no, or leave "
                         "--copy-from-teacher out")
    tensors, data_begin = read_safetensors(path)
    head = "lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight"  # Tied.
    sources = [(student.embedding.weight, "model.embed_tokens.weight"),
               (student.norm.weight, "model.norm.weight"), (student.head.weight, head)]
    with open(path, "rb") as file, torch.no_grad():
        for parameter, name in sources:
            dtype, shape, (begin, end) = tensors.get(name, ("absent", [], (0, 0)))
            if dtype not in SAFETENSORS_TYPES or shape != list(parameter.shape):
                raise ValueError(f"{path}: {name} is {dtype} {shape}, the student needs "
                                 f"{list(parameter.shape)}; choose --width as the teacher's, or "
                                 "leave --copy-from-teacher out")
            file.seek(data_begin + begin)
            values = torch.frombuffer(bytearray(file.read(end - begin)),
                                      dtype=SAFETENSORS_TYPES[dtype])
            parameter.copy_(values.view(shape))
    return [name for _, name in sources]
