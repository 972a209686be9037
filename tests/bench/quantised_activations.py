"""By how much engines that also quantise activations differ from weights decoded to floats.

Goldens' checkpoints get quantised weights, and transformers computes the residual stream behind the
last layer in float32 twice: with the decoded weights alone, which is what Librarian does (its numbers
for decoded weights are tests/golden's subject), and with the inputs of every quantised matrix rounded,
too, as engines do: a scale for each token, from its largest absolute value. Prints the relative
difference |a - b| / |b| of a token's vector: the median over tokens, and the 95th percentile; beside
it what bfloat16 arithmetic alone changes.

Needs torch and transformers; no network:
    python tests/bench/quantised_activations.py [tests/golden]
"""

import contextlib
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModel

GOLDENS = ("llama", "qwen3", "gemma2", "phi3")
FP8_MAX, INT8_MAX = 448.0, 127.0


def fp8(values, scale):
    return (values / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float() * scale


def int8(values, scale):
    return (values / scale).round().clamp(-INT8_MAX, INT8_MAX) * scale


def by_rows(rounding, largest):
    """A scale for each token, or each row of a matrix."""

    def change(values):
        scale = values.abs().amax(-1, keepdim=True).clamp(min=1e-12) / largest
        return rounding(values, scale)

    return change


def by_blocks(rows, columns):
    """FP8 with a scale for each block, as DeepSeek has them: weights 128x128, activations 1x128."""

    def change(values):
        flat = values.reshape(-1, values.shape[-1])
        out = torch.empty_like(flat)
        for row in range(0, flat.shape[0], rows):
            for column in range(0, flat.shape[1], columns):
                block = flat[row:row + rows, column:column + columns]
                scale = block.abs().amax().clamp(min=1e-12) / FP8_MAX
                out[row:row + rows, column:column + columns] = fp8(block, scale)
        return out.reshape(values.shape)

    return change


# Name -> how weights and activations are rounded. Blocks are small because the goldens are.
SCHEMES = {
    "FP8 blocks of 16x16, activations FP8 in runs of 16": (by_blocks(16, 16), by_blocks(1, 16)),
    "FP8 a row, activations FP8 a token": (by_rows(fp8, FP8_MAX), by_rows(fp8, FP8_MAX)),
    "INT8 a row, activations INT8 a token (W8A8)": (by_rows(int8, INT8_MAX),
                                                    by_rows(int8, INT8_MAX)),
}


def matrices(model):
    return [module for module in model.layers.modules() if isinstance(module, torch.nn.Linear)]


@contextlib.contextmanager
def rounded_inputs(model, change):
    hooks = [module.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]), *inputs[1:]))
             for module in matrices(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def residual_stream(model, samples):
    """Behind the last layer, before the final norm, of all tokens."""
    rows = []
    hook = model.layers[-1].register_forward_hook(
        lambda _, inputs, output: rows.append((output[0] if isinstance(output, tuple)
                                               else output).float().reshape(-1, inputs[0].shape[-1])))
    with torch.no_grad():
        for sample in samples:
            model(input_ids=sample[None], use_cache=False)
    hook.remove()
    return torch.cat(rows)


def differences(rows, expected):
    return ((rows - expected).norm(dim=-1) / expected.norm(dim=-1)).numpy()


def load(folder, dtype=torch.float32):
    return AutoModel.from_pretrained(folder / "model", dtype=dtype,
                                     attn_implementation="eager").eval()


def main():
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden")
    found = {}
    for golden in GOLDENS:
        tokens = load_file(root / golden / "tokens.safetensors")
        offsets, ids = tokens["offsets"].tolist(), tokens["input_ids"].long()
        samples = [ids[begin:end] for begin, end in zip(offsets, offsets[1:]) if end > begin]
        for name, (of_weights, of_activations) in SCHEMES.items():
            model = load(root / golden)
            with torch.no_grad():
                for module in matrices(model):
                    module.weight.copy_(of_weights(module.weight))
            expected = residual_stream(model, samples)
            with rounded_inputs(model, of_activations):
                rows = residual_stream(model, samples)
            found.setdefault(name, []).append(differences(rows, expected))
            if name == next(iter(SCHEMES)):
                rows = residual_stream(model.to(torch.bfloat16), samples)
                found.setdefault("bfloat16 arithmetic alone", []).append(
                    differences(rows, expected))
    print(f"{'median (95th percentile), %':52}" + "".join(f"{golden:>16}" for golden in GOLDENS))
    for name, of_goldens in found.items():
        cells = [f"{100 * np.median(one):.2f} ({100 * np.percentile(one, 95):.2f})"
                 for one in of_goldens]
        print(f"{name:52}" + "".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
