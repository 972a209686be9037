// Goal: the config.json of well-known models with experts or latent attention, as published,
// becomes the model they are; nothing in them is refused. Method: documents of our own with the
// keys and values of the originals; what sets each family apart is checked by hand.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "weightmap/model_config.h"

namespace librarian::weightmap {
namespace {

using gpu_exec::ExpertStorage;
using gpu_exec::GroupRank;
using gpu_exec::LayerSpec;
using gpu_exec::MoeSpec;
using gpu_exec::QkNorm;
using gpu_exec::RopeStyle;
using gpu_exec::RouterScore;

ModelConfig parsed(const std::string& json) {
  auto config = parse_model_config(json, "config.json");
  EXPECT_TRUE(config) << config.error().message();
  return config ? *std::move(config) : ModelConfig{};
}
const LayerSpec& first(const ModelConfig& config) { return config.spec.layers.front(); }
const LayerSpec& last(const ModelConfig& config) { return config.spec.layers.back(); }

/// Layers without experts at the start, with all behind them having some.
std::size_t dense_layers(const ModelConfig& config) {
  const auto& layers = config.spec.layers;
  const auto sparse = std::find_if(layers.begin(), layers.end(),
                                   [](const LayerSpec& layer) { return layer.moe.experts != 0; });
  EXPECT_TRUE(std::all_of(sparse, layers.end(),
                          [](const LayerSpec& layer) { return layer.moe.experts != 0; }));
  return static_cast<std::size_t>(sparse - layers.begin());
}

// mistralai/Mixtral-8x22B-v0.1
TEST(PublishedMoe, Mixtral8x22B) {
  const ModelConfig config = parsed(R"({
    "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 6144, "initializer_range": 0.02,
    "intermediate_size": 16384, "max_position_embeddings": 65536, "model_type": "mixtral",
    "num_attention_heads": 48, "num_experts_per_tok": 2, "num_hidden_layers": 56,
    "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": false,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000, "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0, "sliding_window": null, "tie_word_embeddings": false,
    "torch_dtype": "bfloat16", "transformers_version": "4.40.0.dev0", "use_cache": true,
    "vocab_size": 32000})");
  ASSERT_EQ(config.spec.layers.size(), 56U);
  EXPECT_EQ(dense_layers(config), 0U);
  const MoeSpec& moe = last(config).moe;
  EXPECT_EQ(moe, (MoeSpec{.experts = 8, .top_k = 2, .width = 16384}));
  EXPECT_EQ(last(config).attention.head_dim, 128U);
  EXPECT_EQ(last(config).attention.window, 0U);
}

// Qwen/Qwen3-235B-A22B
TEST(PublishedMoe, Qwen3x235B) {
  const ModelConfig config = parsed(R"({
    "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 12288, "max_position_embeddings": 40960, "max_window_layers": 94,
    "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 1536,
    "norm_topk_prob": true, "num_attention_heads": 64, "num_experts": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 94, "num_key_value_heads": 4,
    "output_router_logits": false, "rms_norm_eps": 1e-06, "rope_scaling": null,
    "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": null,
    "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
    "use_cache": true, "use_sliding_window": false, "vocab_size": 151936})");
  ASSERT_EQ(config.spec.layers.size(), 94U);
  EXPECT_EQ(dense_layers(config), 0U);
  EXPECT_EQ(last(config).moe, (MoeSpec{.experts = 128, .top_k = 8, .width = 1536}));
  EXPECT_EQ(last(config).attention.qk_norm, QkNorm::head);
}

// Qwen/Qwen1.5-MoE-A2.7B
TEST(PublishedMoe, Qwen15Moe) {
  const ModelConfig config = parsed(R"({
    "architectures": ["Qwen2MoeForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "decoder_sparse_step": 1, "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 5632, "max_position_embeddings": 8192,
    "max_window_layers": 21, "model_type": "qwen2_moe", "moe_intermediate_size": 1408,
    "norm_topk_prob": false, "num_attention_heads": 16, "num_experts": 60,
    "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 16,
    "output_router_logits": false, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001, "shared_expert_intermediate_size": 5632,
    "sliding_window": 32768, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    "transformers_version": "4.39.0.dev0", "use_cache": true, "use_sliding_window": false,
    "vocab_size": 151936})");
  EXPECT_EQ(last(config).moe, (MoeSpec{.experts = 60,
                                       .top_k = 4,
                                       .width = 1408,
                                       .renormalise = false,
                                       .shared_width = 5632,
                                       .shared_gate = true}));
  EXPECT_TRUE(last(config).attention.qkv_bias);
}

constexpr const char* kGptOss120B = R"({
  "architectures": ["GptOssForCausalLM"], "attention_bias": true, "attention_dropout": 0.0,
  "eos_token_id": 200002, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu",
  "hidden_size": 2880, "initial_context_length": 4096, "initializer_range": 0.02,
  "intermediate_size": 2880, "layer_types": [LAYERS], "max_position_embeddings": 131072,
  "model_type": "gpt_oss", "num_attention_heads": 64, "num_experts_per_tok": 4,
  "num_hidden_layers": 36, "num_key_value_heads": 8, "num_local_experts": 128,
  "output_router_logits": false, "pad_token_id": 199999,
  "quantization_config": {"modules_to_not_convert": ["model.layers.*.self_attn",
    "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"], "quant_method": "mxfp4"},
  "rms_norm_eps": 1e-05, "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
    "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": false},
  "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0,
  "tie_word_embeddings": false, "transformers_version": "4.55.0.dev0", "use_cache": true,
  "vocab_size": 201088})";

TEST(PublishedMoe, GptOss120B) {
  std::string json = kGptOss120B;
  std::string types;
  for (int pair = 0; pair < 18; ++pair) {
    types += std::string(pair == 0 ? "" : ",") + R"("sliding_attention","full_attention")";
  }
  json.replace(json.find("LAYERS"), 6, types);
  const ModelConfig config = parsed(json);
  ASSERT_EQ(config.spec.layers.size(), 36U);
  EXPECT_EQ(last(config).moe, (MoeSpec{.experts = 128,
                                       .top_k = 4,
                                       .width = 2880,
                                       .storage = ExpertStorage::stacked_transposed,
                                       .fused = true,
                                       .interleaved = true,
                                       .bias = true,
                                       .router_bias = true}));
  EXPECT_EQ(last(config).mlp.activation, gpu_exec::Activation::clamped_swish);
  EXPECT_EQ(first(config).attention.window, 128U);
  EXPECT_EQ(last(config).attention.window, 0U);
  EXPECT_TRUE(last(config).attention.sinks && last(config).attention.qkv_bias &&
              last(config).attention.out_bias);
  EXPECT_NEAR(last(config).attention.rope.cos_sin_multiplier, 0.1 * std::log(32.0) + 1, 1e-6);
}

// Catches: the theta in the file left for the family's own where `rope_scaling` is not said.
TEST(PublishedMoe, GptOssHasItsOwnRopeWithTheThetaInTheFile) {
  constexpr const char* kSizes = R"("hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 32,
    "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 32})";
  const auto rope_of = [&](const std::string& said) {
    return first(parsed(R"({"model_type": "gpt_oss", )" + said + kSizes)).attention.rope;
  };
  const std::string scaling = R"("rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0,
    "factor": 32.0, "original_max_position_embeddings": 4096, "rope_type": "yarn",
    "truncate": false}, )";
  EXPECT_EQ(rope_of(""), rope_of(R"("rope_theta": 150000, )" + scaling));
  EXPECT_EQ(rope_of(R"("rope_theta": 500, )"), rope_of(R"("rope_theta": 500, )" + scaling));
}

// The keys of deepseek-ai/DeepSeek-V3 and R1; `more` comes first.
std::string deepseek_v3(const std::string& more) {
  return "{" + more + R"(
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, "aux_loss_alpha": 0.001,
    "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "hidden_act": "silu",
    "hidden_size": 7168, "initializer_range": 0.02, "intermediate_size": 18432,
    "kv_lora_rank": 512, "max_position_embeddings": 163840, "moe_intermediate_size": 2048,
    "moe_layer_freq": 1, "norm_topk_prob": true, "num_experts_per_tok": 8,
    "num_hidden_layers": 61, "pretraining_tp": 1, "q_lora_rank": 1536,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
    "scoring_func": "sigmoid", "seq_aux": true, "tie_word_embeddings": false,
    "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "transformers_version": "4.33.1",
    "use_cache": true, "v_head_dim": 128, "n_shared_experts": 1})";
}

TEST(PublishedMoe, DeepSeekV3) {
  const ModelConfig config = parsed(deepseek_v3(R"(
    "model_type": "deepseek_v3", "first_k_dense_replace": 3, "n_group": 8, "topk_group": 4,
    "n_routed_experts": 256, "num_attention_heads": 128, "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1, "routed_scaling_factor": 2.5, "vocab_size": 129280,
    "rope_theta": 10000, "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40,
      "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
      "type": "yarn"},
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
      "weight_block_size": [128, 128]},)"));
  ASSERT_EQ(config.spec.layers.size(), 61U);
  EXPECT_EQ(dense_layers(config), 3U);
  EXPECT_EQ(config.names.layers_beyond, 1);
  EXPECT_EQ(first(config).mlp.width, 18432U);
  EXPECT_EQ(last(config).moe, (MoeSpec{.experts = 256,
                                       .top_k = 8,
                                       .width = 2048,
                                       .score = RouterScore::sigmoid,
                                       .select_bias = true,
                                       .groups = 8,
                                       .top_groups = 4,
                                       .multiplier = 2.5F,
                                       .shared_width = 2048}));
  const gpu_exec::AttentionSpec& attention = last(config).attention;
  EXPECT_EQ(attention.head_dim, 192U);
  EXPECT_EQ(attention.kv_heads, 128U);
  EXPECT_EQ(
      attention.latent,
      (gpu_exec::LatentSpec{
          .kv_rank = 512, .q_rank = 1536, .nope_dim = 128, .rope_dim = 64, .value_dim = 128}));
  EXPECT_EQ(attention.rope.rotary_dim, 64U);
  EXPECT_EQ(attention.rope.style, RopeStyle::pairs);
  EXPECT_EQ(attention.rope.cos_sin_multiplier, 1.0F);
  const double mscale = 0.1 * std::log(40.0) + 1;
  EXPECT_NEAR(attention.scale, mscale * mscale / std::sqrt(192.0), 1e-7);
}

// moonshotai/Kimi-K2-Instruct: the same with other sizes; and Kimi-K2.5, whose text part it is.
TEST(PublishedMoe, KimiK2) {
  const std::string text = deepseek_v3(R"(
    "model_type": "kimi_k2", "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "n_routed_experts": 384, "num_attention_heads": 64, "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0, "routed_scaling_factor": 2.827, "vocab_size": 163840,
    "rope_theta": 50000.0, "rope_scaling": {"beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0,
      "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
      "type": "yarn"},)");
  for (const std::string& json :
       {text, R"({"architectures": ["KimiK25ForConditionalGeneration"], "model_type": "kimi_k25",
                  "torch_dtype": "bfloat16", "vision_config": {"patch_size": 14},
                  "ignore_index": -100, "media_placeholder_token_id": 163605,
                  "use_unified_vision_chunk": true, "video_placeholder": "<|v|>",
                  "tie_word_embeddings": false,
                  "text_config": )" +
                  text + "}"}) {
    const ModelConfig config = parsed(json);
    ASSERT_EQ(config.spec.layers.size(), 61U);
    EXPECT_EQ(dense_layers(config), 1U);
    EXPECT_EQ(last(config).moe.experts, 384U);
    EXPECT_EQ(last(config).moe.groups, 1U);
    EXPECT_EQ(last(config).moe.multiplier, 2.827F);
    EXPECT_EQ(last(config).attention.heads, 64U);
    EXPECT_EQ(config.names.layers_beyond, 0);
  }
}

// deepseek-ai/DeepSeek-V3.2: the index of keys is not needed for samples that it would not cut.
TEST(PublishedMoe, DeepSeekV32) {
  const ModelConfig config = parsed(deepseek_v3(R"(
    "model_type": "deepseek_v32", "first_k_dense_replace": 3, "n_group": 8, "topk_group": 4,
    "n_routed_experts": 256, "num_attention_heads": 128, "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1, "routed_scaling_factor": 2.5, "vocab_size": 129280,
    "index_head_dim": 128, "index_n_heads": 64, "index_topk": 2048,
    "rope_theta": 10000, "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40,
      "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
      "type": "yarn"},)"));
  EXPECT_EQ(config.sample_tokens_max, 2048U);
  EXPECT_EQ(last(config).moe.groups, 8U);
}

// zai-org/GLM-5
TEST(PublishedMoe, Glm5) {
  const ModelConfig config = parsed(R"({
    "architectures": ["GlmMoeDsaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "dtype": "bfloat16", "eos_token_id": [154820, 154827, 154829], "ep_size": 1,
    "first_k_dense_replace": 3, "hidden_act": "silu", "head_dim": 64, "hidden_size": 6144,
    "index_head_dim": 128, "index_n_heads": 32, "index_topk": 2048,
    "indexer_rope_interleave": true, "initializer_range": 0.02, "intermediate_size": 12288,
    "kv_lora_rank": 512, "max_position_embeddings": 202752, "moe_intermediate_size": 2048,
    "moe_layer_freq": 1, "model_type": "glm_moe_dsa", "n_group": 1, "n_routed_experts": 256,
    "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 64,
    "num_experts_per_tok": 8, "num_hidden_layers": 78, "num_key_value_heads": 64,
    "num_nextn_predict_layers": 1, "pad_token_id": 154820, "pretraining_tp": 1,
    "q_lora_rank": 2048, "qk_head_dim": 256, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-05, "rope_interleave": true,
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
    "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": false,
    "topk_group": 1, "topk_method": "noaux_tc", "transformers_version": "5.0.2.dev0",
    "use_cache": true, "v_head_dim": 256, "vocab_size": 154880})");
  ASSERT_EQ(config.spec.layers.size(), 78U);
  EXPECT_EQ(dense_layers(config), 3U);
  EXPECT_EQ(config.sample_tokens_max, 2048U);
  EXPECT_EQ(last(config).attention.head_dim, 256U);
  EXPECT_EQ(last(config).attention.scale, 0.0625F);
  EXPECT_EQ(last(config).attention.latent.epsilon, 1e-6F) << "whatever rms_norm_eps says";
}

// zai-org/GLM-4.5
TEST(PublishedMoe, Glm45) {
  const ModelConfig config = parsed(R"({
    "architectures": ["Glm4MoeForCausalLM"], "attention_bias": true, "attention_dropout": 0.0,
    "eos_token_id": [151329, 151336, 151338], "first_k_dense_replace": 3, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02,
    "intermediate_size": 12288, "max_position_embeddings": 131072, "model_type": "glm4_moe",
    "moe_intermediate_size": 1536, "n_group": 1, "n_routed_experts": 160, "n_shared_experts": 1,
    "norm_topk_prob": true, "num_attention_heads": 96, "num_experts_per_tok": 8,
    "num_hidden_layers": 92, "num_key_value_heads": 8, "num_nextn_predict_layers": 1,
    "pad_token_id": 151329, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05,
    "rope_scaling": null, "rope_theta": 1000000, "routed_scaling_factor": 2.5,
    "tie_word_embeddings": false, "topk_group": 1, "torch_dtype": "bfloat16",
    "transformers_version": "4.54.0", "use_cache": true, "use_qk_norm": true,
    "vocab_size": 151552})");
  ASSERT_EQ(config.spec.layers.size(), 92U);
  EXPECT_EQ(dense_layers(config), 3U);
  EXPECT_EQ(last(config).moe, (MoeSpec{.experts = 160,
                                       .top_k = 8,
                                       .width = 1536,
                                       .score = RouterScore::sigmoid,
                                       .select_bias = true,
                                       .multiplier = 2.5F,
                                       .shared_width = 1536}));
  EXPECT_EQ(last(config).attention.rope.rotary_dim, 64U);
  EXPECT_EQ(last(config).attention.qk_norm, QkNorm::head);
  EXPECT_TRUE(last(config).attention.qkv_bias);
  EXPECT_FALSE(last(config).attention.out_bias);
}

// MiniMaxAI/MiniMax-M2
TEST(PublishedMoe, MiniMaxM2) {
  const ModelConfig config = parsed(R"({
    "architectures": ["MiniMaxM2ForCausalLM"], "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_minimax_m2.MiniMaxM2Config"},
    "attn_type_list": [1, 1], "bos_token_id": null, "eos_token_id": null, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 3072, "initializer_range": 0.02,
    "intermediate_size": 1536, "layernorm_full_attention_beta": 1.0,
    "layernorm_linear_attention_beta": 1.0, "layernorm_mlp_beta": 1.0,
    "max_position_embeddings": 196608, "mlp_intermediate_size": 8192, "model_type": "minimax_m2",
    "mtp_transformer_layers": 1, "num_attention_heads": 48, "num_experts_per_tok": 8,
    "num_hidden_layers": 62, "num_key_value_heads": 8, "num_local_experts": 256,
    "num_mtp_modules": 3, "output_router_logits": false, "qk_norm_type": "per_layer",
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "float8_e4m3fn",
      "quant_method": "fp8", "weight_block_size": [128, 128],
      "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"]},
    "rms_norm_eps": 1e-06, "rope_theta": 5000000, "rotary_dim": 64,
    "router_aux_loss_coef": 0.001, "router_jitter_noise": 0.0, "scoring_func": "sigmoid",
    "shared_intermediate_size": 0, "shared_moe_mode": "sigmoid", "sliding_window": null,
    "tie_word_embeddings": false, "transformers_version": "4.46.1", "use_cache": true,
    "use_mtp": true, "use_qk_norm": true, "use_routing_bias": true, "vocab_size": 200064})");
  ASSERT_EQ(config.spec.layers.size(), 62U);
  EXPECT_EQ(last(config).moe, (MoeSpec{.experts = 256,
                                       .top_k = 8,
                                       .width = 1536,
                                       .score = RouterScore::sigmoid,
                                       .select_bias = true}));
  EXPECT_EQ(last(config).attention.rope.rotary_dim, 64U);
  EXPECT_EQ(last(config).attention.qk_norm, QkNorm::full);
}

// baidu/ERNIE-4.5-300B-A47B-PT
TEST(PublishedMoe, Ernie45x300B) {
  const ModelConfig config = parsed(R"({
    "architectures": ["Ernie4_5_MoeForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 8192, "intermediate_size": 28672,
    "max_position_embeddings": 131072, "model_type": "ernie4_5_moe",
    "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 54,
    "pad_token_id": 0, "rms_norm_eps": 1e-05, "use_cache": false, "vocab_size": 103424,
    "rope_theta": 500000, "tie_word_embeddings": false, "use_bias": false,
    "moe_num_experts": 64, "moe_num_shared_experts": 0, "moe_layer_start_index": 3,
    "moe_layer_end_index": 53, "moe_intermediate_size": 3584, "moe_capacity": [64, 64, 64],
    "moe_gate": "topk", "moe_k": 8, "moe_layer_interval": 1, "moe_use_aux_free": true,
    "num_nextn_predict_layers": 1, "torch_dtype": "bfloat16"})");
  ASSERT_EQ(config.spec.layers.size(), 54U);
  EXPECT_EQ(dense_layers(config), 3U);
  EXPECT_EQ(last(config).moe, (MoeSpec{.experts = 64,
                                       .top_k = 8,
                                       .width = 3584,
                                       .select_bias = true,
                                       .renormalise_floor = 1e-12F}));
  EXPECT_EQ(last(config).attention.rope.style, RopeStyle::pairs);
}

// tencent/Hunyuan-A13B-Instruct
TEST(PublishedMoe, HunyuanA13B) {
  const ModelConfig config = parsed(R"({
    "add_classification_head": false, "architectures": ["HunYuanMoEV1ForCausalLM"],
    "attention_bias": false, "attention_dropout": 0.1, "attention_head_dim": 128,
    "bos_token_id": 1, "cla_share_factor": 2, "class_num": 0, "dense_list": [4096, 0],
    "eod_token_id": 3, "eos_token_id": 127960, "group_limited_greedy": false,
    "hidden_act": "silu", "hidden_size": 4096, "im_end_id": 6, "im_newline_id": 12,
    "im_start_id": 5, "initializer_range": 0.02, "intermediate_size": 3072, "kv_lora_rank": null,
    "mask_init_id": 13, "max_position_embeddings": 32768, "mlp_bias": false,
    "model_type": "hunyuan_v1_moe", "moe_drop_tokens": false, "moe_intermediate_size": [3072, 3072],
    "moe_layer_num_skipped": 0, "moe_random_routing_dropped_token": false, "moe_topk": [8, 8],
    "n_group": null, "norm_topk_prob": true, "norm_type": "rms", "num_attention_heads": 32,
    "num_experts": 64, "num_hidden_layers": 32, "num_key_value_heads": 8, "num_media_embeds": 257,
    "num_shared_expert": [1, 1], "org_vocab_size": 128167, "pad_id": 127961, "pad_token_id": 127961,
    "pool_type": "last", "position_embedding_xdrope": false, "pretraining_tp": 1,
    "q_lora_rank": null, "qk_nope_head_dim": null, "qk_rope_head_dim": null,
    "rms_norm_eps": 1e-05, "rope_scaling": {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1,
      "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "type": "dynamic"},
    "rope_theta": 10000.0, "routed_scaling_factor": false, "sep_token_id": 127962,
    "skip_cls_token": false, "text_end_id": 8, "text_start_id": 7, "tie_word_embeddings": true,
    "topk_group": null, "torch_dtype": "bfloat16", "transformers_version": "4.41.2",
    "use_cache": true, "use_cla": false, "use_mixed_mlp_moe": true, "use_mla": false,
    "use_qk_norm": true, "use_rotary_pos_emb": true, "v_head_dim": null, "video_end_id": 10,
    "video_start_id": 9, "vocab_size": 128167, "xdrope_section": null})");
  ASSERT_EQ(config.spec.layers.size(), 32U);
  EXPECT_EQ(last(config).moe,
            (MoeSpec{.experts = 64, .top_k = 8, .width = 3072, .shared_width = 3072}));
  const gpu_exec::AttentionSpec& attention = last(config).attention;
  EXPECT_TRUE(attention.qk_norm == QkNorm::head && attention.qk_norm_after_rope);
  EXPECT_NEAR(attention.rope.inverse_frequency[1],
              std::pow(1e4 * std::pow(1000.0, 128.0 / 126.0), -2.0 / 128.0), 1e-6);
  EXPECT_EQ(attention.rope.short_rows_max, 0U) << "nothing grows with the sample";
}

// meta-llama/Llama-4-Scout-17B-16E
TEST(PublishedMoe, Llama4Scout) {
  const ModelConfig config = parsed(R"({
    "architectures": ["Llama4ForConditionalGeneration"], "boi_token_index": 200080,
    "eoi_token_index": 200081, "image_token_index": 200092, "model_type": "llama4",
    "text_config": {"attention_bias": false, "attention_chunk_size": 8192,
      "attention_dropout": 0.0, "attn_scale": 0.1, "attn_temperature_tuning": 4,
      "bos_token_id": 200000, "eos_token_id": [200001, 200007, 200008], "floor_scale": 8192,
      "for_llm_compressor": false, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
      "initializer_range": 0.02, "interleave_moe_layer_step": 1, "intermediate_size": 8192,
      "intermediate_size_mlp": 16384, "max_position_embeddings": 10485760,
      "model_type": "llama4_text", "no_rope_layers": [], "num_attention_heads": 40,
      "num_experts_per_tok": 1, "num_hidden_layers": 48, "num_key_value_heads": 8,
      "num_local_experts": 16, "output_router_logits": false, "pad_token_id": 200018,
      "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0,
        "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
      "rope_theta": 500000.0, "router_aux_loss_coef": 0.001, "router_jitter_noise": 0.0,
      "torch_dtype": "bfloat16", "use_cache": true, "use_qk_norm": true, "vocab_size": 202048},
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0.dev0",
    "vision_config": {"hidden_size": 1408, "model_type": "llama4_vision_model"}})");
  ASSERT_EQ(config.spec.layers.size(), 48U);
  EXPECT_TRUE(config.names.multimodal);
  EXPECT_EQ(dense_layers(config), 0U);
  EXPECT_EQ(last(config).moe, (MoeSpec{.experts = 16,
                                       .top_k = 1,
                                       .width = 8192,
                                       .storage = ExpertStorage::stacked_transposed,
                                       .fused = true,
                                       .score = RouterScore::sigmoid,
                                       .renormalise = false,
                                       .input_scaled = true,
                                       .shared_width = 8192}));
  const gpu_exec::AttentionSpec& turning = first(config).attention;
  EXPECT_EQ(turning.chunk, 8192U);
  EXPECT_EQ(turning.qk_norm, QkNorm::unit);
  EXPECT_EQ(turning.temperature_original, 0U);
  const gpu_exec::AttentionSpec& nope = config.spec.layers[3].attention;
  EXPECT_EQ(nope.chunk, 0U);
  EXPECT_EQ(nope.rope.rotary_dim, 0U);
  EXPECT_EQ(nope.qk_norm, QkNorm::none);
  EXPECT_EQ(nope.temperature_original, 8192U);
  EXPECT_EQ(nope.temperature_offset, 1U);
  EXPECT_EQ(nope.temperature_beta, 0.1F);
}

// Every second layer of Llama-4-Maverick-17B-128E has experts.
TEST(PublishedMoe, Llama4MaverickInterleaves) {
  const ModelConfig config = parsed(R"({"model_type": "llama4_text", "hidden_size": 5120,
    "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8,
    "num_local_experts": 128, "interleave_moe_layer_step": 2, "use_qk_norm": false,
    "intermediate_size": 8192, "intermediate_size_mlp": 16384, "vocab_size": 202048})");
  EXPECT_EQ(config.spec.layers[0].moe.experts, 0U);
  EXPECT_EQ(config.spec.layers[0].mlp.width, 16384U);
  EXPECT_EQ(config.spec.layers[1].moe.experts, 128U);
  EXPECT_EQ(config.spec.layers[0].attention.qk_norm, QkNorm::none);
}

// deepseek-ai/DeepSeek-V2: groups ranked by their best; transformers leaves the scale alone.
TEST(PublishedMoe, DeepSeekV2) {
  const ModelConfig config = parsed(R"({
    "architectures": ["DeepseekV2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "aux_loss_alpha": 0.001, "bos_token_id": 100000, "eos_token_id": 100001,
    "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 5120,
    "initializer_range": 0.02, "intermediate_size": 12288, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "model_type": "deepseek_v2", "moe_intermediate_size": 1536,
    "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 160, "n_shared_experts": 2,
    "norm_topk_prob": false, "num_attention_heads": 128, "num_experts_per_tok": 6,
    "num_hidden_layers": 60, "num_key_value_heads": 128, "pretraining_tp": 1,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
      "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 16.0, "scoring_func": "softmax",
    "seq_aux": true, "tie_word_embeddings": false, "topk_group": 3,
    "topk_method": "group_limited_greedy", "torch_dtype": "bfloat16",
    "transformers_version": "4.39.3", "use_cache": true, "v_head_dim": 128,
    "vocab_size": 102400})");
  EXPECT_EQ(last(config).moe, (MoeSpec{.experts = 160,
                                       .top_k = 6,
                                       .width = 1536,
                                       .groups = 8,
                                       .top_groups = 3,
                                       .group_rank = GroupRank::best,
                                       .renormalise = false,
                                       .multiplier = 16.0F,
                                       .shared_width = 3072}));
  const double mscale = 0.1 * std::log(40.0) + 1;
  EXPECT_NEAR(last(config).attention.scale, mscale * mscale / std::sqrt(192.0), 1e-7);
  EXPECT_TRUE(config.warnings.empty());
}

constexpr const char* kSmall = R"("hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 32,
    "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 32)";

// Catches: a checkpoint that transformers has written again, with what its classes know by now,
// refused for it.
TEST(PublishedMoe, WhatTransformersWritesBesidesIsKnown) {
  for (const char* besides :
       {R"("gpt_oss", "swiglu_alpha": 1.702)", R"("hunyuan_v1_moe", "output_router_logits": false)",
        R"("ernie4_5_moe", "head_dim": 16)"}) {
    parsed(std::string(R"({"model_type": )") + besides + ", " + kSmall + "}");
  }
}

// Catches: groups of which a token sees all, refused because they are more than the experts that it
// meets.
TEST(PublishedMoe, GroupsThatLeaveNothingOutAreNone) {
  const ModelConfig config =
      parsed(std::string(R"({"model_type": "deepseek_v3", "n_group": 4, "topk_group": 4,
                      "num_experts_per_tok": 3, "n_routed_experts": 16, )") +
             R"("first_k_dense_replace": 0, )" + kSmall + "}");
  EXPECT_EQ(last(config).moe.groups, 1U);
  EXPECT_EQ(last(config).moe.top_k, 3U);
}

// Catches: a key that says something we do not compute, taken for what we do.
TEST(PublishedMoe, WhatIsNotComputedIsRefusedByName) {
  for (const auto& [model_type, key, value] : {
           std::tuple{"deepseek_v3", "scoring_func", R"("softmax")"},
           std::tuple{"deepseek_v3", "topk_method", R"("greedy")"},
           std::tuple{"deepseek_v3", "num_key_value_heads", "2"},
           std::tuple{"deepseek_v3", "topk_group", "9"},
           std::tuple{"deepseek_v3", "n_group", "7"},
           std::tuple{"deepseek_v2", "norm_topk_prob", "true"},
           std::tuple{"deepseek_v2", "topk_method", R"("noaux_tc")"},
           std::tuple{"qwen3_moe", "use_sliding_window", "true"},
           std::tuple{"qwen3_moe", "mlp_only_layers", "[2]"},
           std::tuple{"qwen3_moe", "num_experts_per_tok", "129"},
           std::tuple{"qwen3_moe", "shared_expert_intermediate_size", "5"},
           std::tuple{"gpt_oss", "swiglu_limit", "10.0"},
           std::tuple{"gpt_oss", "swiglu_alpha", "1.5"},
           std::tuple{"deepseek_v3", "topk_group", "7, \"num_experts_per_tok\": 6"},
           std::tuple{"hunyuan_v1_moe", "moe_topk", "[1, 2]"},
           std::tuple{"hunyuan_v1_moe", "use_cla", "true"},
           std::tuple{"ernie4_5_moe", "use_bias", "true"},
           std::tuple{"minimax_m2", "shared_intermediate_size", "64"},
           std::tuple{"llama4_text", "layer_types", R"(["sliding_attention", "full_attention"])"},
           std::tuple{"glm4_moe", "mlp_layer_types", R"(["dense", "both"])"},
       }) {
    std::string json = std::string(R"({"model_type": ")") + model_type + R"(", )" + kSmall + "}";
    const std::string quoted = std::string("\"") + key + "\": ";
    const std::size_t at = json.find(quoted);
    if (at == std::string::npos) {
      json.insert(1, quoted + value + ", ");
    } else {
      json.replace(at + quoted.size(), 1, value);
    }
    const auto config = parse_model_config(json, "config.json");
    ASSERT_FALSE(config) << json;
    EXPECT_NE(config.error().message().find(std::string("'") + key + "'"), std::string::npos)
        << config.error().message();
  }
}

}  // namespace
}  // namespace librarian::weightmap
