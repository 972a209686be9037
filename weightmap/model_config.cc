#include "weightmap/model_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>

#include "weightmap/attention_config.h"
#include "weightmap/config_keys.h"
#include "weightmap/config_reader.h"
#include "weightmap/family.h"
#include "weightmap/moe_config.h"
#include "weightmap/rope_config.h"

namespace librarian::weightmap {
namespace {

using gpu_exec::Activation;
using gpu_exec::DType;
using gpu_exec::LayerSpec;
using gpu_exec::ModelSpec;

constexpr std::uint32_t kWidthMax = 1U << 20U;
constexpr std::uint32_t kLayersMax = 4096;
constexpr std::uint32_t kPositionsMax = 1U << 30U;
constexpr double kMultiplierMax = 1e9;

struct ActivationName {
  const char* name;
  Activation activation;
};
// The spellings of one function differ by less than the last bit of f32.
constexpr std::array<ActivationName, 11> kActivations{{{"silu", Activation::silu},
                                                       {"swish", Activation::silu},
                                                       {"gelu", Activation::gelu},
                                                       {"gelu_python", Activation::gelu},
                                                       {"gelu_new", Activation::gelu_tanh},
                                                       {"gelu_fast", Activation::gelu_tanh},
                                                       {"gelu_accurate", Activation::gelu_tanh},
                                                       {"gelu_python_tanh", Activation::gelu_tanh},
                                                       {"gelu_pytorch_tanh", Activation::gelu_tanh},
                                                       {"relu", Activation::relu},
                                                       {"relu2", Activation::relu_squared}}};

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

/// 4.56 and later 4 write `dtype` too, so the version counts first.
Dialect dialect_of(const Json& document) {
  const auto version = document.find("transformers_version");
  if (version != document.end() && version->is_string()) {
    return std::atoi(version->get_ref<const std::string&>().c_str()) >= 5 ? Dialect::v5
                                                                          : Dialect::v4;
  }
  const auto text = document.find("text_config");
  const auto has = [&](const char* key) {
    return document.contains(key) || (text != document.end() && text->contains(key));
  };
  if (has("rope_parameters")) {
    return Dialect::v5;
  }
  // Late versions of 4 write `dtype`, too.
  return has("dtype") && !has("rope_theta") && !has("rope_scaling") ? Dialect::v5 : Dialect::v4;
}

Result<float> read_multiplier(ConfigReader& config, const NumberKey& number) {
  if (number.key == nullptr) {
    return static_cast<float>(number.value);
  }
  LIB_TRY(const double value, config.number(number.key, 0, kMultiplierMax, number.value));
  return static_cast<float>(value);
}

Result<Activation> read_activation(ConfigReader& config, const MlpForm& form) {
  std::string name = form.activation;
  if (form.activation_key) {
    LIB_TRY(name, config.text("hidden_act", name));
  }
  if (form.hidden_activation) {
    if (name == "gelu") {
      name = "gelu_pytorch_tanh";
      if (!config.has("hidden_activation")) {
        config.warn("hidden_act",
                    "is 'gelu': taken for the tanh approximation that this family "
                    "was trained with, as transformers 5 does");
      }
    }
    LIB_TRY(name, config.text("hidden_activation", name));
  }
  std::string known;
  for (const ActivationName& row : kActivations) {
    if (name == row.name) {
      return row.activation;
    }
    known += (known.empty() ? "" : ", ") + std::string(row.name);
  }
  return config.refuse(form.hidden_activation && config.has("hidden_activation")
                           ? "hidden_activation"
                           : "hidden_act",
                       "is '" + name.substr(0, 32) + "', which is not built in (" + known + ")");
}

Result<LayerSpec> read_layer(ConfigReader& config, const Family& family, const ModelSpec& spec) {
  LayerSpec layer;
  LIB_TRY(layer.attention, read_attention(config, family, spec.hidden_size));
  layer.mlp.gated = family.mlp.gated;
  layer.mlp.fused = family.mlp.fused;
  layer.mlp.width = 4 * spec.hidden_size;
  if (family.mlp.width_key && family.sizes.width != 0) {
    LIB_TRY(layer.mlp.width,
            config.size("intermediate_size", 1, kWidthMax * 4, family.sizes.width));
  } else if (family.mlp.width_key) {
    LIB_TRY(layer.mlp.width, config.count("intermediate_size", 1, kWidthMax * 4, layer.mlp.width));
  }
  LIB_TRY(layer.mlp.activation, read_activation(config, family.mlp));
  LIB_TRY(layer.mlp.bias, read_flag(config, family.mlp.bias));
  LIB_TRY(const bool parallel, read_flag(config, family.parallel));
  const LayerForm& form = parallel ? family.parallel_layer : family.layer;
  layer.residual = form.residual;
  layer.attention_norm = form.attention_norm;
  layer.attention_out_norm = form.attention_out_norm;
  layer.mlp_norm = form.mlp_norm;
  layer.mlp_out_norm = form.mlp_out_norm;
  layer.transposed = family.transposed;
  LIB_TRY(layer.residual_multiplier,
          read_multiplier(config, {family.residual_multiplier_key, 1.0}));
  return layer;
}

Result<void> read_embedding(ConfigReader& config, const EmbeddingForm& form, ModelSpec& spec) {
  gpu_exec::EmbeddingSpec& embedding = spec.embedding;
  LIB_TRY(embedding.multiplier, read_multiplier(config, {form.multiplier_key, 1.0}));
  if (form.sqrt_hidden) {
    embedding.multiplier = static_cast<float>(std::sqrt(static_cast<double>(spec.hidden_size)));
    embedding.multiplier_in_dtype = true;
  }
  if (form.positions) {
    embedding.positions = spec.max_positions + form.position_offset;
    embedding.position_offset = form.position_offset;
  }
  if (form.types != 0) {
    LIB_TRY(embedding.types, config.count("type_vocab_size", 1, kWidthMax, form.types));
  }
  embedding.norm = form.norm;
  return {};
}

Result<void> read_head(ConfigReader& config, const HeadForm& form, gpu_exec::HeadSpec& head) {
  LIB_TRY(head.tied, config.flag("tie_word_embeddings", form.tied));
  LIB_TRY(head.multiplier, read_multiplier(config, form.multiplier));
  LIB_TRY(const float divisor, read_multiplier(config, form.divisor));
  if (!(divisor > 0)) {
    return config.refuse(form.divisor.key, "is 0, and logits are divided by it");
  }
  head.multiplier /= divisor;
  if (form.softcap.key != nullptr && !config.is_null(form.softcap.key)) {
    LIB_TRY(head.softcap, read_multiplier(config, form.softcap));
  }
  return {};
}

Result<void> check_common(ConfigReader& config, const Family& family) {
  LIB_TRY_VOID(check_fixed(config, family.fixed));
  LIB_TRY_VOID(check_any(config));
  if (config.has("auto_map")) {
    config.warn("auto_map", std::string("names code of the repository: computed is transformers' "
                                        "own '") +
                                family.model_type + "'");
  }
  for (const char* key : family.harmless) {
    config.ignore(key);
  }
  const std::vector<std::string> rest = config.unused();
  // Written for families that never have them, too.
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    if (std::find(rest.begin(), rest.end(), key) != rest.end() && config.raw(key) != false) {
      return config.refuse(key, "is not false, and model_type '" + std::string(family.model_type) +
                                    "' has no such biases");
    }
  }
  return {};
}

Result<ModelConfig> read_config(ConfigReader& config, const Family& family, Dialect dialect) {
  for (const KeyAlias& row : family.aliases) {
    LIB_TRY_VOID(config.add_spelling(row.key, row.spelling));
  }
  ModelConfig result;
  result.model_type = family.model_type;
  result.names.family = family.names;
  ModelSpec& spec = result.spec;
  const FamilySizes& sizes = family.sizes;
  LIB_TRY(spec.hidden_size, config.size("hidden_size", 1, kWidthMax, sizes.hidden));
  LIB_TRY(spec.vocab_size, config.size("vocab_size", 1, 1U << 28U, sizes.vocab));
  LIB_TRY(const std::uint32_t layers,
          config.size("num_hidden_layers", 1, kLayersMax, sizes.layers));
  if (sizes.positions != 0) {
    LIB_TRY(spec.max_positions,
            config.count("max_position_embeddings", 1, kPositionsMax, sizes.positions));
  }
  spec.norm = family.norm;
  LIB_TRY(spec.norm.epsilon, read_multiplier(config, family.epsilon));
  if (spec.norm.epsilon > 1) {
    return config.refuse(family.epsilon.key, "is above 1");
  }
  spec.final_norm = family.final_norm;
  LIB_TRY_VOID(read_embedding(config, family.embedding, spec));
  LIB_TRY_VOID(read_head(config, family.head, spec.head));
  spec.head.bias = !family.names->head_bias.empty();

  LIB_TRY(LayerSpec layer, read_layer(config, family, spec));
  if (family.adjust != nullptr) {
    LIB_TRY_VOID(family.adjust(config, spec, layer));
  }
  const bool is_latent = family.latent.kv_rank != 0;
  RopeForm rope_form = family.rope;
  if (family.latent.interleave_key) {
    LIB_TRY(const bool pairs, config.flag("rope_interleave", true));
    rope_form.style = pairs ? gpu_exec::RopeStyle::pairs : gpu_exec::RopeStyle::halves;
  }
  LIB_TRY(const RopeConfig rope,
          read_rope(config, rope_form, dialect,
                    is_latent ? layer.attention.latent.rope_dim : layer.attention.head_dim,
                    spec.max_positions));
  result.rope_type = rope.type;
  if (is_latent) {
    // As the models' own code and transformers 5.23; up to 5.8 some of its classes leave it out.
    layer.attention.scale *= static_cast<float>(rope.score_multiplier);
  }
  layer.attention.temperature_beta = static_cast<float>(rope.temperature_beta);
  layer.attention.temperature_original = rope.temperature_original;
  LIB_TRY(const std::vector<LayerKind> kinds, read_layer_kinds(config, family, layers));
  MoeConfig moe;
  if (family.moe.experts != 0) {
    LIB_TRY(moe, read_moe(config, family, layer.mlp, layers));
  }
  gpu_exec::AttentionSpec nope = layer.attention;
  nope.qk_norm = nope.qk_norm == gpu_exec::QkNorm::unit ? gpu_exec::QkNorm::none : nope.qk_norm;
  if (family.attention.nope_temperature) {
    LIB_TRY_VOID(read_nope_temperature(config, nope));
  }
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    LayerSpec& made = spec.layers.emplace_back(layer);
    if (kinds[i].rope) {
      made.attention.rope = kinds[i].local ? rope.local : rope.spec;
    } else {
      made.attention = nope;
    }
    made.attention.window = kinds[i].window;
    made.attention.chunk = kinds[i].chunk;
    if (!moe.layers.empty()) {
      made.mlp = moe.layers[i] ? moe.experts : moe.mlp;
      made.moe = moe.layers[i] ? moe.moe : gpu_exec::MoeSpec();
    }
  }
  if (family.next_token_layers) {
    LIB_TRY(const std::uint32_t beyond,
            config.count("num_nextn_predict_layers", 0, kLayersMax, 0U));
    result.names.layers_beyond = static_cast<std::int32_t>(beyond);
  }
  if (family.latent.index_topk != 0) {
    LIB_TRY(result.sample_tokens_max,
            config.count("index_topk", 1, kPositionsMax, family.latent.index_topk));
    result.samples_need = "an index that chooses the 'index_topk' keys each token sees";
  }
  LIB_TRY(result.dtype, read_dtype(config));
  LIB_TRY_VOID(check_common(config, family));
  LIB_TRY_VOID(check_unused(config, result.model_type));
  return result;
}

Error unknown_family(ConfigReader& config, const std::string& model_type) {
  for (const UnsupportedFamily& row : unsupported_families()) {
    if (model_type == row.model_type) {
      return config.refuse(
          "model_type", "is '" + model_type + "', which needs " + row.missing + ": not built in");
    }
  }
  std::string known;
  for (const std::string& name : supported_model_types()) {
    known += (known.empty() ? "" : ", ") + name;
  }
  return config.refuse("model_type", "is '" + model_type.substr(0, 64) +
                                         "', a family that is not built in (built in: " + known +
                                         ")");
}

/// The family of a document that is one model's, or of the text part of one.
Result<ModelConfig> read_text_model(ConfigReader& config, const std::string& fallback_type,
                                    Dialect dialect) {
  LIB_TRY(const std::string model_type, config.text("model_type", fallback_type));
  const Family* family = find_family(model_type);
  if (family == nullptr) {
    return unknown_family(config, model_type);
  }
  LIB_TRY(ModelConfig result, read_config(config, *family, dialect));
  result.warnings = config.warnings();
  return result;
}

void warn_of_sizes(const ConfigReader& config, ModelConfig& result) {
  std::string taken;
  for (const std::string& size : config.sizes_taken()) {
    taken += (taken.empty() ? "" : ", ") + size;
  }
  if (!taken.empty()) {
    result.warnings.push_back(config.what() + ": absent, so taken as transformers' '" +
                              result.model_type + "' has it: " + taken);
  }
}

Result<ModelConfig> read_wrapped(ConfigReader& outer, const Wrapper& wrapper, Dialect dialect) {
  const Json& text = outer.raw("text_config");
  if (!text.is_object()) {
    return outer.refuse("text_config", "is not an object; the text model of a '" +
                                           std::string(wrapper.model_type) + "' is read from it");
  }
  ConfigReader config(text, outer.what() + ": 'text_config'");
  config
      .allow_absent_sizes();  // Writers compare a part with its class and leave out what is equal.
  LIB_TRY(ModelConfig result, read_text_model(config, wrapper.text_type, dialect));
  warn_of_sizes(config, result);
  result.names.multimodal = true;
  LIB_TRY(const std::optional<DType> dtype, read_dtype(outer));
  if (!result.dtype) {
    result.dtype = dtype;
  }
  LIB_TRY(const bool tied, outer.flag("tie_word_embeddings", result.spec.head.tied));
  if (!config.has("tie_word_embeddings")) {
    result.spec.head.tied = tied;
  }
  LIB_TRY_VOID(check_any(outer));
  ignore_other_parts(outer);
  LIB_TRY_VOID(check_unused(outer, wrapper.model_type));
  return result;
}

Result<ModelConfig> read_document(const Json& document, const std::string& what) {
  ConfigReader config(document, what);
  LIB_TRY(const std::string model_type, config.text("model_type", ""));
  const Dialect dialect = dialect_of(document);
  for (const Wrapper& wrapper : wrappers()) {
    if (model_type == wrapper.model_type) {
      return read_wrapped(config, wrapper, dialect);
    }
  }
  return read_text_model(config, "", dialect);
}

/// Of the document, or of its text part.
Result<std::optional<Quantisation>> read_document_quantisation(const Json& document,
                                                               const std::string& what) {
  constexpr const char* kKey = "quantization_config";
  const auto text = document.find("text_config");
  for (const Json* part : {&document, text == document.end() ? nullptr : &*text}) {
    if (part == nullptr || !part->is_object() || !part->contains(kKey) ||
        part->at(kKey).is_null()) {
      continue;
    }
    if (!part->at(kKey).is_object()) {
      return Error(ErrorCode::bad_input, what + ": 'quantization_config' is not an object");
    }
    LIB_TRY(Quantisation quantisation, read_quantisation(part->at(kKey), what));
    return quantisation;
  }
  return std::optional<Quantisation>();
}

}  // namespace

std::vector<std::string> supported_model_types() {
  std::vector<std::string> names;
  for (const Family* family : families()) {
    names.emplace_back(family->model_type);
  }
  for (const Wrapper& wrapper : wrappers()) {
    names.emplace_back(wrapper.model_type);
  }
  std::sort(names.begin(), names.end());
  return names;
}

Result<ModelConfig> parse_model_config(std::string_view json, const std::string& what) {
  LIB_TRY(const Json document, parse_json(json, what));
  LIB_TRY(ModelConfig result, read_document(document, what));
  LIB_TRY(result.quantisation, read_document_quantisation(document, what));
  return result;
}

}  // namespace librarian::weightmap
