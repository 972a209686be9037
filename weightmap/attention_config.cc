#include "weightmap/attention_config.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "gpu_exec/device.h"

namespace librarian::weightmap {
namespace {

using gpu_exec::AttentionSpec;

constexpr std::uint32_t kHeadsMax = 4096;
constexpr std::uint32_t kRankMax = 1U << 20U;
constexpr std::uint32_t kLayersMax = 4096;
constexpr std::uint32_t kPositionsMax = 1U << 30U;

Result<void> read_heads(ConfigReader& config, const Family& family, std::uint32_t hidden,
                        AttentionSpec& attention) {
  const FamilySizes& sizes = family.sizes;
  LIB_TRY(attention.heads, config.size("num_attention_heads", 1, kHeadsMax, sizes.heads));
  attention.kv_heads = attention.heads;
  if (family.attention.kv_heads_key) {
    // A null means one per head; an absent key means the family's default.
    const bool one_per_head = sizes.kv_heads == 0 || config.is_null("num_key_value_heads");
    LIB_TRY(attention.kv_heads, config.count("num_key_value_heads", 1, kHeadsMax,
                                             one_per_head ? attention.heads : sizes.kv_heads));
    if (attention.heads % attention.kv_heads != 0) {
      return config.refuse("num_key_value_heads", "does not divide num_attention_heads");
    }
  }
  attention.head_dim = hidden / attention.heads;
  if (family.attention.head_dim_key) {
    const bool derived = sizes.head_dim == 0 || config.is_null("head_dim");
    LIB_TRY(attention.head_dim, config.count("head_dim", 2, gpu_exec::kHeadDimMax,
                                             derived ? attention.head_dim : sizes.head_dim));
  } else if (hidden % attention.heads != 0) {
    return config.refuse("num_attention_heads", "does not divide hidden_size");
  }
  if (attention.head_dim < 2 || attention.head_dim > gpu_exec::kHeadDimMax) {
    return config.refuse("head_dim", "(hidden_size / num_attention_heads) is " +
                                         std::to_string(attention.head_dim) + ", outside 2 to " +
                                         std::to_string(gpu_exec::kHeadDimMax));
  }
  if (attention.head_dim % 2 != 0) {
    return config.refuse("head_dim", "is odd; only even ones are built in");
  }
  return {};
}

Result<double> read_scale(ConfigReader& config, ScaleRule rule, std::uint32_t head_dim) {
  switch (rule) {
    case ScaleRule::head_dim:
      break;
    case ScaleRule::query_pre_attn: {
      LIB_TRY(const double scalar, config.number("query_pre_attn_scalar", 1e-6, 1e9, 256.0));
      return 1.0 / std::sqrt(scalar);
    }
    case ScaleRule::multiplier:
      return config.number("attention_multiplier", 0, 1e9, 1.0);
  }
  return 1.0 / std::sqrt(static_cast<double>(head_dim));
}

/// Which layers `layer_types` says have a window; empty if it is absent.
Result<std::vector<bool>> read_layer_types(ConfigReader& config, std::uint32_t layers) {
  const Json& types = config.raw("layer_types");
  std::vector<bool> sliding;
  if (types.is_null()) {
    return sliding;
  }
  if (!types.is_array() || types.size() != layers) {
    return config.refuse("layer_types", "is not a list of one entry per layer");
  }
  for (const Json& type : types) {
    if (type != "sliding_attention" && type != "full_attention") {
      return config.refuse("layer_types", "has " + type.dump(-1, ' ', true).substr(0, 64) +
                                              "; built in: full_attention, sliding_attention");
    }
    sliding.push_back(type == "sliding_attention");
  }
  return sliding;
}

/// All but every pattern-th layer have a window, unless layer_types says otherwise.
Result<std::vector<bool>> read_pattern(ConfigReader& config, const WindowForm& form,
                                       std::vector<bool> listed, std::uint32_t layers,
                                       bool has_window) {
  constexpr const char* kPattern = "sliding_window_pattern";
  const bool unused = !listed.empty() || (form.window_null && !has_window);
  std::uint32_t pattern = form.pattern;
  if (form.pattern_key && unused) {
    config.ignore(kPattern);  // It may be 0 then, or a word that explains the list.
  } else if (form.pattern_key) {
    LIB_TRY(pattern, config.count(kPattern, 1, kLayersMax, form.pattern));
  }
  if (unused) {
    listed.resize(layers, false);
    return listed;
  }
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    listed.push_back((layer + 1) % pattern != 0);
  }
  return listed;
}

/// Multi-head latent attention.
Result<AttentionSpec> read_latent(ConfigReader& config, const Family& family) {
  const LatentForm& form = family.latent;
  AttentionSpec attention;
  gpu_exec::LatentSpec& latent = attention.latent;
  LIB_TRY(attention.heads, config.size("num_attention_heads", 1, kHeadsMax, family.sizes.heads));
  LIB_TRY(attention.kv_heads, config.count("num_key_value_heads", 1, kHeadsMax, attention.heads));
  if (attention.kv_heads != attention.heads) {
    return config.refuse("num_key_value_heads",
                         "is not num_attention_heads, and latent attention makes keys and values "
                         "for each head");
  }
  LIB_TRY(latent.kv_rank, config.count("kv_lora_rank", 1, kRankMax, form.kv_rank));
  if (!config.is_null("q_lora_rank")) {
    LIB_TRY(latent.q_rank, config.count("q_lora_rank", 1, kRankMax, form.q_rank));
  }
  LIB_TRY(latent.nope_dim,
          config.count("qk_nope_head_dim", 1, gpu_exec::kHeadDimMax - 2, form.nope_dim));
  LIB_TRY(latent.rope_dim, config.count("qk_rope_head_dim", 2,
                                        gpu_exec::kHeadDimMax - latent.nope_dim, form.rope_dim));
  LIB_TRY(latent.value_dim, config.count("v_head_dim", 1, gpu_exec::kHeadDimMax, form.value_dim));
  if (latent.rope_dim % 2 != 0) {
    return config.refuse("qk_rope_head_dim", "is odd; rotary embedding turns pairs");
  }
  attention.head_dim = latent.nope_dim + latent.rope_dim;
  config.ignore("head_dim");     // Written besides, as either of
  config.ignore("qk_head_dim");  // the above.
  attention.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(attention.head_dim)));
  LIB_TRY(latent.bias, config.flag("attention_bias", false));
  attention.out_bias = latent.bias;
  return attention;
}

/// layer_types, else the layers that turn.
Result<void> read_chunks(ConfigReader& config, std::vector<LayerKind>& kinds) {
  constexpr const char* kSize = "attention_chunk_size";
  constexpr std::uint32_t kUsualSize = 8192;
  const Json& types = config.raw("layer_types");
  if (!types.is_null() && (!types.is_array() || types.size() != kinds.size())) {
    return config.refuse("layer_types", "is not a list of one entry per layer");
  }
  LIB_TRY(const std::uint32_t size, config.count(kSize, 1, kPositionsMax, kUsualSize));
  for (std::size_t layer = 0; layer < kinds.size(); ++layer) {
    const bool chunked = types.is_null() ? kinds[layer].rope : types[layer] == "chunked_attention";
    if (!types.is_null() && !chunked && types[layer] != "full_attention") {
      return config.refuse("layer_types", "has " + types[layer].dump(-1, ' ', true).substr(0, 64) +
                                              "; built in: full_attention, chunked_attention");
    }
    kinds[layer].chunk = chunked ? size : 0;
  }
  return {};
}

/// no_rope_layers, a list of 1 (turns) and 0, else all but every interval-th layer turn.
Result<void> read_no_rope_layers(ConfigReader& config, std::vector<LayerKind>& kinds) {
  LIB_TRY(const std::uint32_t interval, config.count("no_rope_layer_interval", 1, kLayersMax, 4U));
  const Json& list = config.raw("no_rope_layers");
  const bool listed = !list.is_null() && !(list.is_array() && list.empty());
  std::vector<double> turns;
  if (listed) {
    LIB_TRY(turns, config.numbers("no_rope_layers", kinds.size(), 0, 1));
  }
  for (std::size_t layer = 0; layer < kinds.size(); ++layer) {
    kinds[layer].rope = listed ? turns[layer] != 0 : (layer + 1) % interval != 0;
  }
  return {};
}

/// Whether the window is in use, and on which layers.
Result<std::vector<bool>> read_sliding(ConfigReader& config, const WindowForm& form,
                                       const std::vector<LayerKind>& kinds, bool has_window) {
  const auto layers = static_cast<std::uint32_t>(kinds.size());
  if (form.rule == WindowRule::every_layer) {
    return std::vector<bool>(layers, has_window);
  }
  LIB_TRY(std::vector<bool> listed, read_layer_types(config, layers));
  if (form.rule == WindowRule::layer_types) {
    LIB_TRY(listed, read_pattern(config, form, std::move(listed), layers, has_window));
    return listed;
  }
  LIB_TRY(const bool in_use, config.flag("use_sliding_window", false));
  std::uint32_t first = 0;
  if (form.rule == WindowRule::upper_layers) {
    LIB_TRY(first, config.count("max_window_layers", 0, kLayersMax, 28U));
  }
  const bool any_listed = std::find(listed.begin(), listed.end(), true) != listed.end();
  if (form.rule == WindowRule::rope_less && !in_use && any_listed) {
    return config.refuse("use_sliding_window", "is not true, and 'layer_types' has windows");
  }
  std::vector<bool> sliding;
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    const bool by_rule = form.rule == WindowRule::rope_less ? !kinds[layer].rope : layer >= first;
    sliding.push_back(in_use && has_window && (listed.empty() ? by_rule : listed[layer]));
  }
  return sliding;
}

}  // namespace

Result<bool> read_flag(ConfigReader& config, const FlagKey& flag) {
  return flag.key == nullptr ? Result<bool>(flag.value) : config.flag(flag.key, flag.value);
}

Result<AttentionSpec> read_attention(ConfigReader& config, const Family& family,
                                     std::uint32_t hidden) {
  const AttentionForm& form = family.attention;
  if (family.latent.kv_rank != 0) {
    return read_latent(config, family);
  }
  AttentionSpec attention;
  LIB_TRY_VOID(read_heads(config, family, hidden, attention));
  LIB_TRY(const double scale, read_scale(config, form.scale, attention.head_dim));
  attention.scale = static_cast<float>(scale);
  attention.storage = form.storage;
  LIB_TRY(attention.qkv_bias, read_flag(config, form.qkv_bias));
  LIB_TRY(attention.out_bias, read_flag(config, form.out_bias));
  LIB_TRY(const bool qk_norm, read_flag(config, {form.qk_norm_key, form.qk_norm_key == nullptr ||
                                                                       form.qk_norm_default}));
  attention.qk_norm = qk_norm ? form.qk_norm : gpu_exec::QkNorm::none;
  attention.qk_norm_after_rope = qk_norm && form.qk_norm_after_rope;
  attention.causal = form.causal;
  attention.sinks = form.sinks;
  attention.alibi = form.alibi;
  if (form.softcap.key != nullptr && !config.is_null(form.softcap.key)) {
    LIB_TRY(const double softcap, config.number(form.softcap.key, 0, 1e9, form.softcap.value));
    attention.softcap = static_cast<float>(softcap);
  }
  return attention;
}

Result<void> read_nope_temperature(ConfigReader& config, AttentionSpec& attention) {
  // Early writers put a number here, which counts as true.
  const Json& tuning = config.raw("attn_temperature_tuning");
  const bool off = tuning == false || tuning == 0;
  if (!tuning.is_null() && !tuning.is_boolean() && !tuning.is_number()) {
    return config.refuse("attn_temperature_tuning", "is neither true nor false");
  }
  LIB_TRY(const double beta, config.number("attn_scale", 0, 1e6, 0.1));
  LIB_TRY(const std::uint32_t original, config.count("floor_scale", 1, kPositionsMax, 8192U));
  if (!off) {
    attention.temperature_beta = static_cast<float>(beta);
    attention.temperature_original = original;
    attention.temperature_offset = 1;
  }
  return {};
}

Result<std::vector<LayerKind>> read_layer_kinds(ConfigReader& config, const Family& family,
                                                std::uint32_t layers) {
  const WindowForm& form = family.window;
  std::vector<LayerKind> kinds(layers);
  if (family.nope == NopeRule::listed) {
    LIB_TRY_VOID(read_no_rope_layers(config, kinds));
  }
  if (form.rule == WindowRule::none) {
    return kinds;
  }
  if (form.rule == WindowRule::chunks) {
    LIB_TRY_VOID(read_chunks(config, kinds));
    return kinds;
  }
  // A null means no window; an absent key means the family's default.
  const bool null_window = config.is_null("sliding_window");
  LIB_TRY(const std::uint32_t window,
          config.count("sliding_window", 1, kPositionsMax, null_window ? 0 : form.window));
  LIB_TRY(const std::vector<bool> sliding, read_sliding(config, form, kinds, window != 0));
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    if (sliding[layer] && window == 0) {
      return config.refuse("sliding_window", "is missing, and layer " + std::to_string(layer) +
                                                 " is to have a window");
    }
    kinds[layer].local = sliding[layer];
    kinds[layer].window = sliding[layer] ? window : 0;
    if (family.nope == NopeRule::full_layers) {
      kinds[layer].rope = sliding[layer] || (form.window_null && window == 0);
    }
  }
  return kinds;
}

}  // namespace librarian::weightmap
