#!/usr/bin/env python3
"""Make tiny random checkpoints and the activations transformers computes from them.

Goal: an independent judge of Librarian's arithmetic. Each family is a checkpoint that leaves no flag
of its layer unused (wide random weights, norms off their identity, non-zero biases), and the states
of every layer as transformers' eager attention returns them, each sample run alone.

    python make_golden.py [--out DIR] [--families llama,qwen3] [--seed 0]

Per family, under DIR/<family>/:
    model/                     config.json and weight files, as a published checkpoint looks
    tokens.safetensors         input_ids int32 [T], offsets int64 [samples + 1]
    golden_f32.safetensors     everything computed in float32 from the stored weights
    router_f32.safetensors     of families with experts: blocks.L.router.ids, int32, and .weights,
                               float32, [T, top_k]: the experts each token met, by number
    meta.json                  versions, sample lengths, seed; how far transformers is from these
                               numbers when it computes in the checkpoint's own 16-bit type; what
                               output_hidden_states[i] is; tensors that no capture depends on

Arrays are float32 [T, hidden], under the capture names of Librarian:
    embed, blocks.L.{attn_out,resid_mid,mlp_out,resid_post}, final.post_norm
A tensor with two names is stored once: blocks.L.resid_pre is blocks.L-1.resid_post (or embed),
final.pre_norm is the last resid_post. resid_mid is left out where it is resid_pre + attn_out, which
this script checks, and does not exist where the halves of a block run side by side.
"""

import argparse
import copy
import json
import math
import os
import pathlib
import re
import shutil
from dataclasses import dataclass, field

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # The reference is the CPU, whatever the machine has.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch  # noqa: E402  (the environment above must be set first)
import torch.overrides  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

TRANSFORMERS_MAJOR = int(transformers.__version__.split(".")[0])
EAGER = dict(attn_implementation="eager")
if TRANSFORMERS_MAJOR >= 5:
    EAGER["experts_implementation"] = "eager"
FIRST_TOKEN_ID = 3  # Below are pad, bos and eos.
TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
NUDGE_MIN = 1e-4  # A tensor matters if nudging it moves a capture by more, relative to its size.
VARIANT_ERROR_MAX = 1e-5
MARGIN_MIN = 1e-4  # Between the last expert chosen and the next one, relative: f32 decides alike.

# Keys that a config class does not know are left out. sqrt(48) is not a bf16 number, and an epsilon
# of 1e-3 is large enough to be seen.
SHAPE = dict(
    vocab_size=40, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, num_kv_heads=2, intermediate_size=20, ffn_dim=20, n_inner=20,
    ffn_hidden_size=20, max_position_embeddings=64, word_embed_proj_dim=48, rms_norm_eps=1e-3,
    layer_norm_eps=1e-3, layer_norm_epsilon=1e-3, norm_epsilon=1e-3, norm_eps=1e-3,
    bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False)
LLAMA = dict(
    hidden_size=64, num_hidden_layers=3, intermediate_size=28, rms_norm_eps=1e-5,
    rope_theta=10000.0, rope_scaling=dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=64))
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
LONGROPE = dict(type="longrope", short_factor=[1.0, 1.2, 1.5], long_factor=[1.0, 2.0, 6.0])
SLIDING_THEN_FULL = dict(sliding_window=8, layer_types=["sliding_attention", "full_attention"])
GEMMA3 = dict(
    head_dim=16, sliding_window=8, sliding_window_pattern=2,
    query_pre_attn_scalar=20, rope_theta=1e6, rope_local_base_freq=10000.0,
    rope_scaling=dict(rope_type="linear", factor=8.0), tie_word_embeddings=True)
LOCAL = dict(num_local_experts=8, num_experts_per_tok=2, intermediate_size=12)
EXPERTS = dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=12)
ROUTED = dict(n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=12)
LATENT = dict(ROUTED, num_key_value_heads=4, kv_lora_rank=16, qk_nope_head_dim=12,
              qk_rope_head_dim=8, v_head_dim=10, first_k_dense_replace=1, num_hidden_layers=3)
DEEPSEEK3 = dict(LATENT, q_lora_rank=20, n_shared_experts=1, n_group=4, topk_group=2,
                 routed_scaling_factor=2.5,
                 rope_scaling=dict(YARN, mscale=1.0, mscale_all_dim=0.8, beta_fast=32.0,
                                   beta_slow=1.0))
SIGMOID = dict(LATENT, q_lora_rank=20, n_shared_experts=1, n_group=1, topk_group=1,
               routed_scaling_factor=1.8, rope_interleave=True)
LLAMA4 = dict(LOCAL, head_dim=12, num_hidden_layers=3,
              intermediate_size_mlp=20, num_experts_per_tok=1, moe_layers=[0, 2],
              no_rope_layers=[1, 0, 1], attention_chunk_size=8, floor_scale=4, attn_scale=0.3)
VISION = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
              image_size=8, patch_size=4)


@dataclass(frozen=True)
class Layout:
    """Where the modules are: the first two below the base model, the others inside a layer."""

    layers: str = "layers"
    final_norm: str = "norm"  # "" if there is none
    attention: str = "self_attn"
    mlp: str = "mlp"
    mid_input_of: str = "post_attention_layernorm"  # whose input is resid_mid, if a layer has it


LAYOUTS = {  # by model_type; those not here have the default
    "gemma2": Layout(mid_input_of="pre_feedforward_layernorm"),
    "gemma3_text": Layout(mid_input_of="pre_feedforward_layernorm"),
    "gemma3": Layout("language_model.layers", "language_model.norm",
                     mid_input_of="pre_feedforward_layernorm"),
    "olmo2": Layout(mid_input_of="mlp"),
    "olmo3": Layout(mid_input_of="mlp"),
    "exaone4": Layout(mid_input_of="mlp"),
    "phi": Layout(final_norm="final_layernorm"),
    "gpt_neox": Layout(final_norm="final_layer_norm", attention="attention"),
    "falcon": Layout("h", "ln_f", "self_attention"),
    # Bloom's modules add the residual themselves; their last matrix gives what they compute.
    "bloom": Layout("h", "ln_f", "self_attention.dense", "mlp.dense_4h_to_h"),
    "gpt2": Layout("h", "ln_f", "attn", "mlp", "ln_2"),
    "opt": Layout("decoder.layers", "decoder.final_layer_norm", mlp="fc2",
                  mid_input_of="final_layer_norm"),
    "mixtral": Layout(mlp="block_sparse_moe" if TRANSFORMERS_MAJOR == 4 else "mlp"),
    "granitemoe": Layout(mlp="block_sparse_moe"),
    "llama4_text": Layout(mlp="feed_forward"),
    "llama4": Layout("language_model.model.layers", "language_model.model.norm",
                     mlp="feed_forward"),
    "bert": Layout("encoder.layer", "", "attention.output.dense", "output.dense", "intermediate"),
}


@dataclass(frozen=True)
class Family:
    """One checkpoint: a row of FAMILIES."""

    config_class: str
    config: dict = field(default_factory=dict)  # what differs from SHAPE
    weights: str = "bf16"  # type of the stored weights, a key of TYPES
    keep: str = "captures"  # see kept()
    lengths: tuple = (1, 7, 16, 34, 2)
    auto_class: str = "AutoModelForCausalLM"
    dead: str = ""  # pattern of tensors inside the layers that cannot matter
    transformers: int = 4  # major version that makes it
    weight_file_bytes: int = 32_000  # several files each
    wide: str = r"e_score_correction_bias$"  # pattern of tensors that are stored as float32


def residual(config_class, config, **options):
    """A row that differs in few flags from another one: the residual stream is enough."""
    return Family(config_class, config, keep="residual", **options)


KEY_BIAS = r"(key|k_proj)\.bias$"  # Without rope it adds the same to all scores of a query.

FAMILIES = {
    "llama": Family("LlamaConfig", LLAMA, lengths=(1, 7, 16, 41, 12), weight_file_bytes=48_000),
    "llama_f16": residual("LlamaConfig", {}, weights="f16"),
    "llama_f32": residual("LlamaConfig", {}, weights="f32", weight_file_bytes=48_000),
    "llama_bias": Family("LlamaConfig", dict(attention_bias=True, mlp_bias=True, head_dim=20),
                         keep="all"),
    "llama_dynamic": residual(
        "LlamaConfig", dict(max_position_embeddings=16, num_key_value_heads=1,
                            rope_scaling=dict(rope_type="dynamic", factor=2.0)),
        lengths=(1, 34, 16, 20, 7)),
    "qwen2": Family("Qwen2Config", dict(tie_word_embeddings=True, rope_theta=1e6), keep="all"),
    "qwen2_yarn": residual("Qwen2Config", dict(
        use_sliding_window=True, sliding_window=8, max_window_layers=1,
        rope_scaling=dict(YARN, original_max_position_embeddings=64, attention_factor=1.3,
                          beta_fast=4.0, beta_slow=0.5, truncate=False))),
    "qwen3": Family("Qwen3Config", dict(num_hidden_layers=3, head_dim=16, rope_theta=1e6),
                    keep="all"),
    "mistral": Family("MistralConfig", dict(sliding_window=8, head_dim=20), keep="all"),
    "ministral3": Family("Ministral3Config", dict(
        head_dim=16, sliding_window=None, rope_parameters=dict(
            YARN, rope_theta=1e6, beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=0.5,
            llama_4_scaling_beta=0.5)), transformers=5),
    "gemma": Family("GemmaConfig", dict(head_dim=16, num_key_value_heads=1,
                                        tie_word_embeddings=True)),
    "gemma2": Family("Gemma2Config", dict(
        head_dim=16, sliding_window=8, query_pre_attn_scalar=20, attn_logit_softcapping=3.0,
        final_logit_softcapping=3.0, tie_word_embeddings=True)),
    "gemma3_text": Family("Gemma3TextConfig", GEMMA3),
    "gemma3": residual("Gemma3Config", dict(text_config=GEMMA3, vision_config=VISION,
                                            mm_tokens_per_image=1),
                       auto_class="AutoModelForImageTextToText"),
    "phi3": Family("Phi3Config", dict(
        original_max_position_embeddings=16, partial_rotary_factor=0.5, rope_scaling=LONGROPE,
        sliding_window=20), lengths=(1, 7, 34, 16, 17)),
    "olmo2": Family("Olmo2Config"),
    "olmo3": Family("Olmo3Config", dict(SLIDING_THEN_FULL, rope_scaling=YARN, rope_theta=5e5)),
    "cohere": Family("CohereConfig", dict(use_qk_norm=True, logit_scale=0.5,
                                          tie_word_embeddings=True)),
    "cohere_no_qk_norm": residual("CohereConfig", dict(tie_word_embeddings=True,
                                                       attention_bias=True)),
    "cohere2": Family("Cohere2Config", dict(SLIDING_THEN_FULL, head_dim=16,
                                            tie_word_embeddings=True)),
    "granite": Family("GraniteConfig", dict(
        embedding_multiplier=3.0, residual_multiplier=0.4, attention_multiplier=0.15,
        logits_scaling=2.0, attention_bias=True, mlp_bias=True)),
    "glm4": Family("Glm4Config", dict(head_dim=16, partial_rotary_factor=0.5)),
    "smollm3": Family("SmolLM3Config", dict(
        no_rope_layers=[1, 0], use_sliding_window=True, sliding_window=8, rope_theta=5e6,
        tie_word_embeddings=True)),
    "seed_oss": Family("SeedOssConfig", dict(head_dim=16, attention_out_bias=True, mlp_bias=True)),
    "exaone4": Family("Exaone4Config", dict(SLIDING_THEN_FULL, rope_scaling=LLAMA["rope_scaling"])),
    "exaone4_full": residual("Exaone4Config", dict(
        sliding_window=None, layer_types=["full_attention"] * 2, tie_word_embeddings=True)),
    "gpt_neox": Family("GPTNeoXConfig", dict(rotary_pct=0.5)),
    "gpt_neox_sequential": residual("GPTNeoXConfig", dict(
        rotary_pct=0.5, use_parallel_residual=False, attention_bias=False)),
    "bert": Family("BertConfig", dict(tie_word_embeddings=True), dead=KEY_BIAS,
                   auto_class="AutoModelForMaskedLM"),
    "starcoder2": Family("Starcoder2Config", dict(sliding_window=8)),
    "stablelm": Family("StableLmConfig", dict(partial_rotary_factor=0.5, use_qkv_bias=True)),
    "stablelm_parallel": residual("StableLmConfig", dict(
        partial_rotary_factor=0.5, use_parallel_residual=True)),
    "phi": Family("PhiConfig"),
    "nemotron": Family("NemotronConfig", dict(head_dim=16)),
    "falcon": Family("FalconConfig", dict(new_decoder_architecture=True, bias=True)),
    "falcon_multi_query": residual("FalconConfig", dict(tie_word_embeddings=True)),
    "falcon_sequential": residual("FalconConfig", dict(
        num_kv_heads=4, parallel_attn=False, multi_query=False, bias=True)),
    "gpt2": Family("GPT2Config", dict(tie_word_embeddings=True, n_positions=64)),
    "bloom": Family("BloomConfig", dict(num_attention_heads=6), auto_class="AutoModel",
                    weight_file_bytes=48_000),
    "opt": Family("OPTConfig", dict(tie_word_embeddings=True), dead=KEY_BIAS),
    "mixtral": Family("MixtralConfig", dict(LOCAL, sliding_window=None)),
    "qwen2_moe": Family("Qwen2MoeConfig", dict(
        EXPERTS, num_experts_per_tok=3, shared_expert_intermediate_size=16, decoder_sparse_step=2,
        norm_topk_prob=False)),
    "qwen3_moe": Family("Qwen3MoeConfig", dict(
        EXPERTS, head_dim=16, num_hidden_layers=3, norm_topk_prob=True, mlp_only_layers=[0])),
    "gpt_oss": Family("GptOssConfig", dict(
        {**LOCAL, "intermediate_size": 32}, **SLIDING_THEN_FULL, hidden_size=64, head_dim=16,
        rope_theta=150000.0,
        rope_scaling=dict(YARN, truncate=False, beta_fast=32.0, beta_slow=1.0))),
    "granitemoe": Family("GraniteMoeConfig", dict(
        LOCAL, embedding_multiplier=3.0, residual_multiplier=0.4, attention_multiplier=0.15,
        logits_scaling=2.0)),
    "ernie4_5_moe": Family("Ernie4_5_MoeConfig", dict(
        num_hidden_layers=3, moe_num_experts=8, moe_k=3, moe_num_shared_experts=2,
        moe_intermediate_size=12,
        moe_layer_start_index=1, moe_layer_end_index=1, moe_layer_interval=1, moe_norm_min=0.55),
        wide=r"e_score_correction_bias$|mlp\.gate\.weight$"),
    "hunyuan_v1_moe": Family("HunYuanMoEV1Config", dict(
        head_dim=16, moe_topk=2, num_experts=8), wide=r"gate\.wg\.weight$"),
    "glm4_moe": Family("Glm4MoeConfig", dict(
        ROUTED, head_dim=16, partial_rotary_factor=0.5, attention_bias=True, use_qk_norm=True,
        n_shared_experts=1, first_k_dense_replace=1,
        routed_scaling_factor=1.5)),
    "deepseek_v2": Family("DeepseekV2Config", dict(
        LATENT, q_lora_rank=None, n_shared_experts=2, topk_method="greedy",
        routed_scaling_factor=1.5)),
    "deepseek_v2_groups": residual("DeepseekV2Config", dict(
        LATENT, q_lora_rank=20, n_shared_experts=1, topk_method="group_limited_greedy", n_group=4,
        topk_group=2, routed_scaling_factor=4.0, attention_bias=True)),
    "deepseek_v3": Family("DeepseekV3Config", DEEPSEEK3),
    "llama4_text": Family("Llama4TextConfig", LLAMA4),
    "minimax_m2": Family("MiniMaxM2Config", dict(
        LOCAL, head_dim=16, num_experts_per_tok=3, rope_parameters=dict(
            rope_type="default", rope_theta=5e6, partial_rotary_factor=0.5)), transformers=5),
    "glm4_moe_lite": Family("Glm4MoeLiteConfig", dict(
        SIGMOID, mlp_layer_types=["dense", "sparse", "sparse"]), transformers=5),
    "glm_moe_dsa": Family("GlmMoeDsaConfig", dict(
        SIGMOID, mlp_layer_types=["dense", "sparse", "sparse"], index_topk=64, index_n_heads=2,
        index_head_dim=16), transformers=5, dead=r"\.indexer\."),
}


@dataclass(frozen=True)
class Variant:
    """The checkpoint `of` again, written differently: its goldens hold for it too."""

    of: str
    transformers: int = 5  # major version that writes config.json
    renames: tuple = ()  # (text in tensor names, its replacement)
    left_out: str = ""  # how the names of tensors begin that are not there
    keys: dict = field(default_factory=dict)  # changes to config.json as it is; None: left out
    added: dict = field(default_factory=dict)  # {name inside a layer: shape} without influence


# As deepseek-ai/DeepSeek-V3.2 has it. The longest sample is as long as the index allows.
DEEPSEEK32 = dict(
    model_type="deepseek_v32", architectures=["DeepseekV32ForCausalLM"], index_head_dim=16,
    index_n_heads=2, index_topk=34, ep_size=1, moe_layer_freq=1, scoring_func="sigmoid",
    topk_method="noaux_tc", head_dim=None, qk_head_dim=None, pad_token_id=None, pretraining_tp=None,
    rope_interleave=None, rope_scaling=dict(
        type="yarn", **{k: v for k, v in DEEPSEEK3["rope_scaling"].items() if k != "rope_type"}))
INDEXER = {"self_attn.indexer." + name: shape for name, shape in {
    "wq_b.weight": (32, 20), "wk.weight": (16, 48), "k_norm.weight": (16,), "k_norm.bias": (16,),
    "weights_proj.weight": (2, 48)}.items()}
VARIANTS = {  # One weight file without an index each.
    "llama_tf5": Variant("llama"),
    "gemma3_text_tf5": Variant("gemma3_text"),
    "olmo3_tf5": Variant("olmo3"),
    "phi3_tf5": Variant("phi3"),
    "gpt_neox_tf5": Variant("gpt_neox"),
    "bert_base": Variant("bert", transformers=4, renames=(
        ("bert.", ""), ("LayerNorm.weight", "LayerNorm.gamma"),
        ("LayerNorm.bias", "LayerNorm.beta")), left_out="cls."),
    "deepseek_v32": Variant("deepseek_v3", keys=DEEPSEEK32, added=INDEXER),
}


def make_config(class_name, changes):
    """The family's config, with SHAPE for what `changes` does not say."""
    config_class = getattr(transformers, class_name)
    if "text_config" in changes:
        text = make_config(config_class.sub_configs["text_config"].__name__, changes["text_config"])
        return config_class(**{**changes, "text_config": text.to_dict()})
    known = config_class()
    return config_class(**{**{k: v for k, v in SHAPE.items() if hasattr(known, k)}, **changes})


def make_model(config, auto_class, seed):
    """A model with random weights."""
    model = getattr(transformers, auto_class).from_config(config, **EAGER)
    draw_weights(model, seed)
    return model


def draw_weights(model, seed):
    """Fill every parameter with values that make it matter: std 1/sqrt(fan_in), norms not 1."""
    generator = torch.Generator().manual_seed(seed)
    filled = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.data_ptr() in filled or not tensor.is_floating_point():
            continue  # Tied: the same storage under a second name.
        filled.add(tensor.data_ptr())
        kind = type(model.get_submodule(name.rpartition(".")[0])).__name__
        if "Norm" in kind and name.endswith("weight"):
            std, mean = 0.2, float(tensor.detach().mean())  # 0 where the norm multiplies by 1 + w.
        elif tensor.dim() == 1 or name.endswith("_bias"):
            std, mean = 0.1, 0.0
        elif "Embedding" in kind:
            std, mean = 0.5, 0.0
        else:
            # Experts of most families that have all in one tensor keep [experts, in, out].
            axis = 0 if kind == "Conv1D" else -1 if kind.startswith("GraniteMoe") else 1
            std, mean = 1.0 / math.sqrt(tensor.shape[axis]), 0.0
        with torch.no_grad():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * std + mean)


def narrow(model, type_name, wide):
    """Turn the weights to a type, all but those whose names the pattern `wide` finds."""
    kept = {key: tensor.clone() for key, tensor in model.state_dict().items()
            if wide and re.search(wide, key)}
    model.to(TYPES[type_name])
    for key, tensor in kept.items():
        model.get_parameter_or_buffer(key).data = tensor


def make_samples(vocab_size, lengths, seed):
    """Random token ids, one int64 tensor per sample."""
    generator = torch.Generator().manual_seed(seed + 1)
    return [torch.randint(FIRST_TOKEN_ID, vocab_size, (n,), generator=generator) for n in lengths]


def write_tokens(path, samples):
    offsets = torch.tensor([0] + [len(sample) for sample in samples]).cumsum(0)
    save_file({"input_ids": torch.cat(samples).to(torch.int32), "offsets": offsets}, path)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def use_published_keys(config_path):
    """`torch_dtype`, not `dtype`, as every checkpoint published with transformers 4 has it."""
    config = json.loads(config_path.read_text())
    if TRANSFORMERS_MAJOR == 4 and "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    write_json(config_path, config)


def save_model(model, folder, weight_file_bytes):
    """config.json and weight files of a model in its present type."""
    folder.mkdir(parents=True)
    model.save_pretrained(folder, max_shard_size=weight_file_bytes)
    (folder / "generation_config.json").unlink(missing_ok=True)
    use_published_keys(folder / "config.json")


def load_model(folder, auto_class, type_name):
    """The model in eval mode, and what did not fit when it was loaded."""
    model, report = getattr(transformers, auto_class).from_pretrained(
        folder, dtype=TYPES[type_name], output_loading_info=True, **EAGER)
    return model.eval(), report


def load_complete_model(folder, auto_class, type_name):
    model, report = load_model(folder, auto_class, type_name)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def run_sample(model, sample):
    """All captures of one sample, and output_hidden_states; [tokens, hidden] each."""
    model = copy.deepcopy(model)  # The rope of some types remembers the longest sample so far.
    layout = LAYOUTS.get(model.config.model_type, Layout())
    base, taken = getattr(model, "model", model.base_model), {}

    def rows(value):
        value = value[0] if isinstance(value, tuple) else value
        return value.detach().reshape(sample.numel(), -1).clone()

    def input_of(module, name):
        module.register_forward_pre_hook(
            lambda _, args, kwargs: taken.update(
                {name: rows(args[0] if args else kwargs["hidden_states"])}), with_kwargs=True)

    def output_of(module, name):
        module.register_forward_hook(lambda _, args, out: taken.update({name: rows(out)}))

    layers = base.get_submodule(layout.layers)
    input_of(layers[0], "embed")
    for index, layer in enumerate(layers):
        prefix = f"blocks.{index}."
        output_of(layer.get_submodule(layout.attention), prefix + "attn_out")
        if has_resid_mid(layer, layout, model.config):
            input_of(layer.get_submodule(layout.mid_input_of), prefix + "resid_mid")
        output_of(layer.get_submodule(layout.mlp), prefix + "mlp_out")
        output_of(layer, prefix + "resid_post")
    if layout.final_norm:
        output_of(base.get_submodule(layout.final_norm), "final.post_norm")
    watch = RouterWatch(model, layout)
    with torch.no_grad(), watch:
        out = model(input_ids=sample[None], output_hidden_states=True)
    return taken, [rows(state) for state in out.hidden_states], watch


class RouterWatch(torch.overrides.TorchFunctionMode):
    """Which experts the tokens of a sample meet, and how close the choices were."""

    def __init__(self, model, layout):
        super().__init__()
        self.config = model.config.get_text_config()
        self.layer, self.ids, self.out = None, None, None
        self.taken, self.margin = {}, math.inf
        base = getattr(model, "model", model.base_model)
        for index, layer in enumerate(base.get_submodule(layout.layers)):
            block = getattr(layer, layout.mlp.split(".")[0], None)
            router = getattr(block, "gate", getattr(block, "router", None))
            if router is None or not hasattr(block, "experts") and not hasattr(
                    block, "input_linear"):
                continue
            block.register_forward_pre_hook(lambda *_, index=index: self.begin(index))
            router.register_forward_hook(lambda _, args, out: setattr(self, "out", out))
            if hasattr(block, "experts"):
                block.experts.register_forward_pre_hook(lambda _, args: self.hand_over(args))
            block.register_forward_hook(lambda *_: self.end())

    def begin(self, index):
        self.layer, self.out = index, None

    def hand_over(self, args):
        """What experts in one module are given says it best, if they are given it."""
        if len(args) == 3 and not args[1].is_floating_point() and args[1].shape == args[2].shape:
            self.out = args[1], args[2]

    def end(self):
        ids, weights = self.chosen()
        order = ids.argsort(dim=-1)
        prefix = f"blocks.{self.layer}.router."
        self.taken[prefix + "ids"] = ids.gather(-1, order).to(torch.int32)
        self.taken[prefix + "weights"] = weights.float().gather(-1, order)
        self.layer = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if self.layer is not None and func in (torch.topk, torch.Tensor.topk):
            scores, count = args[0], (kwargs or {}).get("k", args[1] if len(args) > 1 else None)
            with torch._C.DisableTorchFunction():
                self.ids = out[1].reshape(-1, count)
                if count < scores.shape[-1]:
                    best = scores.float().sort(dim=-1, descending=True)[0]
                    gap = (best[..., count - 1] - best[..., count]) / best[..., count - 1].abs()
                    self.margin = min(self.margin, float(gap.min()))
        return out

    def chosen(self):
        """Ids and weights of each token's experts."""
        config, out, kind = self.config, self.out, self.config.model_type
        if isinstance(out, tuple) and len(out) == 2 and not out[0].is_floating_point():
            return out  # ids, weights
        if isinstance(out, tuple) and len(out) == 3 and not out[2].is_floating_point():
            return out[2], out[1]  # logits, weights, ids
        if kind in ("gpt_oss", "llama4_text"):
            return self.ids, out[0].gather(-1, self.ids)  # weights of all experts
        logits = (out[-1] if isinstance(out, tuple) else out).float().reshape(
            self.ids.shape[0], -1)
        if kind == "glm4_moe_lite" or kind == "glm_moe_dsa":
            weights = logits.sigmoid().gather(-1, self.ids)
        else:
            weights = logits.softmax(-1).gather(-1, self.ids)
        if getattr(config, "norm_topk_prob", True):
            weights = weights / weights.sum(-1, keepdim=True).clamp_min(
                getattr(config, "moe_norm_min", 0.0))
        return self.ids, weights * getattr(config, "routed_scaling_factor", 1.0)


def has_resid_mid(layer, layout, config):
    """Whether attention and MLP run one after the other."""
    return (getattr(layer, layout.mid_input_of, None) is not None
            and not getattr(config, "use_parallel_residual", False))


def run_all(model, samples):
    """Captures of all samples, rows in input order, and output_hidden_states."""
    return run_routed(model, samples)[:2]


def run_routed(model, samples):
    """As run_all(), and what routers chose, and the smallest relative gap of a choice."""
    runs = [run_sample(model, sample) for sample in samples]
    captures = {name: torch.cat([run[0][name] for run in runs]) for name in runs[0][0]}
    states = [torch.cat(states) for states in zip(*(run[1] for run in runs))]
    routed = {name: torch.cat([run[2].taken[name] for run in runs]).contiguous()
              for name in runs[0][2].taken}
    return captures, states, routed, min(run[2].margin for run in runs)


def layer_count(captures):
    return sum(name.endswith("resid_post") for name in captures)


def names_of_states(captures, states):
    """The capture that each output_hidden_states[i] is."""
    layers = layer_count(captures)
    names = ["embed"] + [f"blocks.{i}.resid_post" for i in range(layers)]
    if "final.post_norm" in captures:
        names[layers] = "final.post_norm"
    assert len(names) == len(states)
    assert all(torch.equal(captures[name], state) for name, state in zip(names, states))
    return names


def mid_is_a_sum(captures):
    """Whether every resid_mid is resid_pre + attn_out rounded once, and there is one."""
    before, sums = captures["embed"], []
    for index in range(layer_count(captures)):
        prefix = f"blocks.{index}."
        sums.append(prefix + "resid_mid" in captures and torch.equal(
            captures[prefix + "resid_mid"], before + captures[prefix + "attn_out"]))
        before = captures[prefix + "resid_post"]
    return all(sums)


def kept(captures, keep):
    """What goes into the file.

    "all" (for the C++ test of whole layers), what cannot be derived ("captures"), or the "residual".
    """
    if keep == "residual":
        left_out = ("attn_out", "resid_mid", "mlp_out")
    else:
        left_out = ("resid_mid",) if keep == "captures" and mid_is_a_sum(captures) else ()
    return {name: tensor.contiguous() for name, tensor in captures.items()
            if not name.endswith(left_out)}


def relative_errors(value, truth):
    """|value - truth| / |truth| of each row (L2 norms); 0 where both are 0."""
    return ((value.float() - truth).norm(dim=-1) / truth.norm(dim=-1)).nan_to_num(0.0)


def median_errors(captures, truth):
    """{capture: median over tokens of the relative error}; 0 means that every number is equal.

    A capture with few inexact tokens is left out: its median says neither.
    """
    medians = {}
    for name, value in sorted(captures.items()):
        errors = relative_errors(value, truth[name])
        median = round(float(errors.median()), 6)
        if median or not errors.any():
            medians[name] = median
    return medians


def dead_tensors(model, samples):
    """Tensors of the checkpoint that no capture depends on."""
    samples = [sample for sample in samples if len(sample) > 1]
    truth = run_all(model, samples)[0]
    dead, seen = [], set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.data_ptr() in seen or re.search(r"\bexperts\.[1-9]", name):
            continue  # One expert stands for all.
        seen.add(tensor.data_ptr())
        original = tensor.detach().clone()
        with torch.no_grad():
            ramp = torch.linspace(-0.5, 0.5, tensor.numel()).reshape(tensor.shape)
            tensor.add_(ramp * (original.abs().mean() + 0.05))
            nudged = run_all(model, samples)[0]
            tensor.copy_(original)
        if all(relative_errors(nudged[k], truth[k]).max() < NUDGE_MIN for k in truth):
            dead.append(name)
    return dead


def assert_expected(dead, pattern, family):
    """Only what comes after the layers, or sees no text, may be without influence."""
    expected = r"^(lm_head|embed_out|cls|pooler)\.|\.(vision_tower|multi_modal_projector)\."
    unexpected = [name for name in dead if not re.search(expected, name)
                  and not (pattern and re.search(pattern, name))]
    assert not unexpected, f"{family}: no influence: {unexpected}"


def make_family(name, out, seed):
    """Write one family's folder; with the next seed if a choice of experts is too close."""
    while not make_with_seed(name, out, seed):
        seed += 1


def make_with_seed(name, out, seed):
    family, folder = FAMILIES[name], out / name
    shutil.rmtree(folder, ignore_errors=True)
    config = make_config(family.config_class, family.config)
    model = make_model(config, family.auto_class, seed)
    narrow(model, family.weights, family.wide)
    save_model(model, folder / "model", family.weight_file_bytes)
    samples = make_samples(config.get_text_config().vocab_size, family.lengths, seed)
    write_tokens(folder / "tokens.safetensors", samples)

    model = load_complete_model(folder / "model", family.auto_class, "f32")
    captures, states, routed, margin = run_routed(model, samples)
    if margin < MARGIN_MIN:
        return False
    if routed:
        save_file(routed, folder / "router_f32.safetensors")
    save_file(kept(captures, family.keep), folder / "golden_f32.safetensors")
    dead = dead_tensors(model, samples)
    assert_expected(dead, family.dead, name)
    errors = {}
    if family.weights != "f32":
        model = load_complete_model(folder / "model", family.auto_class, family.weights)
        errors = median_errors(run_all(model, samples)[0], captures)
    write_json(folder / "meta.json", dict(
        family=name, transformers=transformers.__version__,
        torch=torch.__version__.split("+")[0], attn_implementation="eager", seed=seed,
        sample_lengths=family.lengths, weights=family.weights,
        golden=sorted({"f32", family.weights}), median_error_against_f32=errors, dead=dead,
        hidden_states=names_of_states(captures, states), resid_mid=resid_mid_of(captures)))
    return True


def resid_mid_of(captures):
    """"none" (the blocks have none), "sum" (resid_pre + attn_out) or "own"."""
    if "blocks.0.resid_mid" not in captures:
        return "none"
    return "sum" if mid_is_a_sum(captures) else "own"


def make_variant(name, out):
    """Write the folder of a variant; transformers must read the same numbers from it."""
    variant = VARIANTS[name]
    source, folder = out / variant.of, out / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "model").mkdir(parents=True)
    if variant.keys:
        config = json.loads((source / "model" / "config.json").read_text()) | variant.keys
        write_json(folder / "model" / "config.json",
                   {key: value for key, value in config.items() if value is not None})
    else:
        transformers.AutoConfig.from_pretrained(source / "model").save_pretrained(folder / "model")
        use_published_keys(folder / "model" / "config.json")
    tensors = {}
    for path in sorted((source / "model").glob("*.safetensors")):
        tensors.update(load_file(path))
    tensors = {renamed(key, variant.renames): tensor for key, tensor in tensors.items()
               if not (variant.left_out and key.startswith(variant.left_out))}
    layers = layer_count(load_file(source / "golden_f32.safetensors"))
    tensors.update(added_tensors(variant, layers))
    save_file(tensors, folder / "model" / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(source / "tokens.safetensors", folder / "tokens.safetensors")
    meta = json.loads((source / "meta.json").read_text())
    write_json(folder / "meta.json", {**meta, "family": name, "golden_of": variant.of})
    assert_same_numbers(folder, source, meta)


def added_tensors(variant, layers):
    """What a variant has besides, in each layer: vectors as float32, matrices as bfloat16."""
    generator = torch.Generator().manual_seed(0)
    return {f"model.layers.{layer}.{name}": torch.randn(shape, generator=generator).to(
                torch.float32 if len(shape) == 1 else torch.bfloat16)
            for layer in range(layers) for name, shape in variant.added.items()}


def renamed(tensor_name, renames):
    for old, new in renames:
        tensor_name = tensor_name.replace(old, new)
    return tensor_name


def assert_same_numbers(folder, source, meta):
    tokens = load_file(folder / "tokens.safetensors")
    samples = tokens["input_ids"].long().split(meta["sample_lengths"])
    model, _ = load_model(folder / "model", FAMILIES[meta["family"]].auto_class, "f32")
    captures, _ = run_all(model, samples)
    for name, truth in load_file(source / "golden_f32.safetensors").items():
        assert relative_errors(captures[name], truth).max() < VARIANT_ERROR_MAX, (folder, name)


def disk_bytes(folder):
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    parser.add_argument("--families", default="", help="comma-separated; default: all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # One summation order on every machine.
    transformers.utils.logging.disable_progress_bar()
    rows = {**FAMILIES, **VARIANTS}
    for name in [name for name in options.families.split(",") if name] or rows:
        if rows[name].transformers != TRANSFORMERS_MAJOR:
            print(f"{name:20s} skipped: made by transformers {rows[name].transformers}")
            continue
        if name in FAMILIES:
            make_family(name, options.out, options.seed)
        else:
            make_variant(name, options.out)
        folder = options.out / name
        files = len(list((folder / "model").glob("*.safetensors")))
        meta = json.loads((folder / "meta.json").read_text())
        error = max(meta["median_error_against_f32"].values(), default=0.0)
        print(f"{name:20s} {disk_bytes(folder) / 1024:5.0f} KiB  {files} weight files  "
              f"resid_mid {meta['resid_mid']:4s}  16-bit error {error:.4f}  "
              f"{len(meta['dead'])} dead", flush=True)


if __name__ == "__main__":
    main()
