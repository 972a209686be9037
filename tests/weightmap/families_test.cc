// Goal: each family honours the keys that transformers honours in it, and refuses the others by
// name.
// Method: the shortest valid document of each family, changed key by key; what must come out is
// read from configuration_*.py and modeling_*.py of transformers.
#include <gtest/gtest.h>

#include "base/json.h"
#include "weightmap/family.h"
#include "weightmap/model_config.h"

namespace librarian::weightmap {
namespace {

using gpu_exec::QkNorm;
using gpu_exec::QkvStorage;
using gpu_exec::Residual;

/// Sizes are the family's own; only the layers are few.
Json document(const std::string& family) {
  const FamilySizes& sizes = find_family(family)->sizes;
  Json keys = {{"model_type", family},
               {"num_hidden_layers", 4},
               {"hidden_size", sizes.hidden},
               {"num_attention_heads", sizes.heads},
               {"vocab_size", sizes.vocab}};
  if (sizes.width != 0) {
    keys["intermediate_size"] = sizes.width;
  }
  if (std::string(family) == "glm4_moe") {
    keys["head_dim"] = 128;  // Without it, transformers' defaults turn an odd part of a head.
  }
  return keys;
}

Json with(const std::string& family, const Json& keys) {
  Json config = document(family);
  config.update(keys);
  return config;
}

ModelConfig parsed(const Json& config) {
  auto result = parse_model_config(config.dump(), "FILE");
  EXPECT_TRUE(result) << config.dump() << "\n" << result.error().message();
  return result ? *std::move(result) : ModelConfig();
}

gpu_exec::LayerSpec layer_of(const std::string& family, const Json& keys) {
  const ModelConfig config = parsed(with(family, keys));
  return config.spec.layers.empty() ? gpu_exec::LayerSpec() : config.spec.layers.back();
}

void expect_refused(const std::string& family, const char* key, const Json& value) {
  const auto result = parse_model_config(with(family, {{key, value}}).dump(), "FILE");
  const std::string what = family + " " + key + " " + value.dump();
  ASSERT_FALSE(result) << what;
  EXPECT_EQ(result.error().code(), ErrorCode::bad_input) << what;
  EXPECT_NE(result.error().message().find("'" + std::string(key) + "'"), std::string::npos)
      << what << ": " << result.error().message();
}

// Catches: a row whose own defaults contradict each other or its table of names.
TEST(Families, AreAllReadFromTheirDefaults) {
  EXPECT_EQ(families().size(), 44U);
  for (const Family* family : families()) {
    const ModelConfig config = parsed(document(family->model_type));
    EXPECT_EQ(config.model_type, family->model_type);
    EXPECT_EQ(config.names.family, family->names);
    EXPECT_EQ(config.spec.layers.size(), 4U);
    EXPECT_EQ(config.spec.hidden_size, family->sizes.hidden);
    EXPECT_EQ(config.spec.norm.kind, family->norm.kind);
    EXPECT_GT(config.spec.norm.epsilon, 0);
  }
}

TEST(Families, HaveBiasesWhereTransformersHasThem) {
  struct Row {
    const char* family;
    Json keys;
    bool qkv, out, mlp;
  };
  for (const Row& row : {
           Row{"llama", {{"attention_bias", true}}, true, true, false},
           Row{"llama", {{"mlp_bias", true}}, false, false, true},
           Row{"qwen2", Json::object(), true, false, false},
           Row{"qwen3", {{"attention_bias", true}}, true, true, false},
           Row{"gemma", {{"attention_bias", true}}, true, true, false},
           Row{"olmo2", {{"attention_bias", true}}, true, true, false},
           Row{"cohere", {{"attention_bias", true}}, true, true, false},
           Row{"granite", {{"mlp_bias", true}}, false, false, true},
           Row{"glm4", Json::object(), true, false, false},
           Row{"glm4", {{"attention_bias", false}}, false, false, false},
           Row{"seed_oss", Json::object(), true, false, false},
           Row{"seed_oss", {{"attention_out_bias", true}}, true, true, false},
           Row{"smollm3", {{"mlp_bias", true}}, false, false, true},
           Row{"gpt_neox", Json::object(), true, true, true},
           Row{"gpt_neox", {{"attention_bias", false}}, false, false, true},
           Row{"starcoder2", Json::object(), true, true, true},
           Row{"starcoder2", {{"use_bias", false}}, false, false, false},
           Row{"stablelm", {{"use_qkv_bias", true}}, true, false, false},
           Row{"phi", Json::object(), true, true, true},
           Row{"nemotron", {{"mlp_bias", true}}, false, false, true},
           Row{"falcon", {{"bias", true}}, true, true, true},
           Row{"falcon", Json::object(), false, false, false},
           Row{"opt", {{"enable_bias", false}}, false, false, false},
           Row{"bert", Json::object(), true, true, true},
           Row{"phi3", {{"attention_bias", false}, {"mlp_bias", false}}, false, false, false},
       }) {
    const gpu_exec::LayerSpec layer = layer_of(row.family, row.keys);
    const std::string what = std::string(row.family) + row.keys.dump();
    EXPECT_EQ(layer.attention.qkv_bias, row.qkv) << what;
    EXPECT_EQ(layer.attention.out_bias, row.out) << what;
    EXPECT_EQ(layer.mlp.bias, row.mlp) << what;
  }
}

TEST(Families, JoinAttentionAndMlpAsTheirKeysSay) {
  struct Row {
    const char* family;
    Json keys;
    Residual residual;
    bool mlp_norm;
  };
  for (const Row& row : {
           Row{"gpt_neox", Json::object(), Residual::parallel, true},
           Row{"gpt_neox", {{"use_parallel_residual", false}}, Residual::sequential, true},
           Row{"stablelm", Json::object(), Residual::sequential, true},
           Row{"stablelm", {{"use_parallel_residual", true}}, Residual::parallel, false},
           Row{"cohere2", Json::object(), Residual::parallel, false},
           Row{"falcon", Json::object(), Residual::parallel, false},
           Row{"falcon", {{"parallel_attn", false}}, Residual::sequential, true},
           Row{"falcon", {{"new_decoder_architecture", true}}, Residual::parallel, true},
           Row{"falcon",
               {{"new_decoder_architecture", true}, {"num_ln_in_parallel_attn", 1}},
               Residual::parallel,
               false},
           Row{"bert", Json::object(), Residual::norm_after, false},
       }) {
    const gpu_exec::LayerSpec layer = layer_of(row.family, row.keys);
    EXPECT_EQ(layer.residual, row.residual) << row.family << row.keys.dump();
    EXPECT_EQ(layer.mlp_norm, row.mlp_norm) << row.family << row.keys.dump();
  }
}

TEST(Families, StoreQkvAsFalconsGenerationsDid) {
  const auto old = layer_of("falcon", Json::object()).attention;
  EXPECT_EQ(old.storage, QkvStorage::grouped);
  EXPECT_EQ(old.kv_heads, 1U);
  const auto many = layer_of("falcon", {{"multi_query", false}}).attention;
  EXPECT_EQ(many.storage, QkvStorage::per_head);
  EXPECT_EQ(many.kv_heads, 71U);
  const auto grouped = layer_of("falcon", {{"new_decoder_architecture", true},
                                           {"num_attention_heads", 64},
                                           {"hidden_size", 4096},
                                           {"num_kv_heads", 8}})
                           .attention;
  EXPECT_EQ(grouped.storage, QkvStorage::grouped);
  EXPECT_EQ(grouped.kv_heads, 8U);
}

std::vector<std::uint32_t> windows(const Json& config) {
  std::vector<std::uint32_t> list;
  for (const gpu_exec::LayerSpec& layer : parsed(config).spec.layers) {
    list.push_back(layer.attention.window);
  }
  return list;
}
std::vector<bool> turns(const Json& config) {
  std::vector<bool> list;
  for (const gpu_exec::LayerSpec& layer : parsed(config).spec.layers) {
    list.push_back(layer.attention.rope.rotary_dim != 0);
  }
  return list;
}
const Json mixed_types =
    Json::array({"full_attention", "sliding_attention", "full_attention", "sliding_attention"});
const Json full_types = Json(std::vector<std::string>(4, "full_attention"));

TEST(Families, GiveTheWindowToTheRightLayers) {
  using Windows = std::vector<std::uint32_t>;
  const Json eight = {{"sliding_window", 8}};
  EXPECT_EQ(windows(with("gemma2", eight)), (Windows{8, 0, 8, 0}));
  EXPECT_EQ(windows(with("olmo3", eight)), (Windows{8, 8, 8, 0}));
  EXPECT_EQ(windows(with("cohere2", eight)), (Windows{8, 8, 8, 0}));
  EXPECT_EQ(windows(with("exaone4", eight)), (Windows{8, 8, 8, 0}));
  EXPECT_EQ(windows(with("gemma3_text", eight)), (Windows{8, 8, 8, 8}));
  EXPECT_EQ(windows(with("gemma3_text", {{"sliding_window", 8}, {"sliding_window_pattern", 2}})),
            (Windows{8, 0, 8, 0}));
  for (const char* family : {"gemma2", "gemma3_text", "olmo3", "cohere2", "exaone4"}) {
    EXPECT_EQ(windows(with(family, {{"sliding_window", 8}, {"layer_types", mixed_types}})),
              (Windows{0, 8, 0, 8}))
        << family;
    expect_refused(family, "layer_types", Json::array({"full_attention"}));
  }
  for (const char* family : {"phi3", "starcoder2", "ministral3"}) {
    EXPECT_EQ(windows(document(family)), (Windows{0, 0, 0, 0})) << family;
    EXPECT_EQ(windows(with(family, eight)), (Windows{8, 8, 8, 8})) << family;
  }
  EXPECT_EQ(windows(with("exaone4", {{"sliding_window", nullptr},
                                     {"sliding_window_pattern", 0},
                                     {"layer_types", full_types}})),
            (Windows{0, 0, 0, 0}));
  EXPECT_EQ(windows(with("exaone4", {{"sliding_window", 8},
                                     {"sliding_window_pattern", "GLGL"},
                                     {"layer_types", mixed_types}})),
            (Windows{0, 8, 0, 8}));
  expect_refused("exaone4", "sliding_window_pattern", "LLLG");
  expect_refused("cohere2", "sliding_window_pattern", 0);
  expect_refused("gemma2", "sliding_window", nullptr);
  expect_refused("gemma2", "sliding_window_pattern", 2);
}

TEST(Families, LeaveOutTheRopeWhereTransformersDoes) {
  using Turns = std::vector<bool>;
  EXPECT_EQ(turns(document("cohere2")), (Turns{true, true, true, false}));
  EXPECT_EQ(turns(document("exaone4")), (Turns{true, true, true, false}));
  EXPECT_EQ(turns(with("exaone4", {{"sliding_window", nullptr}, {"layer_types", full_types}})),
            (Turns{true, true, true, true}));
  EXPECT_EQ(turns(document("smollm3")), (Turns{true, true, true, false}));
  EXPECT_EQ(turns(with("smollm3", {{"no_rope_layer_interval", 2}})),
            (Turns{true, false, true, false}));
  EXPECT_EQ(turns(with("smollm3", {{"no_rope_layers", {0, 1, 1, 0}}})),
            (Turns{false, true, true, false}));
  EXPECT_EQ(windows(with("smollm3", {{"use_sliding_window", true},
                                     {"sliding_window", 8},
                                     {"no_rope_layers", {0, 1, 1, 0}}})),
            (std::vector<std::uint32_t>{8, 0, 0, 8}));
  EXPECT_EQ(turns(document("olmo3")), (Turns{true, true, true, true}));
  expect_refused("smollm3", "no_rope_layers", {1, 1});
  expect_refused("smollm3", "no_rope_layer_interval", 0);
}

TEST(Families, ScaleAndCapAsTheirKeysSay) {
  EXPECT_EQ(layer_of("gemma2", {{"query_pre_attn_scalar", 144}}).attention.scale,
            static_cast<float>(1.0 / 12.0));
  EXPECT_EQ(layer_of("gemma2", Json::object()).attention.softcap, 50.0F);
  EXPECT_EQ(layer_of("gemma2", {{"attn_logit_softcapping", nullptr}}).attention.softcap, 0.0F);
  EXPECT_EQ(parsed(with("gemma2", {{"final_logit_softcapping", nullptr}})).spec.head.softcap, 0.0F);
  EXPECT_EQ(parsed(with("gemma3_text", {{"final_logit_softcapping", 20.0}})).spec.head.softcap,
            20.0F);
  EXPECT_EQ(layer_of("granite", {{"attention_multiplier", 0.5}}).attention.scale, 0.5F);
  EXPECT_EQ(layer_of("granite", {{"residual_multiplier", 0.25}}).residual_multiplier, 0.25F);
  EXPECT_EQ(parsed(with("granite", {{"logits_scaling", 8}})).spec.head.multiplier, 0.125F);
  EXPECT_EQ(parsed(with("cohere", {{"logit_scale", 0.5}})).spec.head.multiplier, 0.5F);
  EXPECT_EQ(layer_of("cohere", Json::object()).attention.qk_norm, QkNorm::none);
  EXPECT_EQ(layer_of("cohere", {{"use_qk_norm", true}}).attention.qk_norm, QkNorm::head_each);
  expect_refused("granite", "logits_scaling", 0);
}

// Each says what is missing.
TEST(Families, RefuseWhatNeedsOtherArithmetic) {
  struct Row {
    const char* family;
    const char* key;
    Json value;
  };
  for (const Row& row : {
           Row{"stablelm", "qk_layernorm", true},
           Row{"stablelm", "rotary_scaling_factor", 2.0},
           Row{"phi", "qk_layernorm", true},
           Row{"opt", "word_embed_proj_dim", 512},
           Row{"opt", "do_layer_norm_before", false},
           Row{"opt", "_remove_final_layer_norm", true},
           Row{"opt", "layer_norm_elementwise_affine", false},
           Row{"gpt2", "scale_attn_by_inverse_layer_idx", true},
           Row{"gpt2", "scale_attn_weights", false},
           Row{"gpt2", "add_cross_attention", true},
           Row{"bert", "position_embedding_type", "relative_key"},
           Row{"bert", "is_decoder", true},
           Row{"bert", "add_cross_attention", true},
           Row{"falcon", "alibi", true},
           Row{"falcon", "num_ln_in_parallel_attn", 2},
           Row{"bloom", "apply_residual_connection_post_layernorm", true},
           Row{"gemma3_text", "use_bidirectional_attention", true},
           Row{"gemma3_text", "attn_logit_softcapping", 50.0},
           Row{"cohere2", "use_parallel_block", false},
           Row{"cohere2", "position_embedding_type", "alibi"},
           Row{"cohere2", "use_qk_norm", true},
           Row{"nemotron", "rope_scaling", {{"rope_type", "linear"}, {"factor", 2.0}}},
           Row{"phi3", "lm_head_bias", true},
           Row{"phi3", "attention_bias", true},
           Row{"gpt_neox", "num_key_value_heads", 8},
           Row{"gpt2", "rope_theta", 10000.0},
           Row{"bert", "rope_scaling", {{"rope_type", "linear"}, {"factor", 2.0}}},
           Row{"gemma2", "num_experts", 8},
           Row{"llama", "quantization_config", {{"quant_method", "awq"}}},
           Row{"bert", "quantization_config", {{"quant_method", "awq"}}},
       }) {
    expect_refused(row.family, row.key, row.value);
  }
  const auto falcon = parse_model_config(
      with("falcon", {{"new_decoder_architecture", true}, {"parallel_attn", false}}).dump(), "F");
  EXPECT_FALSE(falcon) << "transformers has no such layer";
}

TEST(Families, ThatAreKnownButNotBuiltInSayWhatIsMissing) {
  for (const UnsupportedFamily& row : unsupported_families()) {
    EXPECT_EQ(find_family(row.model_type), nullptr);
    const auto result = parse_model_config(Json{{"model_type", row.model_type}}.dump(), "FILE");
    ASSERT_FALSE(result);
    EXPECT_NE(result.error().message().find(row.missing), std::string::npos);
  }
  const auto unknown = parse_model_config(R"({"model_type": "nonesuch"})", "FILE");
  ASSERT_FALSE(unknown);
  for (const std::string& name : supported_model_types()) {
    EXPECT_NE(unknown.error().message().find(name), std::string::npos) << name;
  }
}

TEST(Families, AreSpelledAsTheirWritersDo) {
  const Json gpt2 = {{"model_type", "gpt2"}, {"n_embd", 64},
                     {"n_layer", 2},         {"n_head", 4},
                     {"n_positions", 128},   {"n_inner", 96},
                     {"vocab_size", 100},    {"activation_function", "relu"}};
  const ModelConfig config = parsed(gpt2);
  EXPECT_TRUE(config.warnings.empty());
  EXPECT_EQ(config.spec.hidden_size, 64U);
  EXPECT_EQ(config.spec.layers.size(), 2U);
  EXPECT_EQ(config.spec.layers[0].mlp.width, 96U);
  EXPECT_EQ(config.spec.layers[0].mlp.activation, gpu_exec::Activation::relu);
  Json word = gpt2;
  word["n_embd"] = "x";
  const auto named = parse_model_config(word.dump(), "FILE");
  ASSERT_FALSE(named);
  EXPECT_NE(named.error().message().find("'n_embd'"), std::string::npos);
  Json twice = gpt2;
  twice["hidden_size"] = 65;
  EXPECT_FALSE(parse_model_config(twice.dump(), "FILE")) << "n_embd and hidden_size differ";
  const ModelConfig neox =
      parsed(with("gpt_neox", {{"rotary_pct", 0.5}, {"partial_rotary_factor", 0.5}}));
  EXPECT_EQ(neox.spec.layers[0].attention.rope.rotary_dim, 48U);
}

// Which defaults hold is decided by who wrote the document.
TEST(Families, TakeTheDefaultsOfTheWritersVersion) {
  const auto slow = [](const Json& keys) {
    return parsed(with("cohere", keys)).spec.layers[0].attention.rope.inverse_frequency.back() <
           5e-6F;
  };
  EXPECT_FALSE(slow(Json::object()));
  EXPECT_FALSE(slow({{"transformers_version", "4.57.1"}, {"dtype", "bfloat16"}}));
  EXPECT_TRUE(slow({{"transformers_version", "5.0.0"}}));
  EXPECT_TRUE(slow({{"dtype", "bfloat16"}}));
  EXPECT_TRUE(slow({{"rope_parameters", {{"rope_type", "default"}}}}));
  EXPECT_FALSE(slow({{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 1e4}}}}));
}

TEST(Families, GiveTheirTextPartWhereTheyAreMultimodal) {
  const Json text = {{"model_type", "mistral"}, {"num_hidden_layers", 2}, {"dtype", "float16"}};
  const Json outer = {{"model_type", "mistral3"},
                      {"text_config", text},
                      {"vision_config", {{"hidden_size", 8}}},
                      {"tie_word_embeddings", true}};
  const ModelConfig config = parsed(outer);
  EXPECT_TRUE(config.names.multimodal);
  EXPECT_TRUE(config.spec.head.tied);
  EXPECT_EQ(config.dtype, gpu_exec::DType::f16);
  const auto refused = [&](const char* key, const Json& value, const char* named) {
    Json changed = outer;
    changed[key] = value;
    const auto result = parse_model_config(changed.dump(), "FILE");
    ASSERT_FALSE(result) << key;
    EXPECT_NE(result.error().message().find(std::string("'") + named + "'"), std::string::npos)
        << result.error().message();
  };
  refused("text_config", nullptr, "text_config");
  refused("text_config", {{"model_type", "olmoe"}}, "model_type");
  refused("text_config", {{"model_type", "mistral3"}}, "model_type");
  refused("text_config", {{"sliding_windows", 8}}, "sliding_windows");
  refused("quantization_config", {{"quant_method", "hqq"}}, "quantization_config");
  refused("cross_attention_layers", {3, 8}, "cross_attention_layers");
}

}  // namespace
}  // namespace librarian::weightmap
