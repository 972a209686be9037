#!/usr/bin/env python3
"""The big teachers as headers: config.json, index and weight files that are sparse behind their head.

Goal: plan for hundreds of gigabytes of weights from a few megabytes, with the shapes, types and
shards that the published checkpoints have.
Method: a table of published config.json keys and a rule for the tensors of each family. Data is
never written, so files have their true sizes and take no disk.

    teacher_headers.py NAME FOLDER
"""

import json
import pathlib
import struct
import sys

SHARD_BYTES = 5 * 10**9
TYPE_BYTES = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "U8": 1, "I32": 4, "I64": 8}

DEEPSEEK_YARN = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
                 "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"}
LATENT = {
    "attention_bias": False, "aux_loss_alpha": 0.001, "ep_size": 1, "hidden_act": "silu",
    "hidden_size": 7168, "intermediate_size": 18432, "kv_lora_rank": 512,
    "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_shared_experts": 1,
    "norm_topk_prob": True, "num_experts_per_tok": 8, "num_hidden_layers": 61,
    "pretraining_tp": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "scoring_func": "sigmoid", "seq_aux": True, "tie_word_embeddings": False,
    "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "use_cache": True, "v_head_dim": 128}

CONFIGS = {
    "deepseek_v3": {
        **LATENT, "model_type": "deepseek_v3", "first_k_dense_replace": 3,
        "max_position_embeddings": 163840, "n_group": 8, "n_routed_experts": 256,
        "num_attention_heads": 128, "num_key_value_heads": 128, "num_nextn_predict_layers": 1,
        "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3",
                                "quant_method": "fp8", "weight_block_size": [128, 128]},
        "rms_norm_eps": 1e-06, "rope_scaling": DEEPSEEK_YARN, "rope_theta": 10000,
        "routed_scaling_factor": 2.5, "topk_group": 4, "transformers_version": "4.33.1",
        "vocab_size": 129280},
    "kimi_k2": {
        **LATENT, "model_type": "kimi_k2", "first_k_dense_replace": 1,
        "max_position_embeddings": 262144, "n_group": 1, "n_routed_experts": 384,
        "num_attention_heads": 64, "num_key_value_heads": 64, "num_nextn_predict_layers": 0,
        "quantization_config": {
            "config_groups": {"group_0": {
                "input_activations": None, "output_activations": None, "targets": ["Linear"],
                "weights": {"actorder": None, "block_structure": None, "dynamic": False,
                            "group_size": 32, "num_bits": 4, "observer": "minmax",
                            "observer_kwargs": {}, "strategy": "group", "symmetric": True,
                            "type": "int"}}},
            "format": "pack-quantized",
            "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*",
                       "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"],
            "kv_cache_scheme": None, "quant_method": "compressed-tensors",
            "quantization_status": "compressed"},
        "rms_norm_eps": 1e-05,
        "rope_scaling": {**DEEPSEEK_YARN, "beta_fast": 1, "factor": 64}, "rope_theta": 50000,
        "routed_scaling_factor": 2.827, "topk_group": 1, "transformers_version": "4.48.3",
        "vocab_size": 163840},
    "qwen3_moe": {
        "model_type": "qwen3_moe", "attention_bias": False, "attention_dropout": 0.0,
        "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 12288, "max_position_embeddings": 40960, "max_window_layers": 94,
        "mlp_only_layers": [], "moe_intermediate_size": 1536, "norm_topk_prob": True,
        "num_attention_heads": 64, "num_experts": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 94, "num_key_value_heads": 4, "output_router_logits": False,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001, "sliding_window": None, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True,
        "use_sliding_window": False, "vocab_size": 151936},
    "gpt_oss": {
        "model_type": "gpt_oss", "attention_bias": True, "attention_dropout": 0.0,
        "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880,
        "initial_context_length": 4096, "intermediate_size": 2880,
        "layer_types": ["sliding_attention", "full_attention"] * 18,
        "max_position_embeddings": 131072, "num_attention_heads": 64, "num_experts_per_tok": 4,
        "num_hidden_layers": 36, "num_key_value_heads": 8, "num_local_experts": 128,
        "output_router_logits": False,
        "quantization_config": {
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router",
                                       "model.embed_tokens", "lm_head"],
            "quant_method": "mxfp4"},
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
                         "original_max_position_embeddings": 4096, "rope_type": "yarn",
                         "truncate": False},
        "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128,
        "swiglu_limit": 7.0, "tie_word_embeddings": False, "transformers_version": "4.55.0.dev0",
        "use_cache": True, "vocab_size": 201088},
    "glm4_moe": {
        "model_type": "glm4_moe", "attention_bias": True, "attention_dropout": 0.0,
        "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120, "partial_rotary_factor": 0.5,
        "first_k_dense_replace": 3, "intermediate_size": 12288,
        "max_position_embeddings": 131072, "moe_intermediate_size": 1536, "n_group": 1,
        "n_routed_experts": 160, "n_shared_experts": 1, "norm_topk_prob": True,
        "num_attention_heads": 96, "num_experts_per_tok": 8, "num_hidden_layers": 92,
        "num_key_value_heads": 8, "num_nextn_predict_layers": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": None, "rope_theta": 1000000, "routed_scaling_factor": 2.5,
        "tie_word_embeddings": False, "topk_group": 1, "torch_dtype": "bfloat16",
        "transformers_version": "4.54.0", "use_cache": True, "use_qk_norm": True,
        "vocab_size": 151552},
    "mixtral": {
        "model_type": "mixtral", "attention_dropout": 0.0, "hidden_act": "silu",
        "hidden_size": 6144, "intermediate_size": 16384, "max_position_embeddings": 65536,
        "num_attention_heads": 48, "num_experts_per_tok": 2, "num_hidden_layers": 56,
        "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000, "router_aux_loss_coef": 0.001,
        "router_jitter_noise": 0.0, "sliding_window": None, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "transformers_version": "4.39.3", "use_cache": True,
        "vocab_size": 32000},
}


def plain(name, rows, columns):
    yield name + ".weight", "BF16", [rows, columns]


def fp8_blocks(name, rows, columns):
    yield name + ".weight", "F8_E4M3", [rows, columns]
    yield name + ".weight_scale_inv", "F32", [-(-rows // 128), -(-columns // 128)]


def packed_int4(name, rows, columns):
    yield name + ".weight_packed", "I32", [rows, columns // 8]
    yield name + ".weight_scale", "BF16", [rows, columns // 32]
    yield name + ".weight_shape", "I64", [2]


def gated_mlp(matrix, name, hidden, width, gate="gate_proj", up="up_proj", down="down_proj"):
    yield from matrix(f"{name}.{gate}", width, hidden)
    yield from matrix(f"{name}.{up}", width, hidden)
    yield from matrix(f"{name}.{down}", hidden, width)


def vector(name, width, type_name="BF16"):
    yield name, type_name, [width]


def latent_attention(matrix, name, config):
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    nope, rope = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    q_rank, kv_rank = config["q_lora_rank"], config["kv_lora_rank"]
    value = config["v_head_dim"]
    yield from matrix(name + ".q_a_proj", q_rank, hidden)
    yield from vector(name + ".q_a_layernorm.weight", q_rank)
    yield from matrix(name + ".q_b_proj", heads * (nope + rope), q_rank)
    yield from matrix(name + ".kv_a_proj_with_mqa", kv_rank + rope, hidden)
    yield from vector(name + ".kv_a_layernorm.weight", kv_rank)
    yield from matrix(name + ".kv_b_proj", heads * (nope + value), kv_rank)
    yield from matrix(name + ".o_proj", hidden, heads * value)


def attention(name, config, bias=(), qk_norm=False):
    """@param bias  Which of q, k, v, o have one."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim", hidden // heads)
    keys = config["num_key_value_heads"] * width
    for one, rows, columns in (("q", heads * width, hidden), ("k", keys, hidden),
                               ("v", keys, hidden), ("o", hidden, heads * width)):
        yield from plain(f"{name}.{one}_proj", rows, columns)
        if one in bias:
            yield from vector(f"{name}.{one}_proj.bias", rows)
    if qk_norm:
        yield from vector(name + ".q_norm.weight", width)
        yield from vector(name + ".k_norm.weight", width)


def routed(name, config, expert, shared, score_bias):
    """Experts with one matrix a tensor, as DeepSeek and those after it keep them."""
    hidden, width = config["hidden_size"], config["moe_intermediate_size"]
    experts = config.get("n_routed_experts") or config["num_experts"]
    yield from plain(name + ".gate", experts, hidden)
    if score_bias:
        yield from vector(name + ".gate.e_score_correction_bias", experts, "F32")
    for i in range(experts):
        yield from gated_mlp(expert, f"{name}.experts.{i}", hidden, width)
    if shared:
        yield from gated_mlp(shared, name + ".shared_experts", hidden, width)


def gpt_oss_experts(name, config):
    hidden, width, experts = (config["hidden_size"], config["intermediate_size"],
                              config["num_local_experts"])
    yield from plain(name + ".router", experts, hidden)
    yield from vector(name + ".router.bias", experts)
    for matrix, rows, columns in (("gate_up_proj", 2 * width, hidden), ("down_proj", hidden, width)):
        yield f"{name}.experts.{matrix}_blocks", "U8", [experts, rows, columns // 32, 16]
        yield f"{name}.experts.{matrix}_scales", "U8", [experts, rows, columns // 32]
        yield f"{name}.experts.{matrix}_bias", "BF16", [experts, rows]


def layer_tensors(config, layer):
    name = f"model.layers.{layer}"
    family, hidden = config["model_type"], config["hidden_size"]
    yield from vector(name + ".input_layernorm.weight", hidden)
    yield from vector(name + ".post_attention_layernorm.weight", hidden)
    dense = layer < config.get("first_k_dense_replace", 0)
    if family in ("deepseek_v3", "kimi_k2"):
        matrix = fp8_blocks if family == "deepseek_v3" else plain
        yield from latent_attention(matrix, name + ".self_attn", config)
        if dense:
            yield from gated_mlp(matrix, name + ".mlp", hidden, config["intermediate_size"])
        else:
            expert = fp8_blocks if family == "deepseek_v3" else packed_int4
            yield from routed(name + ".mlp", config, expert, matrix, score_bias=True)
    elif family == "glm4_moe":
        yield from attention(name + ".self_attn", config, bias="qkv", qk_norm=True)
        if dense:
            yield from gated_mlp(plain, name + ".mlp", hidden, config["intermediate_size"])
        else:
            yield from routed(name + ".mlp", config, plain, plain, score_bias=True)
    elif family == "qwen3_moe":
        yield from attention(name + ".self_attn", config, qk_norm=True)
        yield from routed(name + ".mlp", config, plain, None, score_bias=False)
    elif family == "gpt_oss":
        yield from attention(name + ".self_attn", config, bias="qkvo")
        yield from vector(name + ".self_attn.sinks", config["num_attention_heads"])
        yield from gpt_oss_experts(name + ".mlp", config)
    else:
        yield from attention(name + ".self_attn", config)
        moe = name + ".block_sparse_moe"
        yield from plain(moe + ".gate", config["num_local_experts"], hidden)
        for i in range(config["num_local_experts"]):
            yield from gated_mlp(plain, f"{moe}.experts.{i}", hidden, config["intermediate_size"],
                                 "w1", "w3", "w2")


def next_token_layer(config, layer):
    """What predicts one token further ahead: a layer, with an embedding and a head of its own."""
    name, hidden = f"model.layers.{layer}", config["hidden_size"]
    yield from plain(name + ".embed_tokens", config["vocab_size"], hidden)
    yield from vector(name + ".enorm.weight", hidden)
    yield from vector(name + ".hnorm.weight", hidden)
    yield from plain(name + ".eh_proj", hidden, 2 * hidden)
    yield from vector(name + ".shared_head.norm.weight", hidden)
    yield from plain(name + ".shared_head.head", config["vocab_size"], hidden)
    yield from layer_tensors(config, layer)


def tensors_of(config):
    """(name, type, shape) of each, in the order that the shards are filled in."""
    hidden, vocab, layers = (config["hidden_size"], config["vocab_size"],
                             config["num_hidden_layers"])
    yield from plain("model.embed_tokens", vocab, hidden)
    for layer in range(layers):
        yield from layer_tensors(config, layer)
    yield from vector("model.norm.weight", hidden)
    yield from plain("lm_head", vocab, hidden)
    for layer in range(config.get("num_nextn_predict_layers", 0)):
        yield from next_token_layer(config, layers + layer)


def tensor_bytes(type_name, shape):
    count = TYPE_BYTES[type_name]
    for extent in shape:
        count *= extent
    return count


def split_into_shards(tensors):
    shards, room = [], 0
    for tensor in tensors:
        size = tensor_bytes(*tensor[1:])
        if not shards or size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(tensor)
        room -= size
    return shards


def write_shard(path, tensors):
    """By type, then by name, as safetensors' own writer orders them; nothing behind the header."""
    header, at = {}, 0
    for name, type_name, shape in sorted(tensors, key=lambda t: (-TYPE_BYTES[t[1]], t[0])):
        size = tensor_bytes(type_name, shape)
        header[name] = {"dtype": type_name, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)


def write_model(folder, config, tensors):
    """A checkpoint of these tensors that takes no disk for its weights.

    @return  Bytes of all tensors.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    tensors = list(tensors)
    shards = split_into_shards(tensors)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):06}.safetensors"
        write_shard(folder / name, shard)
        weight_map.update((tensor[0], name) for tensor in shard)
    total = sum(tensor_bytes(*tensor[1:]) for tensor in tensors)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return total


def write_teacher(folder, name):
    """See write_model()."""
    return write_model(folder, CONFIGS[name], tensors_of(CONFIGS[name]))


if __name__ == "__main__":
    print(write_teacher(sys.argv[2], sys.argv[1]))
