#!/usr/bin/env python3
"""Make tiny random checkpoints and the activations transformers computes from them.

Goal: an independent judge of Librarian's arithmetic. Each family is a checkpoint that leaves no flag
of its layer unused (wide random weights, non-zero biases), and the states of every layer as
transformers' eager attention returns them, each sample run alone.

    python make_golden.py [--out DIR] [--families llama,qwen3] [--seed 0]

Per family, under DIR/<family>/:
    model/                     config.json and weight files, as a published checkpoint looks
    tokens.safetensors         input_ids int32 [T], offsets int64 [samples + 1]
    golden_f32.safetensors     everything computed in float32 from the stored weights
    golden_<type>.safetensors  everything computed in the checkpoint's own 16-bit type
    meta.json                  versions, sample lengths, seed, error of the 16-bit run

Arrays are [T, hidden] in the computation's type, under the capture names of Librarian:
    embed, blocks.L.{attn_out,resid_mid,mlp_out,resid_post}, final.post_norm
Names of the same tensor are stored once: blocks.L.resid_pre is blocks.L-1.resid_post (or embed),
final.pre_norm is the last resid_post. The 16-bit files leave out resid_mid: it is
resid_pre + attn_out rounded once, which this script asserts.
"""

import argparse
import json
import math
import os
import pathlib
import shutil
from dataclasses import dataclass, field

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # The reference is the CPU, whatever the machine has.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch  # noqa: E402  (the environment above must be set first)
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

SAMPLE_LENGTHS = [1, 7, 16, 41, 12]
FIRST_TOKEN_ID = 3  # Below are pad, bos and eos.

SHAPE = dict(
    vocab_size=40, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, intermediate_size=28, max_position_embeddings=64, rms_norm_eps=1e-5,
    attention_dropout=0.0, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    tie_word_embeddings=False)
LLAMA3_ROPE = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=64)
LLAMA = dict(rope_theta=10000.0, rope_scaling=LLAMA3_ROPE)
TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@dataclass(frozen=True)
class Family:
    """One checkpoint. To add a family of the same module layout, add a row to FAMILIES."""

    config_class: str
    config: dict = field(default_factory=dict)  # what differs from SHAPE
    weights: str = "bf16"  # type of the stored weights, a key of TYPES
    residual_only: bool = False  # keep embed, resid_post and final.post_norm alone (smaller files)
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    attention: str = "self_attn"  # the rest are names inside a layer
    mlp: str = "mlp"
    mlp_norm: str = "post_attention_layernorm"  # its input is resid_mid


FAMILIES = {
    "llama": Family("LlamaConfig", LLAMA),
    "llama_bias": Family("LlamaConfig", dict(attention_bias=True, mlp_bias=True, head_dim=24)),
    "llama_linear": Family("LlamaConfig", dict(rope_scaling=dict(rope_type="linear", factor=4.0))),
    "qwen2": Family("Qwen2Config", dict(tie_word_embeddings=True, rope_theta=1e6)),
    "qwen3": Family("Qwen3Config", dict(head_dim=32, rope_theta=1e6)),
    "mistral": Family("MistralConfig", dict(sliding_window=8, head_dim=24)),
    "llama_f16": Family("LlamaConfig", LLAMA, weights="f16", residual_only=True),
    "llama_f32": Family("LlamaConfig", LLAMA, weights="f32", residual_only=True),
}


def draw_weights(model, seed):
    """Fill every parameter with values that make it matter: std 1/sqrt(fan_in), norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    filled = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.data_ptr() in filled:  # Tied: the same storage under a second name.
            continue
        filled.add(tensor.data_ptr())
        if "norm" in name:
            std, mean = 0.2, 1.0
        elif tensor.dim() == 1:
            std, mean = 0.1, 0.0
        elif "embed_tokens" in name:
            std, mean = 0.5, 0.0
        else:
            std, mean = 1.0 / math.sqrt(tensor.shape[1]), 0.0
        with torch.no_grad():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * std + mean)


def make_samples(vocab_size, seed):
    """Random token ids, one int64 tensor per sample."""
    generator = torch.Generator().manual_seed(seed + 1)
    return [torch.randint(FIRST_TOKEN_ID, vocab_size, (n,), generator=generator)
            for n in SAMPLE_LENGTHS]


def run_sample(model, family, sample):
    """All captures of one sample, [tokens, hidden] each, in the model's type."""
    taken, hooks = {}, []

    def take(name, value):
        value = value[0] if isinstance(value, tuple) else value
        taken[name] = value.detach().reshape(sample.numel(), -1).clone()

    def input_of(module, name):
        hooks.append(module.register_forward_pre_hook(
            lambda _, args, kwargs: take(name, args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True))

    def output_of(module, name):
        hooks.append(module.register_forward_hook(lambda _, args, out: take(name, out)))

    layers = model.get_submodule(family.layers)
    input_of(layers[0], "embed")
    for index, layer in enumerate(layers):
        prefix = f"blocks.{index}."
        output_of(layer.get_submodule(family.attention), prefix + "attn_out")
        input_of(layer.get_submodule(family.mlp_norm), prefix + "resid_mid")
        output_of(layer.get_submodule(family.mlp), prefix + "mlp_out")
        output_of(layer, prefix + "resid_post")
    output_of(model.get_submodule(family.final_norm), "final.post_norm")
    with torch.no_grad():
        model(input_ids=sample[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return taken


def run_all(model, family, samples):
    """Captures of all samples, rows in input order; the residual arithmetic is asserted."""
    runs = [run_sample(model, family, sample) for sample in samples]
    captures = {name: torch.cat([run[name] for run in runs]) for name in runs[0]}
    resid_pre = captures["embed"]
    for index in range(model.config.num_hidden_layers):
        block = {k: captures[f"blocks.{index}.{k}"]
                 for k in ("attn_out", "resid_mid", "mlp_out", "resid_post")}
        assert torch.equal(block["resid_mid"], resid_pre + block["attn_out"])
        assert torch.equal(block["resid_post"], block["resid_mid"] + block["mlp_out"])
        resid_pre = block["resid_post"]
    return captures


def kept(captures, family, type_name):
    """The captures that go into the file (see the page's docstring for what is left out)."""
    def keep(name):
        if family.residual_only:
            return name.endswith("resid_post") or not name.startswith("blocks.")
        return type_name == "f32" or not name.endswith("resid_mid")

    return {name: tensor.contiguous() for name, tensor in captures.items() if keep(name)}


def median_error(value, truth):
    """Median over tokens of |value - truth| / |truth| (L2 norms of a row)."""
    error = (value.float() - truth).norm(dim=-1) / truth.norm(dim=-1)
    return round(float(error.median()), 6)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def use_dialect_4(config_path):
    """The keys every checkpoint published with transformers 4 has: `torch_dtype`, not `dtype`."""
    config = json.loads(config_path.read_text())
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    write_json(config_path, config)


def make_family(name, out, seed):
    """Write one family's folder and return its meta.json as a dict."""
    family = FAMILIES[name]
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    model_folder = folder / "model"
    model_folder.mkdir(parents=True)

    config = getattr(transformers, family.config_class)(**{**SHAPE, **family.config})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    draw_weights(model, seed)
    model = model.to(TYPES[family.weights])
    file_bytes = 96_000 if family.weights == "f32" else 48_000  # several weight files each
    model.save_pretrained(model_folder, max_shard_size=file_bytes, safe_serialization=True)
    (model_folder / "generation_config.json").unlink(missing_ok=True)
    use_dialect_4(model_folder / "config.json")

    samples = make_samples(config.vocab_size, seed)
    offsets = torch.tensor([0] + SAMPLE_LENGTHS).cumsum(0)
    save_file({"input_ids": torch.cat(samples).to(torch.int32), "offsets": offsets},
              folder / "tokens.safetensors")

    meta = dict(family=name, transformers=transformers.__version__,
                torch=torch.__version__.split("+")[0], attn_implementation="eager", seed=seed,
                sample_lengths=SAMPLE_LENGTHS, weights=family.weights,
                golden=sorted({"f32", family.weights}), median_error_against_f32={})
    truth = None
    for type_name in dict.fromkeys(["f32", family.weights]):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            model_folder, dtype=TYPES[type_name], attn_implementation="eager").eval()
        captures = run_all(model, family, samples)
        save_file(kept(captures, family, type_name), folder / f"golden_{type_name}.safetensors")
        if type_name == "f32":
            truth = captures
        else:
            meta["median_error_against_f32"] = {
                k: median_error(v, truth[k]) for k, v in sorted(captures.items())}
    write_json(folder / "meta.json", meta)
    return meta


def make_llama_tf5(out):
    """The llama checkpoint again in transformers 5's dialect and one weight file without an index.

    The numbers are llama's: its goldens hold for this folder too (meta.json: golden_of).
    """
    source, folder = out / "llama", out / "llama_tf5"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "model").mkdir(parents=True)
    config = json.loads((source / "model" / "config.json").read_text())
    config["dtype"] = config.pop("torch_dtype")
    config["rope_parameters"] = {**config.pop("rope_scaling"),
                                 "rope_theta": config.pop("rope_theta")}
    config["transformers_version"] = "5.0.0"
    write_json(folder / "model" / "config.json", config)
    tensors = {}
    for path in sorted((source / "model").glob("*.safetensors")):
        tensors.update(load_file(path))
    save_file(tensors, folder / "model" / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(source / "tokens.safetensors", folder / "tokens.safetensors")
    meta = json.loads((source / "meta.json").read_text())
    write_json(folder / "meta.json", {**meta, "family": "llama_tf5", "golden_of": "llama"})


def folder_bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    parser.add_argument("--families", default="", help="comma-separated; default: all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # One summation order on every machine.
    transformers.utils.logging.disable_progress_bar()
    names = [name for name in options.families.split(",") if name] or list(FAMILIES)
    for name in names:
        meta = make_family(name, options.out, options.seed)
        files = len(list((options.out / name / "model").glob("*.safetensors")))
        error = meta["median_error_against_f32"].get("final.post_norm", 0.0)
        print(f"{name:14s} {folder_bytes(options.out / name):8d} bytes  {files} weight files  "
              f"median {meta['weights']} error {error:.4f}")
        if name == "llama":
            make_llama_tf5(options.out)
            print(f"{'llama_tf5':14s} {folder_bytes(options.out / 'llama_tf5'):8d} bytes")


if __name__ == "__main__":
    main()
