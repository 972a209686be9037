// Goal: the config.json of well-known models, as published, becomes the model they are.
// Method: documents with the keys and values of the originals; the numbers that matter by hand.
#include <gtest/gtest.h>

#include <cmath>

#include "weightmap/model_config.h"

namespace librarian::weightmap {
namespace {

struct Published {
  const char* name;
  const char* json;
  std::uint32_t hidden, layers, heads, kv_heads, head_dim, width, vocab, window;
  double theta;
  const char* rope_type;
  bool qkv_bias, qk_norm, tied;
};

constexpr const char* kLlama31x8B = R"({
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu",
  "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
  "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
  "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
  "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
  "transformers_version": "4.43.0.dev0", "use_cache": true, "vocab_size": 128256})";

constexpr const char* kLlama31x70B = R"({
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 8192,
  "initializer_range": 0.02, "intermediate_size": 28672, "max_position_embeddings": 131072,
  "mlp_bias": false, "model_type": "llama", "num_attention_heads": 64, "num_hidden_layers": 80,
  "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
  "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 128256})";

constexpr const char* kQwen25x7B = R"({
  "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
  "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02,
  "intermediate_size": 18944, "max_position_embeddings": 32768, "max_window_layers": 28,
  "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28,
  "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
  "sliding_window": 131072, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
  "transformers_version": "4.43.1", "use_cache": true, "use_sliding_window": false,
  "vocab_size": 152064})";

// The base models of the series, and models distilled from them, carry one key more.
constexpr const char* kQwen25x05BBase = R"({
  "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
  "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
  "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24,
  "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
  "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
  "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
  "transformers_version": "4.40.1", "use_cache": true, "use_mrope": false,
  "use_sliding_window": false, "vocab_size": 151936})";

constexpr const char* kQwen3x8B = R"({
  "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
  "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 12288,
  "max_position_embeddings": 40960, "max_window_layers": 36, "model_type": "qwen3",
  "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
  "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
  "use_cache": true, "use_sliding_window": false, "vocab_size": 151936})";

constexpr const char* kMistral01 = R"({
  "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
  "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
  "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
  "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
  "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0",
  "use_cache": true, "vocab_size": 32000})";

constexpr const char* kMistral03 = R"({
  "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
  "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
  "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
  "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
  "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": null,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.42.0.dev0",
  "use_cache": true, "vocab_size": 32768})";

class PublishedConfig : public ::testing::TestWithParam<Published> {};

TEST_P(PublishedConfig, IsTheModelItIs) {
  const Published& want = GetParam();
  const auto config = parse_model_config(want.json, want.name);
  ASSERT_TRUE(config) << config.error().message();
  const gpu_exec::ModelSpec& spec = config->spec;
  EXPECT_EQ(spec.hidden_size, want.hidden);
  EXPECT_EQ(spec.vocab_size, want.vocab);
  EXPECT_EQ(spec.head.tied, want.tied);
  EXPECT_EQ(config->dtype, gpu_exec::DType::bf16);
  EXPECT_EQ(config->rope_type, want.rope_type);
  ASSERT_EQ(spec.layers.size(), want.layers);
  for (const gpu_exec::LayerSpec& layer : spec.layers) {
    EXPECT_EQ(layer.attention.heads, want.heads);
    EXPECT_EQ(layer.attention.kv_heads, want.kv_heads);
    EXPECT_EQ(layer.attention.head_dim, want.head_dim);
    EXPECT_EQ(layer.attention.window, want.window);
    EXPECT_EQ(layer.attention.qkv_bias, want.qkv_bias);
    EXPECT_EQ(layer.attention.qk_norm == gpu_exec::QkNorm::head, want.qk_norm);
    EXPECT_FALSE(layer.attention.out_bias);
    EXPECT_EQ(layer.mlp.width, want.width);
    ASSERT_EQ(layer.attention.rope.inverse_frequency.size(), want.head_dim / 2);
    EXPECT_EQ(layer.attention.rope.inverse_frequency[0], 1.0F);
    // The second pair turns fast enough that no scaling of these models touches it.
    EXPECT_NEAR(layer.attention.rope.inverse_frequency[1],
                std::pow(want.theta, -2.0 / want.head_dim), 1e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(
    WellKnown, PublishedConfig,
    ::testing::Values(Published{"Llama31_8B", kLlama31x8B, 4096, 32, 32, 8, 128, 14336, 128256, 0,
                                5e5, "llama3", false, false, false},
                      Published{"Llama31_70B", kLlama31x70B, 8192, 80, 64, 8, 128, 28672, 128256, 0,
                                5e5, "llama3", false, false, false},
                      Published{"Qwen25_7B_Instruct", kQwen25x7B, 3584, 28, 28, 4, 128, 18944,
                                152064, 0, 1e6, "default", true, false, false},
                      Published{"Qwen25_05B_Base", kQwen25x05BBase, 896, 24, 14, 2, 64, 4864,
                                151936, 0, 1e6, "default", true, false, true},
                      Published{"Qwen3_8B", kQwen3x8B, 4096, 36, 32, 8, 128, 12288, 151936, 0, 1e6,
                                "default", false, true, false},
                      Published{"Mistral7B_v01", kMistral01, 4096, 32, 32, 8, 128, 14336, 32000,
                                4096, 1e4, "default", false, false, false},
                      Published{"Mistral7B_v03", kMistral03, 4096, 32, 32, 8, 128, 14336, 32768, 0,
                                1e6, "default", false, false, false}),
    [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace librarian::weightmap
