// Goal: a config.json becomes the one specification that transformers would run, or is refused by
// the name of the key that we cannot honour.
// Method: one valid document per family, changed key by key.
#include "weightmap/model_config.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/json.h"

namespace librarian::weightmap {
namespace {

Json base_config(const std::string& family) {
  return {{"model_type", family},
          {"hidden_size", 256},
          {"intermediate_size", 512},
          {"num_hidden_layers", 4},
          {"num_attention_heads", 8},
          {"num_key_value_heads", 2},
          {"vocab_size", 1000},
          {"head_dim", 32},
          {"hidden_act", "silu"},
          {"rms_norm_eps", 1e-5},
          {"max_position_embeddings", 4096}};
}

Result<ModelConfig> parse(const Json& config) { return parse_model_config(config.dump(), "FILE"); }

ModelConfig parsed(const Json& config) {
  auto result = parse(config);
  EXPECT_TRUE(result) << result.error().message();
  return result ? *std::move(result) : ModelConfig();
}

bool same_layer(const gpu_exec::LayerSpec& a, const gpu_exec::LayerSpec& b) {
  const gpu_exec::AttentionSpec& x = a.attention;
  const gpu_exec::AttentionSpec& y = b.attention;
  return x.heads == y.heads && x.kv_heads == y.kv_heads && x.head_dim == y.head_dim &&
         x.scale == y.scale && x.qkv_bias == y.qkv_bias && x.out_bias == y.out_bias &&
         x.qk_norm == y.qk_norm && x.window == y.window && x.rope.rotary_dim == y.rope.rotary_dim &&
         x.rope.inverse_frequency == y.rope.inverse_frequency &&
         x.rope.cos_sin_multiplier == y.rope.cos_sin_multiplier && a.mlp.width == b.mlp.width &&
         a.mlp.bias == b.mlp.bias && a.mlp.activation == b.mlp.activation;
}

bool same_spec(const ModelConfig& a, const ModelConfig& b) {
  return a.dtype == b.dtype && a.rope_type == b.rope_type &&
         a.spec.hidden_size == b.spec.hidden_size && a.spec.vocab_size == b.spec.vocab_size &&
         a.spec.max_positions == b.spec.max_positions &&
         a.spec.norm.epsilon == b.spec.norm.epsilon && a.spec.head.tied == b.spec.head.tied &&
         std::equal(a.spec.layers.begin(), a.spec.layers.end(), b.spec.layers.begin(),
                    b.spec.layers.end(), same_layer);
}

const std::vector<std::string> kFamilies{"llama", "mistral", "qwen2", "qwen3"};

TEST(ModelConfig, OfEveryFamilyHasItsOwnFlags) {
  for (const std::string& family : kFamilies) {
    const ModelConfig config = parsed(base_config(family));
    ASSERT_EQ(config.spec.layers.size(), 4U);
    const gpu_exec::AttentionSpec& attention = config.spec.layers[3].attention;
    EXPECT_EQ(config.model_type, family);
    EXPECT_EQ(attention.heads, 8U);
    EXPECT_EQ(attention.kv_heads, 2U);
    EXPECT_EQ(attention.head_dim, 32U);
    EXPECT_FLOAT_EQ(attention.scale, static_cast<float>(1 / std::sqrt(32.0)));
    EXPECT_EQ(attention.qkv_bias, family == "qwen2");
    EXPECT_FALSE(attention.out_bias);
    EXPECT_EQ(attention.qk_norm == gpu_exec::QkNorm::head, family == "qwen3");
    EXPECT_EQ(attention.window, family == "mistral" ? 4096U : 0U);
    EXPECT_EQ(config.spec.layers[3].mlp.width, 512U);
    EXPECT_FALSE(config.spec.layers[3].mlp.bias);
    EXPECT_FLOAT_EQ(config.spec.norm.epsilon, 1e-5F);
    EXPECT_FALSE(config.spec.head.tied);
    EXPECT_FALSE(config.dtype.has_value());
    EXPECT_EQ(config.rope_type, "default");
  }
}

// Goal: transformers 4 and 5 write the same model differently; we read the same model.
TEST(ModelConfig, InBothDialectsIsTheSameSpec) {
  const Json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 1024}};
  const Json linear = {{"type", "linear"}, {"factor", 2.5}};
  for (const std::string& family : kFamilies) {
    for (const Json& scaling : {Json(nullptr), llama3, linear}) {
      Json old_dialect = base_config(family);
      old_dialect["rope_theta"] = 500000.0;
      old_dialect["rope_scaling"] = scaling;
      old_dialect["torch_dtype"] = "bfloat16";
      Json new_dialect = base_config(family);
      Json parameters = scaling.is_null() ? Json{{"rope_type", "default"}} : scaling;
      if (parameters.contains("type")) {
        parameters = {{"rope_type", "linear"}, {"factor", 2.5}};
      }
      parameters["rope_theta"] = 500000.0;
      new_dialect["rope_parameters"] = parameters;
      new_dialect["dtype"] = "bfloat16";
      EXPECT_TRUE(same_spec(parsed(old_dialect), parsed(new_dialect))) << old_dialect.dump();
    }
  }
}

struct DefaultCase {
  const char* family;
  const char* key;
  std::uint32_t absent;
  std::uint32_t null;
};

// Goal: writers leave out what equals a class default, and a null is not the default.
// Source of the numbers: transformers 4.57 configuration_*.py.
TEST(ModelConfig, KnowsTheDefaultOfAnAbsentKeyAndTheMeaningOfNull) {
  // One head per key head, so that the families' default of 32 or 8 key heads divides the heads.
  const auto value_of = [](const ModelConfig& config, const std::string& key) {
    const gpu_exec::AttentionSpec& attention = config.spec.layers.back().attention;
    return key == "num_key_value_heads"       ? attention.kv_heads
           : key == "head_dim"                ? attention.head_dim
           : key == "max_position_embeddings" ? config.spec.max_positions
                                              : attention.window;
  };
  for (const DefaultCase& row : {
           DefaultCase{"llama", "num_key_value_heads", 64, 64},
           DefaultCase{"mistral", "num_key_value_heads", 8, 64},
           DefaultCase{"qwen2", "num_key_value_heads", 32, 64},
           DefaultCase{"qwen3", "num_key_value_heads", 32, 64},
           DefaultCase{"llama", "head_dim", 4, 4},
           DefaultCase{"mistral", "head_dim", 4, 4},
           DefaultCase{"qwen2", "head_dim", 4, 4},
           DefaultCase{"qwen3", "head_dim", 128, 4},
           DefaultCase{"mistral", "sliding_window", 4096, 0},
           DefaultCase{"qwen2", "sliding_window", 4096, 0},
           DefaultCase{"qwen3", "sliding_window", 4096, 0},
           DefaultCase{"llama", "max_position_embeddings", 2048, 2048},
           DefaultCase{"mistral", "max_position_embeddings", 131072, 131072},
           DefaultCase{"qwen2", "max_position_embeddings", 32768, 32768},
           DefaultCase{"qwen3", "max_position_embeddings", 32768, 32768},
       }) {
    Json config = base_config(row.family);
    config["num_attention_heads"] = 64;
    if (std::string(row.family).starts_with("qwen")) {
      config["use_sliding_window"] = true;
      config["max_window_layers"] = 0;
    }
    config.erase(row.key);
    EXPECT_EQ(value_of(parsed(config), row.key), row.absent) << row.family << " " << row.key;
    config[row.key] = nullptr;
    EXPECT_EQ(value_of(parsed(config), row.key), row.null) << row.family << " " << row.key;
  }
}

TEST(ModelConfig, GivesTheWindowToTheRightLayers) {
  const auto windows = [](const Json& config) {
    std::vector<std::uint32_t> list;
    for (const gpu_exec::LayerSpec& layer : parsed(config).spec.layers) {
      list.push_back(layer.attention.window);
    }
    return list;
  };
  using Windows = std::vector<std::uint32_t>;
  for (const std::string family : {"qwen2", "qwen3"}) {
    Json config = base_config(family);
    config["sliding_window"] = 64;
    config["max_window_layers"] = 3;
    EXPECT_EQ(windows(config), (Windows{0, 0, 0, 0})) << "use_sliding_window is off by default";
    config["use_sliding_window"] = true;
    EXPECT_EQ(windows(config), (Windows{0, 0, 0, 64}));
    config["layer_types"] = {"sliding_attention", "full_attention", "sliding_attention",
                             "full_attention"};
    EXPECT_EQ(windows(config), (Windows{64, 0, 64, 0}));
    config["use_sliding_window"] = false;
    EXPECT_EQ(windows(config), (Windows{0, 0, 0, 0}));
    config.erase("layer_types");
    config.erase("max_window_layers");
    config["use_sliding_window"] = true;
    EXPECT_EQ(windows(config), (Windows{0, 0, 0, 0})) << "the default of max_window_layers is 28";
  }
  Json mistral = base_config("mistral");
  mistral["sliding_window"] = 100;
  EXPECT_EQ(windows(mistral), (Windows{100, 100, 100, 100}));
}

TEST(ModelConfig, ReadsBiasesWhereTheFamilyHasThem) {
  Json llama = base_config("llama");
  llama["attention_bias"] = true;
  llama["mlp_bias"] = true;
  const gpu_exec::LayerSpec layer = parsed(llama).spec.layers[0];
  EXPECT_TRUE(layer.attention.qkv_bias && layer.attention.out_bias && layer.mlp.bias);
  Json qwen3 = base_config("qwen3");
  qwen3["attention_bias"] = true;
  EXPECT_TRUE(parsed(qwen3).spec.layers[0].attention.out_bias);
}

struct RefusedCase {
  const char* family;
  const char* key;
  Json value;
};

// Catches: a value that is clamped, wrapped or ignored; an error that does not say where to look.
TEST(ModelConfig, RefusesByTheNameOfTheKey) {
  const RefusedCase cases[] = {
      {"llama", "model_type", "gpt3"},
      {"llama", "model_type", "olmoe"},
      {"llama", "model_type", "apertus"},
      {"llama", "model_type", ""},
      {"llama", "model_type", "Llama"},
      {"llama", "model_type", 3},
      {"llama", "model_type", nullptr},
      {"llama", "hidden_size", nullptr},
      {"llama", "hidden_size", 0},
      {"llama", "hidden_size", -256},
      {"llama", "hidden_size", 256.0},
      {"llama", "hidden_size", "256"},
      {"llama", "hidden_size", 1ULL << 32U},
      {"llama", "hidden_size", (1ULL << 32U) + 256},
      {"llama", "vocab_size", nullptr},
      {"llama", "vocab_size", 1ULL << 40U},
      {"llama", "intermediate_size", nullptr},
      {"llama", "intermediate_size", 0},
      {"llama", "intermediate_size", Json::array({512, 512})},
      {"llama", "num_hidden_layers", 0},
      {"llama", "num_hidden_layers", 4097},
      {"llama", "num_hidden_layers", nullptr},
      {"llama", "num_attention_heads", 0},
      {"llama", "num_attention_heads", true},
      {"llama", "num_key_value_heads", 3},
      {"llama", "num_key_value_heads", 16},
      {"llama", "num_key_value_heads", 0},
      {"llama", "head_dim", 0},
      {"llama", "head_dim", 33},
      {"llama", "head_dim", 1 << 20U},
      {"llama", "rms_norm_eps", -1e-5},
      {"llama", "rms_norm_eps", "1e-5"},
      {"llama", "rms_norm_eps", 2.0},
      {"llama", "tie_word_embeddings", 1},
      {"llama", "attention_bias", "yes"},
      {"llama", "mlp_bias", 0},
      {"llama", "hidden_act", "quick_gelu"},
      {"llama", "hidden_act", "xielu"},
      {"llama", "hidden_act", "linear"},
      {"llama", "hidden_act", Json::array({"silu"})},
      {"llama", "rope_theta", 0.0},
      {"llama", "rope_theta", -10000},
      {"llama", "rope_theta", "10000"},
      {"llama", "rope_scaling", "linear"},
      {"llama", "rope_scaling", Json::array()},
      {"qwen2", "rope_scaling", {{"type", "mrope"}, {"mrope_section", {16, 24, 24}}}},
      {"llama", "rope_parameters", {{"rope_type", "proportional"}}},
      {"llama", "rope_parameters", {{"full_attention", {{"rope_theta", 1e4}}}}},
      {"llama", "is_encoder_decoder", true},
      {"llama", "pruned_heads", {{"0", {1, 2}}}},
      {"llama", "text_config", Json::object()},
      {"llama", "quantization_config", {{"quant_method", "hqq"}}},
      {"llama", "torch_dtype", "float8_e4m3fn"},
      {"llama", "dtype", "int8"},
      {"llama", "sliding_window", 4096},
      {"llama", "num_experts", 8},
      {"llama", "attn_logit_softcapping", 50.0},
      {"llama", "partial_rotary_factor", 0.5},
      {"llama", "embedding_multiplier", 12.0},
      {"llama", "resid_pdrop_typo", nullptr},
      {"mistral", "attention_bias", true},
      {"mistral", "sliding_window", 0},
      {"mistral", "sliding_window", -1},
      {"mistral", "mlp_bias", true},
      {"mistral", "layer_types", Json::array({"full_attention"})},
      {"qwen2", "attention_bias", true},
      {"qwen2", "use_sliding_window", "true"},
      {"qwen2", "max_window_layers", -1},
      {"qwen2", "layer_types", Json::array({"full_attention"})},
      {"qwen2", "layer_types", "full_attention"},
      {"qwen3", "layer_types",
       Json::array({"full_attention", "full_attention", "full_attention", "linear_attention"})},
      {"qwen3", "layer_types", Json::array({1, 2, 3, 4})},
      {"qwen3", "num_experts_per_tok", 8},
  };
  for (const RefusedCase& row : cases) {
    Json config = base_config(row.family);
    config[row.key] = row.value;
    const auto result = parse(config);
    const std::string what = std::string(row.family) + " " + row.key + " " + row.value.dump();
    ASSERT_FALSE(result) << what;
    EXPECT_EQ(result.error().code(), ErrorCode::bad_input) << what;
    const std::string& message = result.error().message();
    EXPECT_EQ(message.find("FILE: "), 0U) << message;
    // Both spellings of the type are one key to people.
    const std::string key = std::string(row.key) == "torch_dtype" ? "dtype" : row.key;
    EXPECT_NE(message.find("'" + key + "'"), std::string::npos) << what << ": " << message;
  }
}

// Catches: one of two contradicting sources being taken without a word.
TEST(ModelConfig, RefusesTwoAnswersToOneQuestion) {
  Json rope = base_config("llama");
  rope["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 10000.0}};
  rope["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 4.0}};
  EXPECT_FALSE(parse(rope)) << "rope_parameters and rope_scaling contradict each other";
  Json type = base_config("llama");
  type["torch_dtype"] = "float16";
  type["dtype"] = "float32";
  EXPECT_FALSE(parse(type)) << "torch_dtype and dtype contradict each other";
}

// Goal: a config.json without transformers_version is read as the version that writes such keys.
// Method: cohere, whose theta is 10,000 in 4 and 500,000 in 5 where nobody says it.
TEST(ModelConfig, WithoutAVersionIsReadAsWhoWritesItsKeys) {
  const auto second_frequency = [](const Json& extra) {
    Json config = base_config("cohere");
    config.erase("rms_norm_eps");
    config.erase("head_dim");
    config.update(extra);
    return parsed(config).spec.layers[0].attention.rope.inverse_frequency.at(1);
  };
  const float of_4 = second_frequency(Json::object());
  const float of_5 = second_frequency({{"rope_parameters", {{"rope_type", "default"}}}});
  EXPECT_GT(of_4, of_5);
  EXPECT_EQ(second_frequency({{"dtype", "bfloat16"}}), of_5);
  EXPECT_EQ(second_frequency({{"torch_dtype", "bfloat16"}}), of_4);
  EXPECT_EQ(second_frequency({{"dtype", "bfloat16"}, {"rope_scaling", nullptr}}), of_4);
}

TEST(ModelConfig, RopeTypeCountsBeforeTheOldType) {
  Json config = base_config("llama");
  config["rope_scaling"] = {{"type", "dynamic"}, {"rope_type", "linear"}, {"factor", 2.0}};
  const ModelConfig read = parsed(config);
  EXPECT_EQ(read.rope_type, "linear");
  EXPECT_EQ(read.warnings.size(), 1U);
}

TEST(ModelConfig, ThatIsNoObjectIsRefused) {
  for (const char* text : {"", "[]", "null", "{", "{\"model_type\":\"llama\"}", "<html>",
                           R"({"model_type":"llama","model_type":"llama"})"}) {
    const auto result = parse_model_config(text, "FILE");
    ASSERT_FALSE(result) << text;
    EXPECT_EQ(result.error().code(), ErrorCode::bad_input) << text;
  }
}

}  // namespace
}  // namespace librarian::weightmap
