#include "weightmap/moe_config.h"

#include <algorithm>
#include <string>

#include "weightmap/attention_config.h"

namespace librarian::weightmap {
namespace {

using gpu_exec::MoeSpec;

constexpr std::uint32_t kExpertsMax = 16384;
constexpr std::uint32_t kWidthMax = 1U << 22U;
constexpr std::uint32_t kLayersMax = 4096;

/// A number, or a list of one for each layer that are all the same.
Result<std::uint32_t> read_same(ConfigReader& config, const char* key, std::uint32_t max,
                                std::uint32_t fallback) {
  const Json& value = config.raw(key);
  if (!value.is_array()) {
    return config.count(key, 1, max, fallback);
  }
  const Json first = value.empty() ? Json() : value.front();
  const bool same =
      std::all_of(value.begin(), value.end(), [&](const Json& item) { return item == first; });
  if (!same || !first.is_number_unsigned() || first == 0 || first > max) {
    return config.refuse(key, "is a list that is not one number of 1 to " + std::to_string(max) +
                                  " again and again: experts that differ between layers are not "
                                  "built in");
  }
  return first.get<std::uint32_t>();
}

/// Layer numbers of a list.
Result<std::vector<bool>> read_listed(ConfigReader& config, const char* key, std::uint32_t layers) {
  std::vector<bool> listed(layers, false);
  const Json& value = config.raw(key);
  if (value.is_null()) {
    return listed;
  }
  if (!value.is_array()) {
    return config.refuse(key, "is not a list of layers");
  }
  for (const Json& item : value) {
    if (!item.is_number_unsigned() || item >= layers) {
      return config.refuse(key, "has " + item.dump(-1, ' ', true).substr(0, 64) +
                                    ", which is none of the " + std::to_string(layers) + " layers");
    }
    listed[item.get<std::uint32_t>()] = true;
  }
  return listed;
}

/// mlp_layer_types, else all but the first few.
Result<std::vector<bool>> read_after_dense(ConfigReader& config, std::uint32_t dense_default,
                                           std::uint32_t layers) {
  constexpr const char* kTypes = "mlp_layer_types";
  LIB_TRY(const std::uint32_t dense,
          config.count("first_k_dense_replace", 0, kLayersMax, dense_default));
  std::vector<bool> sparse;
  const Json& types = config.raw(kTypes);
  if (types.is_null()) {
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
      sparse.push_back(layer >= dense);
    }
    return sparse;
  }
  if (!types.is_array() || types.size() != layers) {
    return config.refuse(kTypes, "is not a list of one entry per layer");
  }
  for (const Json& type : types) {
    if (type != "sparse" && type != "dense") {
      return config.refuse(
          kTypes, "has " + type.dump(-1, ' ', true).substr(0, 64) + "; built in: dense, sparse");
    }
    sparse.push_back(type == "sparse");
  }
  return sparse;
}

Result<std::vector<bool>> read_step(ConfigReader& config, std::uint32_t layers) {
  LIB_TRY(const std::uint32_t step, config.count("decoder_sparse_step", 1, kLayersMax, 1U));
  LIB_TRY(std::vector<bool> dense, read_listed(config, "mlp_only_layers", layers));
  std::vector<bool> sparse;
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    sparse.push_back(!dense[layer] && (layer + 1) % step == 0);
  }
  return sparse;
}

Result<std::vector<bool>> read_moe_layers(ConfigReader& config, std::uint32_t layers) {
  LIB_TRY(const std::uint32_t step, config.count("interleave_moe_layer_step", 1, kLayersMax, 1U));
  if (config.has("moe_layers")) {
    return read_listed(config, "moe_layers", layers);
  }
  std::vector<bool> sparse;
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    sparse.push_back((layer + 1) % step == 0);
  }
  return sparse;
}

Result<std::vector<bool>> read_range(ConfigReader& config, std::uint32_t layers) {
  LIB_TRY(const std::uint32_t interval, config.count("moe_layer_interval", 1, kLayersMax, 1U));
  LIB_TRY(const std::uint32_t first, config.count("moe_layer_start_index", 0, kLayersMax, 1U));
  // -1 is the last layer, as an absent one.
  std::uint32_t last = layers - 1;
  if (config.has("moe_layer_end_index") && config.raw("moe_layer_end_index") != -1) {
    LIB_TRY(last, config.count("moe_layer_end_index", 0, kLayersMax, last));
  }
  std::vector<bool> sparse;
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    sparse.push_back((layer + 1) % interval == 0 && layer >= first && layer <= last);
  }
  return sparse;
}

Result<std::vector<bool>> read_sparse_layers(ConfigReader& config, const MoeForm& form,
                                             std::uint32_t layers) {
  switch (form.layers) {
    case SparseRule::all:
      break;
    case SparseRule::after_dense:
      return read_after_dense(config, form.dense_layers, layers);
    case SparseRule::step:
      return read_step(config, layers);
    case SparseRule::listed:
      return read_moe_layers(config, layers);
    case SparseRule::range:
      return read_range(config, layers);
  }
  return std::vector<bool>(layers, true);
}

Result<std::uint32_t> read_shared_width(ConfigReader& config, const MoeForm& form,
                                        std::uint32_t width) {
  switch (form.shared) {
    case SharedRule::none:
      break;
    case SharedRule::own_key:
      return config.count("shared_expert_intermediate_size", 1, kWidthMax, form.shared_default);
    case SharedRule::counted: {
      const bool none = config.is_null("n_shared_experts");
      LIB_TRY(const std::uint32_t count,
              config.count("n_shared_experts", 0, 1024, none ? 0 : form.shared_default));
      return count * width;
    }
    case SharedRule::same:
      return width;
  }
  return 0;
}

Result<void> read_groups(ConfigReader& config, const MoeForm& form, MoeSpec& moe) {
  bool grouped = form.groups == GroupRule::always;
  if (form.groups == GroupRule::by_method) {
    LIB_TRY(const std::string method, config.text("topk_method", "greedy"));
    if (method != "greedy" && method != "group_limited_greedy") {
      return config.refuse("topk_method", "is '" + method.substr(0, 64) +
                                              "'; built in: greedy, group_limited_greedy");
    }
    grouped = method == "group_limited_greedy";
    moe.group_rank = gpu_exec::GroupRank::best;
  }
  if (form.groups != GroupRule::none && !grouped) {
    config.ignore("n_group");  // Without meaning then.
    config.ignore("topk_group");
  }
  if (!grouped) {
    return {};
  }
  LIB_TRY(moe.groups, config.count("n_group", 1, moe.experts, form.group_count));
  LIB_TRY(moe.top_groups, config.count("topk_group", 1, moe.groups, form.top_groups));
  const std::uint32_t each = moe.experts / moe.groups;
  if (moe.experts % moe.groups != 0 ||
      (moe.groups > 1 && each < 2 && moe.group_rank == gpu_exec::GroupRank::best_two)) {
    return config.refuse("n_group", "does not cut " + std::to_string(moe.experts) +
                                        " experts into equal groups of at least two");
  }
  if (moe.top_k > each * moe.top_groups) {
    return config.refuse("topk_group", "leaves fewer experts than num_experts_per_tok asks for");
  }
  if (moe.top_groups == moe.groups) {
    moe.groups = moe.top_groups = 1;  // None is left out.
  } else if (moe.top_groups > moe.top_k) {
    return config.refuse("topk_group", "is more than num_experts_per_tok, which is not built in");
  }
  return {};
}

}  // namespace

Result<MoeConfig> read_moe(ConfigReader& config, const Family& family, const gpu_exec::MlpSpec& mlp,
                           std::uint32_t layers) {
  const MoeForm& form = family.moe;
  MoeConfig result;
  result.mlp = mlp;
  result.experts = mlp;
  if (form.clamped) {
    result.experts.activation = gpu_exec::Activation::clamped_swish;
  }
  if (form.dense_width_key != nullptr) {
    LIB_TRY(result.mlp.width, config.count(form.dense_width_key, 1, kWidthMax, form.dense_width));
  }
  MoeSpec& moe = result.moe;
  LIB_TRY(moe.experts, read_same(config, "num_experts", kExpertsMax, form.experts));
  LIB_TRY(moe.top_k, read_same(config, "num_experts_per_tok", kExpertsMax, form.top_k));
  if (moe.top_k > moe.experts) {
    return config.refuse("num_experts_per_tok", "is above the number of experts");
  }
  moe.width = mlp.width;
  if (form.width != 0) {
    LIB_TRY(moe.width, read_same(config, "moe_intermediate_size", kWidthMax, form.width));
  }
  moe.storage = form.storage;
  moe.fused = form.fused;
  moe.interleaved = form.interleaved;
  moe.bias = form.bias;
  moe.router_bias = form.bias;
  moe.score = form.score;
  moe.select_bias = form.select_bias;
  LIB_TRY_VOID(read_groups(config, form, moe));
  LIB_TRY(moe.renormalise, read_flag(config, form.renormalise));
  if (form.renormalise_floor.key != nullptr) {
    LIB_TRY(const double floor,
            config.number(form.renormalise_floor.key, 0, 1, form.renormalise_floor.value));
    moe.renormalise_floor = static_cast<float>(floor);
  }
  if (form.multiplier.key != nullptr) {
    LIB_TRY(const double multiplier,
            config.number(form.multiplier.key, 0, 1e6, form.multiplier.value));
    moe.multiplier = static_cast<float>(multiplier);
  }
  moe.input_scaled = form.input_scaled;
  LIB_TRY(moe.shared_width, read_shared_width(config, form, moe.width));
  moe.shared_gate = form.shared_gate;
  LIB_TRY(result.layers, read_sparse_layers(config, form, layers));
  return result;
}

}  // namespace librarian::weightmap
