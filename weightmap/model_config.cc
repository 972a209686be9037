#include "weightmap/model_config.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "gpu_exec/device.h"
#include "weightmap/config_reader.h"
#include "weightmap/rope_config.h"

namespace librarian::weightmap {
namespace {

using gpu_exec::DType;
using gpu_exec::LayerSpec;
using gpu_exec::ModelSpec;

constexpr std::uint32_t kWidthMax = 1U << 20U;
constexpr std::uint32_t kLayersMax = 4096;
constexpr std::uint32_t kHeadsMax = 4096;
constexpr std::uint32_t kPositionsMax = 1U << 30U;

/// How a family decides which layers attend through a window.
enum class WindowRule : std::uint8_t {
  none,         ///< `sliding_window` is not a key of this family.
  every_layer,  ///< Wherever `sliding_window` is a number.
  upper_layers  ///< use_sliding_window, from layer max_window_layers on; layer_types overrides.
};
/// Where a family has biases in its attention.
enum class AttentionBias : std::uint8_t { by_key, qkv_always, never };

/// What transformers fills in when a key is absent, and what differs between the families.
struct Family {
  const char* model_type;
  std::uint32_t max_positions;
  double rope_theta;
  std::uint32_t head_dim;        ///< 0: hidden_size / heads.
  std::uint32_t kv_heads;        ///< 0: as many as heads.
  std::uint32_t sliding_window;  ///< When the key is absent; 0: none.
  AttentionBias attention_bias;
  bool mlp_bias_key;
  bool qk_norm;
  WindowRule window_rule;
};
constexpr std::array<Family, 4> kFamilies{{
    {"llama", 2048, 10000.0, 0, 0, 0, AttentionBias::by_key, true, false, WindowRule::none},
    {"mistral", 131072, 10000.0, 0, 8, 4096, AttentionBias::never, false, false,
     WindowRule::every_layer},
    {"qwen2", 32768, 10000.0, 0, 32, 4096, AttentionBias::qkv_always, false, false,
     WindowRule::upper_layers},
    {"qwen3", 32768, 10000.0, 128, 32, 4096, AttentionBias::by_key, false, true,
     WindowRule::upper_layers},
}};

/// Keys that say nothing about the arithmetic of a forward pass: training, generation, file and
/// library bookkeeping.
constexpr std::array kHarmlessKeys{"_attn_implementation",
                                   "_attn_implementation_autoset",
                                   "_commit_hash",
                                   "_name_or_path",
                                   "add_cross_attention",
                                   "architectures",
                                   "attention_dropout",
                                   "bad_words_ids",
                                   "begin_suppress_tokens",
                                   "bos_token_id",
                                   "chunk_size_feed_forward",
                                   "cross_attention_hidden_size",
                                   "decoder_start_token_id",
                                   "diversity_penalty",
                                   "do_sample",
                                   "early_stopping",
                                   "encoder_no_repeat_ngram_size",
                                   "eos_token_id",
                                   "exponential_decay_length_penalty",
                                   "finetuning_task",
                                   "forced_bos_token_id",
                                   "forced_eos_token_id",
                                   "id2label",
                                   "initializer_range",
                                   "is_decoder",
                                   "is_encoder_decoder",
                                   "label2id",
                                   "length_penalty",
                                   "max_length",
                                   "min_length",
                                   "no_repeat_ngram_size",
                                   "num_beam_groups",
                                   "num_beams",
                                   "num_return_sequences",
                                   "output_attentions",
                                   "output_hidden_states",
                                   "output_scores",
                                   "pad_token_id",
                                   "prefix",
                                   "problem_type",
                                   "remove_invalid_values",
                                   "repetition_penalty",
                                   "return_dict",
                                   "return_dict_in_generate",
                                   "sep_token_id",
                                   "suppress_tokens",
                                   "task_specific_params",
                                   "temperature",
                                   "tf_legacy_loss",
                                   "tie_encoder_decoder",
                                   "tokenizer_class",
                                   "top_k",
                                   "top_p",
                                   "torchscript",
                                   "transformers_version",
                                   "typical_p",
                                   "unsloth_fixed",
                                   "unsloth_version",
                                   "use_bfloat16",
                                   "use_cache"};

std::optional<DType> parse_dtype(const std::string& text) {
  if (text == "bfloat16") {
    return DType::bf16;
  }
  if (text == "float16") {
    return DType::f16;
  }
  if (text == "float32") {
    return DType::f32;
  }
  return std::nullopt;
}

Result<std::optional<DType>> read_dtype(ConfigReader& config) {
  LIB_TRY(const std::string old_name, config.text("torch_dtype", ""));
  LIB_TRY(const std::string name, config.text("dtype", old_name));
  if (!old_name.empty() && name != old_name) {
    return config.refuse("dtype", "is '" + name.substr(0, 32) + "' and 'torch_dtype' is '" +
                                      old_name.substr(0, 32) + "': which one?");
  }
  const std::optional<DType> type = parse_dtype(name);
  if (!name.empty() && !type) {
    return config.refuse("dtype",
                         "is '" + name.substr(0, 32) + "'; built in: bfloat16, float16, float32");
  }
  return type;
}

/// Window of each layer, 0 where it sees everything.
Result<std::vector<std::uint32_t>> read_windows(ConfigReader& config, const Family& family,
                                                std::uint32_t layers) {
  std::vector<std::uint32_t> windows(layers, 0);
  if (family.window_rule == WindowRule::none) {
    return windows;
  }
  // A null means no window; an absent key means the family's default.
  const std::uint32_t fallback = config.is_null("sliding_window") ? 0 : family.sliding_window;
  LIB_TRY(const std::uint32_t window, config.count("sliding_window", 1, kPositionsMax, fallback));
  if (family.window_rule == WindowRule::every_layer) {
    std::fill(windows.begin(), windows.end(), window);
    return windows;
  }
  LIB_TRY(const bool use_window, config.flag("use_sliding_window", false));
  LIB_TRY(const std::uint32_t first, config.count("max_window_layers", 0, kLayersMax, 28U));
  const Json& types = config.raw("layer_types");
  if (!types.is_null() && (!types.is_array() || types.size() != layers)) {
    return config.refuse("layer_types", "is not a list of one entry per layer");
  }
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    bool sliding = layer >= first;
    if (types.is_array()) {
      if (types[layer] != "sliding_attention" && types[layer] != "full_attention") {
        return config.refuse("layer_types", "has " +
                                                types[layer].dump(-1, ' ', true).substr(0, 64) +
                                                "; built in: full_attention, sliding_attention");
      }
      sliding = types[layer] == "sliding_attention";
    }
    windows[layer] = use_window && sliding ? window : 0;
  }
  return windows;
}

Result<gpu_exec::AttentionSpec> read_attention(ConfigReader& config, const Family& family,
                                               std::uint32_t hidden) {
  gpu_exec::AttentionSpec attention;
  LIB_TRY(attention.heads, config.count("num_attention_heads", 1, kHeadsMax));
  // A null means one per head; an absent key means the family's default.
  const bool one_per_head = family.kv_heads == 0 || config.is_null("num_key_value_heads");
  const std::uint32_t kv_default = one_per_head ? attention.heads : family.kv_heads;
  LIB_TRY(attention.kv_heads, config.count("num_key_value_heads", 1, kHeadsMax, kv_default));
  const bool derived_dim = family.head_dim == 0 || config.is_null("head_dim");
  const std::uint32_t dim_default = derived_dim ? hidden / attention.heads : family.head_dim;
  LIB_TRY(attention.head_dim, config.count("head_dim", 2, gpu_exec::kHeadDimMax, dim_default));
  if (attention.head_dim < 2 || attention.head_dim > gpu_exec::kHeadDimMax) {
    return config.refuse("head_dim", "(hidden_size / num_attention_heads) is " +
                                         std::to_string(attention.head_dim) + ", outside 2 to " +
                                         std::to_string(gpu_exec::kHeadDimMax));
  }
  if (attention.heads % attention.kv_heads != 0) {
    return config.refuse("num_key_value_heads", "does not divide num_attention_heads");
  }
  if (attention.head_dim % 2 != 0) {
    return config.refuse("head_dim", "is odd; rotary embedding turns pairs of dimensions");
  }
  attention.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(attention.head_dim)));
  attention.qk_norm = family.qk_norm ? gpu_exec::QkNorm::head : gpu_exec::QkNorm::none;
  if (family.attention_bias == AttentionBias::by_key) {
    LIB_TRY(attention.qkv_bias, config.flag("attention_bias", false));
    attention.out_bias = attention.qkv_bias;
  } else {
    attention.qkv_bias = family.attention_bias == AttentionBias::qkv_always;
  }
  return attention;
}

Result<ModelConfig> read_config(ConfigReader& config, const Family& family) {
  ModelConfig result;
  result.model_type = family.model_type;
  ModelSpec& spec = result.spec;
  LIB_TRY(spec.hidden_size, config.count("hidden_size", 1, kWidthMax));
  LIB_TRY(spec.vocab_size, config.count("vocab_size", 1, 1U << 28U));
  LIB_TRY(const std::uint32_t layers, config.count("num_hidden_layers", 1, kLayersMax));
  LIB_TRY(spec.max_positions,
          config.count("max_position_embeddings", 1, kPositionsMax, family.max_positions));
  LIB_TRY(const double epsilon, config.number("rms_norm_eps", 0.0, 1.0, 1e-6));
  spec.norm.epsilon = static_cast<float>(epsilon);
  LIB_TRY(spec.head.tied, config.flag("tie_word_embeddings", false));

  LayerSpec layer;
  LIB_TRY(layer.attention, read_attention(config, family, spec.hidden_size));
  LIB_TRY(layer.mlp.width, config.count("intermediate_size", 1, kWidthMax * 4));
  if (family.mlp_bias_key) {
    LIB_TRY(layer.mlp.bias, config.flag("mlp_bias", false));
  }
  LIB_TRY(const std::string activation, config.text("hidden_act", "silu"));
  if (activation != "silu" && activation != "swish") {
    return config.refuse("hidden_act",
                         "is '" + activation.substr(0, 32) + "', which is not built in (silu)");
  }
  LIB_TRY(RopeConfig rope,
          parse_rope(config, layer.attention.head_dim, spec.max_positions, family.rope_theta));
  result.rope_type = rope.type;
  layer.attention.rope = std::move(rope.spec);
  LIB_TRY(const std::vector<std::uint32_t> windows, read_windows(config, family, layers));
  for (const std::uint32_t window : windows) {
    spec.layers.push_back(layer);
    spec.layers.back().attention.window = window;
  }

  LIB_TRY(const std::uint32_t pretraining_tp, config.count("pretraining_tp", 0, 1024, 1U));
  if (pretraining_tp > 1) {
    return config.refuse("pretraining_tp", "is above 1: that splits sums and changes the bits");
  }
  if (config.has("quantization_config")) {
    return config.refuse("quantization_config", "says the weights are quantised: not built in yet");
  }
  LIB_TRY(const bool multimodal_rope, config.flag("use_mrope", false));
  if (multimodal_rope) {
    return config.refuse("use_mrope", "is true: positions of images are not built in");
  }
  LIB_TRY(result.dtype, read_dtype(config));
  return result;
}

}  // namespace

std::vector<std::string> supported_model_types() {
  std::vector<std::string> names;
  for (const Family& family : kFamilies) {
    names.emplace_back(family.model_type);
  }
  std::sort(names.begin(), names.end());
  return names;
}

Result<ModelConfig> parse_model_config(std::string_view json, const std::string& what) {
  LIB_TRY(const Json document, parse_json(json, what));
  ConfigReader config(document, what);
  LIB_TRY(const std::string model_type, config.text("model_type", ""));
  const auto* family = std::find_if(kFamilies.begin(), kFamilies.end(), [&](const Family& row) {
    return model_type == row.model_type;
  });
  if (family == kFamilies.end()) {
    std::string known;
    for (const std::string& name : supported_model_types()) {
      known += (known.empty() ? "" : ", ") + name;
    }
    return config.refuse("model_type", "is '" + model_type.substr(0, 64) +
                                           "', a family that is not built in (built in: " + known +
                                           ")");
  }
  for (const char* key : kHarmlessKeys) {
    config.ignore(key);
  }
  LIB_TRY(ModelConfig result, read_config(config, *family));
  for (const std::string& unknown : config.unused()) {
    return config.refuse(unknown.substr(0, 128),
                         "is a key that is neither used nor known to be harmless for model_type '" +
                             model_type + "'");
  }
  return result;
}

}  // namespace librarian::weightmap
