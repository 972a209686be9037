#include "weightmap/tensor_names.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "base/error.h"

namespace librarian::weightmap {
namespace {

using gpu_exec::WeightRole;

struct RoleName {
  WeightRole role;
  std::string_view name;
};
constexpr std::array<RoleName, 18> kLayerRoles{{
    {WeightRole::attention_norm, "input_layernorm.weight"},
    {WeightRole::q_weight, "self_attn.q_proj.weight"},
    {WeightRole::q_bias, "self_attn.q_proj.bias"},
    {WeightRole::k_weight, "self_attn.k_proj.weight"},
    {WeightRole::k_bias, "self_attn.k_proj.bias"},
    {WeightRole::v_weight, "self_attn.v_proj.weight"},
    {WeightRole::v_bias, "self_attn.v_proj.bias"},
    {WeightRole::q_norm, "self_attn.q_norm.weight"},
    {WeightRole::k_norm, "self_attn.k_norm.weight"},
    {WeightRole::out_weight, "self_attn.o_proj.weight"},
    {WeightRole::out_bias, "self_attn.o_proj.bias"},
    {WeightRole::mlp_norm, "post_attention_layernorm.weight"},
    {WeightRole::gate_weight, "mlp.gate_proj.weight"},
    {WeightRole::gate_bias, "mlp.gate_proj.bias"},
    {WeightRole::up_weight, "mlp.up_proj.weight"},
    {WeightRole::up_bias, "mlp.up_proj.bias"},
    {WeightRole::down_weight, "mlp.down_proj.weight"},
    {WeightRole::down_bias, "mlp.down_proj.bias"},
}};
constexpr std::string_view kEmbeddingName = "embed_tokens.weight";
constexpr std::string_view kFinalNormName = "norm.weight";

bool is_buffer(std::string_view name) {
  return name.ends_with("rotary_emb.inv_freq") || name.ends_with(".masked_bias");
}

}  // namespace

NamedTensor classify_tensor(std::string_view name, std::string_view prefix, std::int32_t layers) {
  using Kind = NamedTensor::Kind;
  if (name == "lm_head.weight" || is_buffer(name)) {
    return {Kind::unused, 0, {}};
  }
  if (!name.starts_with(prefix)) {
    return {};
  }
  name.remove_prefix(prefix.size());
  if (name == kEmbeddingName) {
    return {Kind::weight, -1, WeightRole::embedding};
  }
  if (name == kFinalNormName) {
    return {Kind::weight, layers, WeightRole::final_norm};
  }
  static constexpr std::string_view kLayers = "layers.";
  if (!name.starts_with(kLayers)) {
    return {};
  }
  name.remove_prefix(kLayers.size());
  std::int32_t layer = -1;
  const auto [end, status] = std::from_chars(name.data(), name.data() + name.size(), layer);
  const auto digits = static_cast<std::size_t>(end - name.data());
  if (status != std::errc() || layer < 0 || digits >= name.size() || name[digits] != '.' ||
      (digits > 1 && name.front() == '0')) {
    return {};
  }
  if (layer >= layers) {
    return {};  // These families have no layers beyond: config.json is of another model.
  }
  name.remove_prefix(digits + 1);
  const auto* found = std::find_if(kLayerRoles.begin(), kLayerRoles.end(),
                                   [&](const RoleName& row) { return row.name == name; });
  if (found == kLayerRoles.end()) {
    return {};
  }
  return {Kind::weight, layer, found->role};
}

std::string tensor_name(std::string_view prefix, std::int32_t layer, WeightRole role) {
  std::string name(prefix);
  if (role == WeightRole::embedding) {
    return name += kEmbeddingName;
  }
  if (role == WeightRole::final_norm) {
    return name += kFinalNormName;
  }
  const auto* found = std::find_if(kLayerRoles.begin(), kLayerRoles.end(),
                                   [&](const RoleName& row) { return row.role == role; });
  LIB_CHECK(found != kLayerRoles.end());
  return name.append("layers.").append(std::to_string(layer)).append(".").append(found->name);
}

}  // namespace librarian::weightmap
