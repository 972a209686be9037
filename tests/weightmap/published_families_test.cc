// Goal: the config.json of well-known models of every family, as published, becomes the model they
// are; nothing in them is refused.
// Method: documents of our own with the keys and values of the originals; what sets each family
// apart is checked by hand.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "weightmap/model_config.h"

namespace librarian::weightmap {
namespace {

using gpu_exec::Activation;
using gpu_exec::NormKind;
using gpu_exec::QkNorm;
using gpu_exec::QkvStorage;
using gpu_exec::Residual;
using gpu_exec::RopeStyle;

struct Document {
  const char* name;
  const char* json;
  std::uint32_t hidden, layers, heads, kv_heads, head_dim, width, vocab;
  void (*check)(const ModelConfig& config);
};

std::size_t windows(const ModelConfig& config) {
  const auto& layers = config.spec.layers;
  return static_cast<std::size_t>(std::count_if(
      layers.begin(), layers.end(), [](const auto& layer) { return layer.attention.window != 0; }));
}
std::size_t nopes(const ModelConfig& config) {
  const auto& layers = config.spec.layers;
  return static_cast<std::size_t>(
      std::count_if(layers.begin(), layers.end(),
                    [](const auto& layer) { return layer.attention.rope.rotary_dim == 0; }));
}
const gpu_exec::LayerSpec& first(const ModelConfig& config) { return config.spec.layers.front(); }
const gpu_exec::LayerSpec& last(const ModelConfig& config) { return config.spec.layers.back(); }

// google/gemma-3-4b-it: keys equal to the class's defaults are left out of text_config.
constexpr const char* kGemma3x4B = R"({
  "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999,
  "eoi_token_index": 256000, "eos_token_id": [1, 106], "image_token_index": 262144,
  "initializer_range": 0.02, "mm_tokens_per_image": 256, "model_type": "gemma3",
  "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
    "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024},
  "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
  "vision_config": {"hidden_size": 1152, "image_size": 896, "model_type": "siglip_vision_model"}})";
void check_gemma3(const ModelConfig& config) {
  EXPECT_TRUE(config.names.multimodal);
  EXPECT_EQ(config.model_type, "gemma3_text");
  EXPECT_EQ(config.dtype, gpu_exec::DType::bf16);
  EXPECT_EQ(windows(config), 29U);
  EXPECT_EQ(first(config).attention.window, 1024U);
  EXPECT_EQ(config.spec.layers[5].attention.window, 0U);
  EXPECT_EQ(first(config).attention.scale, 0.0625F);
  EXPECT_EQ(first(config).attention.qk_norm, QkNorm::head);
  EXPECT_NEAR(first(config).attention.rope.inverse_frequency[1], std::pow(1e4, -2.0 / 256), 1e-6);
  EXPECT_NEAR(config.spec.layers[5].attention.rope.inverse_frequency[1],
              std::pow(1e6, -2.0 / 256) / 8, 1e-6);
  EXPECT_TRUE(config.spec.norm.one_plus);
  EXPECT_TRUE(config.spec.head.tied);
  EXPECT_EQ(config.spec.max_positions, 131072U);
  ASSERT_EQ(config.warnings.size(), 1U);
  EXPECT_NE(config.warnings[0].find("num_attention_heads=8"), std::string::npos);
}

// google/gemma-2-9b
constexpr const char* kGemma2x9B = R"({
  "architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid",
  "eos_token_id": 1, "final_logit_softcapping": 30.0, "head_dim": 256,
  "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
  "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 14336,
  "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 16,
  "num_hidden_layers": 42, "num_key_value_heads": 8, "pad_token_id": 0,
  "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
  "sliding_window": 4096, "sliding_window_size": 4096, "torch_dtype": "float32",
  "transformers_version": "4.42.0.dev0", "use_cache": true, "vocab_size": 256000})";
void check_gemma2(const ModelConfig& config) {
  EXPECT_EQ(first(config).attention.softcap, 50.0F);
  EXPECT_EQ(config.spec.head.softcap, 30.0F);
  EXPECT_EQ(first(config).attention.window, 4096U);
  EXPECT_EQ(windows(config), 21U);
  EXPECT_TRUE(first(config).attention_out_norm && first(config).mlp_out_norm);
  EXPECT_EQ(first(config).mlp.activation, Activation::gelu_tanh);
  EXPECT_TRUE(config.spec.embedding.multiplier_in_dtype);
  EXPECT_FLOAT_EQ(config.spec.embedding.multiplier, 59.8665181884F);
}

// google/gemma-7b, as first released.
constexpr const char* kGemma7B = R"({
  "architectures": ["GemmaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 2, "eos_token_id": 1, "head_dim": 256, "hidden_act": "gelu",
  "hidden_size": 3072, "initializer_range": 0.02, "intermediate_size": 24576,
  "max_position_embeddings": 8192, "model_type": "gemma", "num_attention_heads": 16,
  "num_hidden_layers": 28, "num_key_value_heads": 16, "pad_token_id": 0, "rms_norm_eps": 1e-06,
  "rope_scaling": null, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
  "transformers_version": "4.38.0.dev0", "use_cache": true, "vocab_size": 256000})";
void check_gemma(const ModelConfig& config) {
  EXPECT_EQ(first(config).mlp.activation, Activation::gelu_tanh) << "what it was trained with";
  EXPECT_EQ(config.warnings.size(), 1U);
  EXPECT_TRUE(config.spec.head.tied);
}

// microsoft/Phi-3-mini-4k-instruct
constexpr const char* kPhi3Mini = R"({
  "_name_or_path": "Phi-3-mini-4k-instruct", "architectures": ["Phi3ForCausalLM"],
  "attention_dropout": 0.0, "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
  "bos_token_id": 1, "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu",
  "hidden_size": 3072, "initializer_range": 0.02, "intermediate_size": 8192,
  "max_position_embeddings": 4096, "model_type": "phi3", "num_attention_heads": 32,
  "num_hidden_layers": 32, "num_key_value_heads": 32, "original_max_position_embeddings": 4096,
  "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": null,
  "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": false,
  "torch_dtype": "bfloat16", "transformers_version": "4.40.2", "use_cache": true,
  "attention_bias": false, "vocab_size": 32064})";
void check_phi3(const ModelConfig& config) {
  EXPECT_EQ(first(config).attention.storage, QkvStorage::concat);
  EXPECT_TRUE(first(config).mlp.fused);
  EXPECT_EQ(windows(config), 32U);
  EXPECT_EQ(last(config).attention.window, 2047U);
  ASSERT_EQ(config.warnings.size(), 1U);
  EXPECT_NE(config.warnings[0].find("'auto_map'"), std::string::npos);
}

// allenai/OLMo-2-1124-13B
constexpr const char* kOlmo2x13B = R"({
  "architectures": ["Olmo2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "eos_token_id": 100257, "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02,
  "intermediate_size": 13824, "max_position_embeddings": 4096, "model_type": "olmo2",
  "num_attention_heads": 40, "num_hidden_layers": 40, "num_key_value_heads": 40,
  "pad_token_id": 100277, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 500000,
  "tie_word_embeddings": false, "torch_dtype": "float32", "transformers_version": "4.47.0.dev0",
  "use_cache": false, "vocab_size": 100352})";
void check_olmo2(const ModelConfig& config) {
  EXPECT_EQ(first(config).attention.qk_norm, QkNorm::full);
  EXPECT_FALSE(first(config).attention_norm || first(config).mlp_norm);
  EXPECT_TRUE(first(config).attention_out_norm && first(config).mlp_out_norm);
}

// allenai/Olmo-3-1025-7B
constexpr const char* kOlmo3x7B = R"({
  "architectures": ["Olmo3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "eos_token_id": 100257, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
  "intermediate_size": 11008, "max_position_embeddings": 65536, "model_type": "olmo3",
  "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
  "pad_token_id": 100277, "rms_norm_eps": 1e-06,
  "rope_scaling": {"attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0,
    "factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "yarn"},
  "rope_theta": 500000, "sliding_window": 4096, "tie_word_embeddings": false,
  "torch_dtype": "bfloat16", "transformers_version": "4.57.0", "use_cache": false,
  "vocab_size": 100278})";
void check_olmo3(const ModelConfig& config) {
  EXPECT_EQ(windows(config), 24U);
  EXPECT_EQ(first(config).attention.rope.cos_sin_multiplier, 1.0F) << "windows are not stretched";
  EXPECT_EQ(last(config).attention.rope.cos_sin_multiplier, 1.2079441541679836F);
  EXPECT_NE(first(config).attention.rope.inverse_frequency.back(),
            last(config).attention.rope.inverse_frequency.back());
}

// CohereForAI/c4ai-command-r-plus
constexpr const char* kCommandRPlus = R"({
  "architectures": ["CohereForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 5, "eos_token_id": 255001, "hidden_act": "silu", "hidden_size": 12288,
  "initializer_range": 0.02, "intermediate_size": 33792, "layer_norm_eps": 1e-05,
  "logit_scale": 0.8333333333333334, "max_position_embeddings": 8192,
  "model_max_length": 131072, "model_type": "cohere", "num_attention_heads": 96,
  "num_hidden_layers": 64, "num_key_value_heads": 8, "pad_token_id": 0,
  "rope_theta": 75000000.0, "torch_dtype": "float16", "transformers_version": "4.40.0.dev0",
  "use_cache": true, "use_qk_norm": true, "vocab_size": 256000})";
void check_cohere(const ModelConfig& config) {
  EXPECT_EQ(config.spec.norm.kind, NormKind::layer);
  EXPECT_FALSE(config.spec.norm.bias);
  EXPECT_EQ(first(config).residual, Residual::parallel);
  EXPECT_FALSE(first(config).mlp_norm);
  EXPECT_EQ(first(config).attention.qk_norm, QkNorm::head_each);
  EXPECT_EQ(first(config).attention.rope.style, RopeStyle::pairs);
  EXPECT_FLOAT_EQ(config.spec.head.multiplier, 0.8333333333F);
  EXPECT_TRUE(config.spec.head.tied);
}

// CohereForAI/c4ai-command-r7b-12-2024
constexpr const char* kCommandR7B = R"({
  "architectures": ["Cohere2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 5, "cache_implementation": "hybrid", "eos_token_id": 255001, "head_dim": 128,
  "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
  "intermediate_size": 14336, "layer_norm_eps": 1e-05, "logit_scale": 0.25,
  "max_position_embeddings": 8192, "model_type": "cohere2", "num_attention_heads": 32,
  "num_hidden_layers": 32, "num_key_value_heads": 8,
  "order_of_interleaved_layers": "local_attn_first", "pad_token_id": 0,
  "position_embedding_type": "rope_gptj", "rope_scaling": null, "rope_theta": 50000,
  "rotary_pct": 1.0, "sliding_window": 4096, "sliding_window_pattern": 4,
  "torch_dtype": "bfloat16", "transformers_version": "4.48.0.dev0", "use_cache": true,
  "use_embedding_sharing": true, "use_gated_activation": true, "use_parallel_block": true,
  "use_parallel_embedding": true, "vocab_size": 256000})";
void check_cohere2(const ModelConfig& config) {
  EXPECT_EQ(windows(config), 24U);
  EXPECT_EQ(nopes(config), 8U);
  EXPECT_EQ(last(config).attention.rope.rotary_dim, 0U);
  EXPECT_EQ(first(config).attention.qk_norm, QkNorm::none);
}

// ibm-granite/granite-3.3-8b-base
constexpr const char* kGranite8B = R"({
  "architectures": ["GraniteForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "attention_multiplier": 0.0078125, "bos_token_id": 0, "embedding_multiplier": 12.0,
  "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
  "intermediate_size": 12800, "logits_scaling": 16.0, "max_position_embeddings": 131072,
  "mlp_bias": false, "model_type": "granite", "num_attention_heads": 32,
  "num_hidden_layers": 40, "num_key_value_heads": 8, "pad_token_id": 0,
  "residual_multiplier": 0.22, "rms_norm_eps": 1e-05, "rope_scaling": null,
  "rope_theta": 10000000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
  "transformers_version": "4.49.0", "use_cache": true, "vocab_size": 49159})";
void check_granite(const ModelConfig& config) {
  EXPECT_EQ(first(config).attention.scale, 0.0078125F);
  EXPECT_EQ(first(config).residual_multiplier, 0.22F);
  EXPECT_EQ(config.spec.embedding.multiplier, 12.0F);
  EXPECT_FALSE(config.spec.embedding.multiplier_in_dtype);
  EXPECT_EQ(config.spec.head.multiplier, 0.0625F);
}

// zai-org/GLM-4-32B-0414
constexpr const char* kGlm4x32B = R"({
  "architectures": ["Glm4ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "eos_token_id": [151329, 151336, 151338], "head_dim": 128, "hidden_act": "silu",
  "hidden_size": 6144, "initializer_range": 0.02, "intermediate_size": 23040,
  "max_position_embeddings": 32768, "model_type": "glm4", "num_attention_heads": 48,
  "num_hidden_layers": 61, "num_key_value_heads": 2, "pad_token_id": 151329,
  "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.52.0.dev0",
  "use_cache": true, "vocab_size": 151552})";
void check_glm4(const ModelConfig& config) {
  EXPECT_EQ(first(config).attention.rope.rotary_dim, 64U);
  EXPECT_EQ(first(config).attention.rope.style, RopeStyle::pairs);
  EXPECT_TRUE(first(config).mlp.fused);
  EXPECT_FALSE(first(config).attention.qkv_bias || first(config).attention.out_bias);
}

// HuggingFaceTB/SmolLM3-3B
constexpr const char* kSmolLm3 = R"({
  "architectures": ["SmolLM3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": null, "eos_token_id": 128012, "hidden_act": "silu", "hidden_size": 2048,
  "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 65536,
  "max_window_layers": 28, "mlp_bias": false, "model_type": "smollm3",
  "no_rope_layer_interval": 4,
  "no_rope_layers": [1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0,
    1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0],
  "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 4,
  "pad_token_id": 128004, "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_scaling": null,
  "rope_theta": 5000000.0, "sliding_window": null, "torch_dtype": "bfloat16",
  "transformers_version": "4.54.0.dev0", "use_cache": false, "use_sliding_window": false,
  "vocab_size": 128256})";
void check_smollm3(const ModelConfig& config) {
  EXPECT_EQ(nopes(config), 9U);
  EXPECT_EQ(config.spec.layers[3].attention.rope.rotary_dim, 0U);
  EXPECT_EQ(windows(config), 0U);
  EXPECT_TRUE(config.spec.head.tied);
}

// ByteDance-Seed/Seed-OSS-36B-Base
constexpr const char* kSeedOss = R"({
  "architectures": ["SeedOssForCausalLM"], "attention_bias": true, "attention_dropout": 0.1,
  "attention_out_bias": false, "bos_token_id": 0, "eos_token_id": 2, "head_dim": 128,
  "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02,
  "intermediate_size": 27648, "max_position_embeddings": 524288, "mlp_bias": false,
  "model_type": "seed_oss", "num_attention_heads": 80, "num_hidden_layers": 64,
  "num_key_value_heads": 8, "pad_token_id": 1, "residual_dropout": 0.1, "rms_norm_eps": 1e-06,
  "rope_scaling": {"rope_type": "default"}, "rope_theta": 10000000.0,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.55.0",
  "use_cache": true, "vocab_size": 155136})";
void check_seed_oss(const ModelConfig& config) {
  EXPECT_TRUE(first(config).attention.qkv_bias);
  EXPECT_FALSE(first(config).attention.out_bias);
}

// LGAI-EXAONE/EXAONE-4.0-32B, with fewer layers' types written out than it has.
constexpr const char* kExaone4x32B = R"({
  "architectures": ["Exaone4ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
  "eos_token_id": 361, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
  "initializer_range": 0.02, "intermediate_size": 27392,
  "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention",
    "full_attention"],
  "max_position_embeddings": 131072, "model_type": "exaone4", "num_attention_heads": 40,
  "num_hidden_layers": 4, "num_key_value_heads": 8, "pad_token_id": 0, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 1000000, "sliding_window": 4096, "sliding_window_pattern": "LLLG",
  "tie_word_embeddings": false, "torch_dtype": "bfloat16",
  "transformers_version": "4.54.0.dev0", "use_cache": true, "vocab_size": 102400,
  "attn_implementation": "flash_attention_2"})";
void check_exaone4(const ModelConfig& config) {
  EXPECT_EQ(windows(config), 3U);
  EXPECT_EQ(nopes(config), 1U);
  EXPECT_EQ(first(config).attention.qk_norm, QkNorm::head);
  EXPECT_FALSE(first(config).attention_norm);
  EXPECT_EQ(config.rope_type, "llama3");
}

// EleutherAI/pythia-12b
constexpr const char* kPythia12B = R"({
  "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0,
  "hidden_act": "gelu", "hidden_size": 5120, "initializer_range": 0.02,
  "intermediate_size": 20480, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
  "model_type": "gpt_neox", "num_attention_heads": 40, "num_hidden_layers": 36,
  "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false,
  "torch_dtype": "float16", "transformers_version": "4.24.0", "use_cache": true,
  "use_parallel_residual": true, "vocab_size": 50688})";
void check_pythia(const ModelConfig& config) {
  EXPECT_EQ(first(config).residual, Residual::parallel);
  EXPECT_TRUE(first(config).mlp_norm) << "two norms";
  EXPECT_EQ(first(config).attention.storage, QkvStorage::per_head);
  EXPECT_EQ(first(config).attention.rope.rotary_dim, 32U);
  EXPECT_TRUE(first(config).attention.qkv_bias && first(config).mlp.bias && config.spec.norm.bias);
  EXPECT_FALSE(first(config).mlp.gated);
  EXPECT_EQ(first(config).mlp.activation, Activation::gelu);
}

// google-bert/bert-base-uncased
constexpr const char* kBertBase = R"({
  "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1,
  "gradient_checkpointing": false, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
  "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
  "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
  "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
  "position_embedding_type": "absolute", "transformers_version": "4.6.0.dev0",
  "type_vocab_size": 2, "use_cache": true, "vocab_size": 30522})";
void check_bert(const ModelConfig& config) {
  EXPECT_FALSE(first(config).attention.causal);
  EXPECT_EQ(first(config).residual, Residual::norm_after);
  EXPECT_FALSE(config.spec.final_norm);
  EXPECT_EQ(config.spec.embedding.positions, 512U);
  EXPECT_EQ(config.spec.embedding.types, 2U);
  EXPECT_TRUE(config.spec.embedding.norm);
  EXPECT_EQ(config.rope_type, "none");
  EXPECT_EQ(config.spec.norm.epsilon, 1e-12F);
}

// bigcode/starcoder2-15b
constexpr const char* kStarcoder2 = R"({
  "architectures": ["Starcoder2ForCausalLM"], "attention_dropout": 0.1,
  "attention_softmax_in_fp32": true, "bos_token_id": 0, "embedding_dropout": 0.1,
  "eos_token_id": 0, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 6144,
  "initializer_range": 0.01275, "intermediate_size": 24576, "layer_norm_epsilon": 1e-05,
  "max_position_embeddings": 16384, "mlp_type": "default", "model_type": "starcoder2",
  "norm_epsilon": 1e-05, "norm_type": "layer_norm", "num_attention_heads": 48,
  "num_hidden_layers": 40, "num_key_value_heads": 4, "residual_dropout": 0.1,
  "rope_theta": 100000, "scale_attention_softmax_in_fp32": true, "scale_attn_weights": true,
  "sliding_window": 4096, "torch_dtype": "float32", "transformers_version": "4.37.0.dev0",
  "use_bias": true, "use_cache": true, "vocab_size": 49152})";
void check_starcoder2(const ModelConfig& config) {
  EXPECT_EQ(windows(config), 40U);
  EXPECT_TRUE(first(config).attention.out_bias && first(config).mlp.bias);
  EXPECT_TRUE(config.spec.head.tied);
}

// stabilityai/stablelm-2-1_6b
constexpr const char* kStableLm2 = R"({
  "architectures": ["StableLmForCausalLM"], "bos_token_id": 100257, "eos_token_id": 100257,
  "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
  "intermediate_size": 5632, "layer_norm_eps": 1e-05, "max_position_embeddings": 4096,
  "model_type": "stablelm", "num_attention_heads": 32, "num_hidden_layers": 24,
  "num_key_value_heads": 32, "partial_rotary_factor": 0.25, "rope_theta": 10000,
  "tie_word_embeddings": false, "torch_dtype": "float16", "transformers_version": "4.38.0",
  "use_cache": true, "use_qkv_bias": true, "vocab_size": 100352})";
void check_stablelm(const ModelConfig& config) {
  EXPECT_EQ(first(config).residual, Residual::sequential);
  EXPECT_TRUE(first(config).attention.qkv_bias);
  EXPECT_EQ(first(config).attention.rope.rotary_dim, 16U);
}

// microsoft/phi-2
constexpr const char* kPhi2 = R"({
  "architectures": ["PhiForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 50256,
  "embd_pdrop": 0.0, "eos_token_id": 50256, "hidden_act": "gelu_new", "hidden_size": 2560,
  "initializer_range": 0.02, "intermediate_size": 10240, "layer_norm_eps": 1e-05,
  "max_position_embeddings": 2048, "model_type": "phi", "num_attention_heads": 32,
  "num_hidden_layers": 32, "num_key_value_heads": 32, "partial_rotary_factor": 0.4,
  "qk_layernorm": false, "resid_pdrop": 0.1, "rope_scaling": null, "rope_theta": 10000.0,
  "tie_word_embeddings": false, "torch_dtype": "float16", "transformers_version": "4.37.0",
  "use_cache": true, "vocab_size": 51200})";
void check_phi2(const ModelConfig& config) {
  EXPECT_EQ(first(config).attention.rope.rotary_dim, 32U);
  EXPECT_EQ(first(config).residual, Residual::parallel);
  EXPECT_FALSE(first(config).mlp_norm);
  EXPECT_EQ(first(config).mlp.activation, Activation::gelu_tanh);
}

// nvidia/Minitron-8B-Base
constexpr const char* kMinitron = R"({
  "architectures": ["NemotronForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 2, "eos_token_id": 3, "head_dim": 128, "hidden_act": "relu2",
  "hidden_size": 4096, "initializer_range": 0.01, "intermediate_size": 16384,
  "max_position_embeddings": 4096, "mlp_bias": false, "model_type": "nemotron",
  "norm_eps": 1e-05, "num_attention_heads": 48, "num_hidden_layers": 32,
  "num_key_value_heads": 8, "partial_rotary_factor": 0.5, "rope_scaling": null,
  "rope_theta": 10000, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
  "transformers_version": "4.32.0.dev0", "use_cache": true, "vocab_size": 256000})";
void check_nemotron(const ModelConfig& config) {
  EXPECT_TRUE(config.spec.norm.one_plus && config.spec.norm.bias);
  EXPECT_EQ(config.spec.norm.kind, NormKind::layer);
  EXPECT_EQ(first(config).mlp.activation, Activation::relu_squared);
  EXPECT_FALSE(first(config).mlp.gated);
  EXPECT_EQ(first(config).attention.rope.rotary_dim, 64U);
}

// tiiuae/falcon-7b
constexpr const char* kFalcon7B = R"({
  "alibi": false, "apply_residual_connection_post_layernorm": false,
  "architectures": ["FalconForCausalLM"], "attention_dropout": 0.0, "bias": false,
  "bos_token_id": 11, "eos_token_id": 11, "hidden_dropout": 0.0, "hidden_size": 4544,
  "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "falcon",
  "multi_query": true, "new_decoder_architecture": false, "num_attention_heads": 71,
  "num_hidden_layers": 32, "parallel_attn": true, "torch_dtype": "bfloat16",
  "transformers_version": "4.27.4", "use_cache": true, "vocab_size": 65024})";
void check_falcon7b(const ModelConfig& config) {
  EXPECT_EQ(first(config).attention.storage, QkvStorage::grouped);
  EXPECT_EQ(first(config).residual, Residual::parallel);
  EXPECT_FALSE(first(config).mlp_norm) << "one norm";
  EXPECT_FALSE(first(config).mlp.bias);
  EXPECT_TRUE(config.spec.norm.bias);
  EXPECT_TRUE(config.spec.head.tied);
}

// tiiuae/falcon-40b
constexpr const char* kFalcon40B = R"({
  "alibi": false, "apply_residual_connection_post_layernorm": false,
  "architectures": ["FalconForCausalLM"], "attention_dropout": 0.0, "bias": false,
  "bos_token_id": 11, "eos_token_id": 11, "hidden_dropout": 0.0, "hidden_size": 8192,
  "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "falcon",
  "new_decoder_architecture": true, "num_attention_heads": 128, "num_hidden_layers": 60,
  "num_kv_heads": 8, "parallel_attn": true, "torch_dtype": "bfloat16",
  "transformers_version": "4.27.4", "use_cache": true, "vocab_size": 65024})";
void check_falcon40b(const ModelConfig& config) {
  EXPECT_EQ(first(config).attention.storage, QkvStorage::grouped);
  EXPECT_TRUE(first(config).mlp_norm) << "two norms";
}

// openai-community/gpt2
constexpr const char* kGpt2 = R"({
  "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
  "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
  "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
  "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": null,
  "summary_first_dropout": 0.1, "summary_proj_to_labels": true, "summary_type": "cls_index",
  "summary_use_proj": true,
  "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}},
  "vocab_size": 50257})";
void check_gpt2(const ModelConfig& config) {
  EXPECT_TRUE(first(config).transposed);
  EXPECT_EQ(first(config).attention.storage, QkvStorage::concat);
  EXPECT_EQ(config.spec.embedding.positions, 1024U);
  EXPECT_EQ(config.spec.max_positions, 1024U);
}

// bigscience/bloom
constexpr const char* kBloom = R"({
  "apply_residual_connection_post_layernorm": false, "attention_dropout": 0.0,
  "attention_softmax_in_fp32": true, "architectures": ["BloomForCausalLM"], "bos_token_id": 1,
  "eos_token_id": 2, "pad_token_id": 3, "unk_token_id": 0, "hidden_dropout": 0.0,
  "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": true,
  "model_type": "bloom", "n_embed": 14336, "n_inner": null, "n_layer": 70,
  "num_attention_heads": 112, "offset_alibi": 100, "pretraining_tp": 4, "seq_length": 2048,
  "skip_bias_add": true, "skip_bias_add_qkv": false, "transformers_version": "4.21.0",
  "use_cache": true, "vocab_size": 250880})";
void check_bloom(const ModelConfig& config) {
  EXPECT_TRUE(first(config).attention.alibi);
  EXPECT_EQ(first(config).attention.storage, QkvStorage::per_head);
  EXPECT_EQ(nopes(config), 70U);
  EXPECT_TRUE(config.spec.embedding.norm);
  EXPECT_EQ(first(config).mlp.activation, Activation::gelu_tanh);
  EXPECT_EQ(config.spec.max_positions, 0U);
}

// facebook/opt-66b
constexpr const char* kOpt66B = R"({
  "_remove_final_layer_norm": false, "activation_dropout": 0.0, "activation_function": "relu",
  "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 2,
  "do_layer_norm_before": true, "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 36864,
  "hidden_size": 9216, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048,
  "model_type": "opt", "num_attention_heads": 72, "num_hidden_layers": 64, "pad_token_id": 1,
  "prefix": "</s>", "torch_dtype": "float16", "transformers_version": "4.21.0.dev0",
  "use_cache": true, "vocab_size": 50272, "word_embed_proj_dim": 9216})";
void check_opt(const ModelConfig& config) {
  EXPECT_EQ(config.spec.embedding.positions, 2050U);
  EXPECT_EQ(config.spec.embedding.position_offset, 2U);
  EXPECT_EQ(config.spec.max_positions, 2048U);
  EXPECT_EQ(first(config).mlp.activation, Activation::relu);
  EXPECT_EQ(config.spec.norm.epsilon, 1e-5F);
}

// mistralai/Mistral-Small-3.1-24B
constexpr const char* kMistralSmall31 = R"({
  "architectures": ["Mistral3ForConditionalGeneration"], "dtype": "bfloat16",
  "image_token_index": 10, "model_type": "mistral3", "multimodal_projector_bias": false,
  "projector_hidden_act": "gelu", "spatial_merge_size": 2,
  "text_config": {"attention_dropout": 0.0, "dtype": "bfloat16", "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02,
    "intermediate_size": 32768, "max_position_embeddings": 131072, "model_type": "mistral",
    "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000000.0, "sliding_window": null, "use_cache": true,
    "vocab_size": 131072},
  "transformers_version": "4.57.1", "vision_config": {"model_type": "pixtral"},
  "vision_feature_layer": -1})";
void check_mistral3(const ModelConfig& config) {
  EXPECT_TRUE(config.names.multimodal);
  EXPECT_EQ(config.model_type, "mistral");
  EXPECT_EQ(windows(config), 0U);
  EXPECT_TRUE(config.warnings.empty());
}

// mistralai/Devstral-Small-2-24B: only transformers 5 has its text model.
constexpr const char* kDevstral2 = R"({
  "architectures": ["Mistral3ForConditionalGeneration"], "dtype": "bfloat16",
  "image_token_index": 10, "model_type": "mistral3", "multimodal_projector_bias": false,
  "projector_hidden_act": "gelu", "spatial_merge_size": 2,
  "text_config": {"attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 5120, "initializer_range": 0.02, "intermediate_size": 32768,
    "max_position_embeddings": 393216, "model_type": "ministral3", "num_attention_heads": 32,
    "num_hidden_layers": 40, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_parameters": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 48.0,
      "llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0,
      "original_max_position_embeddings": 8192, "rope_theta": 100000000.0, "rope_type": "yarn",
      "type": "yarn"},
    "sliding_window": null, "use_cache": true, "vocab_size": 131072},
  "tie_word_embeddings": false, "transformers_version": "5.0.0.dev0",
  "vision_config": {"model_type": "pixtral"}, "vision_feature_layer": -1})";
void check_devstral(const ModelConfig& config) {
  EXPECT_EQ(config.model_type, "ministral3");
  EXPECT_EQ(config.rope_type, "yarn");
  EXPECT_EQ(first(config).attention.rope.cos_sin_multiplier, 1.0F);
  EXPECT_EQ(first(config).attention.temperature_beta, 0.1F);
  EXPECT_EQ(first(config).attention.temperature_original, 8192U);
  EXPECT_FALSE(config.spec.head.tied);
}

class PublishedFamily : public ::testing::TestWithParam<Document> {};

TEST_P(PublishedFamily, IsTheModelItIs) {
  const Document& want = GetParam();
  const auto config = parse_model_config(want.json, want.name);
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(config->spec.hidden_size, want.hidden);
  EXPECT_EQ(config->spec.vocab_size, want.vocab);
  ASSERT_EQ(config->spec.layers.size(), want.layers);
  for (const gpu_exec::LayerSpec& layer : config->spec.layers) {
    EXPECT_EQ(layer.attention.heads, want.heads);
    EXPECT_EQ(layer.attention.kv_heads, want.kv_heads);
    EXPECT_EQ(layer.attention.head_dim, want.head_dim);
    EXPECT_EQ(layer.mlp.width, want.width);
  }
  want.check(*config);
}

const Document documents[] = {
    {"Gemma3_4B", kGemma3x4B, 2560, 34, 8, 4, 256, 10240, 262208, check_gemma3},
    {"Gemma2_9B", kGemma2x9B, 3584, 42, 16, 8, 256, 14336, 256000, check_gemma2},
    {"Gemma_7B", kGemma7B, 3072, 28, 16, 16, 256, 24576, 256000, check_gemma},
    {"Phi3_mini", kPhi3Mini, 3072, 32, 32, 32, 96, 8192, 32064, check_phi3},
    {"Olmo2_13B", kOlmo2x13B, 5120, 40, 40, 40, 128, 13824, 100352, check_olmo2},
    {"Olmo3_7B", kOlmo3x7B, 4096, 32, 32, 32, 128, 11008, 100278, check_olmo3},
    {"CommandRPlus", kCommandRPlus, 12288, 64, 96, 8, 128, 33792, 256000, check_cohere},
    {"CommandR7B", kCommandR7B, 4096, 32, 32, 8, 128, 14336, 256000, check_cohere2},
    {"Granite33_8B", kGranite8B, 4096, 40, 32, 8, 128, 12800, 49159, check_granite},
    {"Glm4_32B", kGlm4x32B, 6144, 61, 48, 2, 128, 23040, 151552, check_glm4},
    {"SmolLM3_3B", kSmolLm3, 2048, 36, 16, 4, 128, 11008, 128256, check_smollm3},
    {"SeedOss_36B", kSeedOss, 5120, 64, 80, 8, 128, 27648, 155136, check_seed_oss},
    {"Exaone4_32B", kExaone4x32B, 5120, 4, 40, 8, 128, 27392, 102400, check_exaone4},
    {"Pythia_12B", kPythia12B, 5120, 36, 40, 40, 128, 20480, 50688, check_pythia},
    {"BertBase", kBertBase, 768, 12, 12, 12, 64, 3072, 30522, check_bert},
    {"Starcoder2_15B", kStarcoder2, 6144, 40, 48, 4, 128, 24576, 49152, check_starcoder2},
    {"StableLm2_1_6B", kStableLm2, 2048, 24, 32, 32, 64, 5632, 100352, check_stablelm},
    {"Phi2", kPhi2, 2560, 32, 32, 32, 80, 10240, 51200, check_phi2},
    {"Minitron_8B", kMinitron, 4096, 32, 48, 8, 128, 16384, 256000, check_nemotron},
    {"Falcon_7B", kFalcon7B, 4544, 32, 71, 1, 64, 18176, 65024, check_falcon7b},
    {"Falcon_40B", kFalcon40B, 8192, 60, 128, 8, 64, 32768, 65024, check_falcon40b},
    {"Gpt2", kGpt2, 768, 12, 12, 12, 64, 3072, 50257, check_gpt2},
    {"Bloom", kBloom, 14336, 70, 112, 112, 128, 57344, 250880, check_bloom},
    {"Opt_66B", kOpt66B, 9216, 64, 72, 72, 128, 36864, 50272, check_opt},
    {"MistralSmall31", kMistralSmall31, 5120, 40, 32, 8, 128, 32768, 131072, check_mistral3},
    {"DevstralSmall2", kDevstral2, 5120, 40, 32, 8, 128, 32768, 131072, check_devstral},
};

INSTANTIATE_TEST_SUITE_P(WellKnown, PublishedFamily, ::testing::ValuesIn(documents),
                         [](const auto& row) { return row.param.name; });

}  // namespace
}  // namespace librarian::weightmap
