#include "gpu_exec/model_spec.h"

#include <array>
#include <bit>
#include <cmath>
#include <tuple>

#include "base/error.h"

namespace librarian::gpu_exec {
namespace {

/// In the order of WeightRole.
constexpr std::array<const char*, kWeightRoles> kRoleNames{"embedding",
                                                           "position_embedding",
                                                           "type_embedding",
                                                           "embedding_norm",
                                                           "embedding_norm_bias",
                                                           "attention_norm",
                                                           "attention_norm_bias",
                                                           "q_weight",
                                                           "q_bias",
                                                           "k_weight",
                                                           "k_bias",
                                                           "v_weight",
                                                           "v_bias",
                                                           "qkv_weight",
                                                           "qkv_bias",
                                                           "q_norm",
                                                           "k_norm",
                                                           "sinks",
                                                           "q_a_weight",
                                                           "q_a_bias",
                                                           "q_a_norm",
                                                           "q_b_weight",
                                                           "kv_a_weight",
                                                           "kv_a_bias",
                                                           "kv_a_norm",
                                                           "kv_b_weight",
                                                           "out_weight",
                                                           "out_bias",
                                                           "attention_out_norm",
                                                           "attention_out_norm_bias",
                                                           "mlp_norm",
                                                           "mlp_norm_bias",
                                                           "gate_weight",
                                                           "gate_bias",
                                                           "up_weight",
                                                           "up_bias",
                                                           "gate_up_weight",
                                                           "gate_up_bias",
                                                           "down_weight",
                                                           "down_bias",
                                                           "router_weight",
                                                           "router_bias",
                                                           "router_select_bias",
                                                           "shared_router",
                                                           "shared_gate_weight",
                                                           "shared_up_weight",
                                                           "shared_down_weight",
                                                           "expert_gate_weight",
                                                           "expert_gate_bias",
                                                           "expert_up_weight",
                                                           "expert_up_bias",
                                                           "expert_gate_up_weight",
                                                           "expert_gate_up_bias",
                                                           "expert_down_weight",
                                                           "expert_down_bias",
                                                           "mlp_out_norm",
                                                           "mlp_out_norm_bias",
                                                           "final_norm",
                                                           "final_norm_bias",
                                                           "head",
                                                           "head_bias"};

/// Collects the roles whose flag is set.
struct RoleList {
  std::vector<WeightRole> roles;
  void add(WeightRole role, bool present = true) {
    if (present) {
      roles.push_back(role);
    }
  }
};

void add_moe_roles(const MoeSpec& moe, RoleList& list) {
  list.add(WeightRole::router_weight);
  list.add(WeightRole::router_bias, moe.router_bias);
  list.add(WeightRole::router_select_bias, moe.select_bias);
  list.add(WeightRole::shared_router, moe.shared_gate);
  list.add(WeightRole::shared_gate_weight, moe.shared_width != 0);
  list.add(WeightRole::shared_up_weight, moe.shared_width != 0);
  list.add(WeightRole::shared_down_weight, moe.shared_width != 0);
  list.add(WeightRole::expert_gate_weight, !moe.fused);
  list.add(WeightRole::expert_gate_bias, !moe.fused && moe.bias);
  list.add(WeightRole::expert_up_weight, !moe.fused);
  list.add(WeightRole::expert_up_bias, !moe.fused && moe.bias);
  list.add(WeightRole::expert_gate_up_weight, moe.fused);
  list.add(WeightRole::expert_gate_up_bias, moe.fused && moe.bias);
  list.add(WeightRole::expert_down_weight);
  list.add(WeightRole::expert_down_bias, moe.bias);
}

std::uint64_t q_rows(const AttentionSpec& attention) {
  return std::uint64_t{attention.heads} * attention.head_dim;
}
std::uint64_t kv_rows(const AttentionSpec& attention) {
  return std::uint64_t{attention.kv_heads} * attention.head_dim;
}

/// Where q, k and v lie among the rows of the fused tensor.
std::array<RowRuns, 3> qkv_runs(const AttentionSpec& attention) {
  const std::uint64_t head = attention.head_dim;
  const std::uint64_t q = q_rows(attention);
  const std::uint64_t kv = kv_rows(attention);
  switch (attention.storage) {
    case QkvStorage::separate:
      break;
    case QkvStorage::concat:
      return {RowRuns{0, q, q}, RowRuns{q, kv, kv}, RowRuns{q + kv, kv, kv}};
    case QkvStorage::per_head:
      return {RowRuns{0, head, 3 * head}, RowRuns{head, head, 3 * head},
              RowRuns{2 * head, head, 3 * head}};
    case QkvStorage::grouped: {
      const std::uint64_t group = attention.heads / attention.kv_heads * head;
      const std::uint64_t stride = group + 2 * head;
      return {RowRuns{0, group, stride}, RowRuns{group, head, stride},
              RowRuns{group + head, head, stride}};
    }
  }
  LIB_CHECK(false);
}

/// Outputs and inputs of a matrix, or the elements of a vector and 0.
struct Extent {
  std::uint64_t outputs, inputs;
};
Extent extent_of(const ModelSpec& model, const LayerSpec& layer, WeightRole role) {
  const std::uint64_t hidden = model.hidden_size;
  const AttentionSpec& attention = layer.attention;
  const std::uint64_t q = q_rows(attention);
  const std::uint64_t kv = kv_rows(attention);
  const std::uint64_t width = layer.mlp.width;
  const LatentSpec& latent = attention.latent;
  const MoeSpec& moe = layer.moe;
  switch (role) {
    case WeightRole::embedding:
    case WeightRole::head:
      return {model.vocab_size, hidden};
    case WeightRole::head_bias:
      return {model.vocab_size, 0};
    case WeightRole::position_embedding:
      return {model.embedding.positions, hidden};
    case WeightRole::type_embedding:
      return {model.embedding.types, hidden};
    case WeightRole::embedding_norm:
    case WeightRole::embedding_norm_bias:
    case WeightRole::attention_norm:
    case WeightRole::attention_norm_bias:
    case WeightRole::attention_out_norm:
    case WeightRole::attention_out_norm_bias:
    case WeightRole::mlp_norm:
    case WeightRole::mlp_norm_bias:
    case WeightRole::mlp_out_norm:
    case WeightRole::mlp_out_norm_bias:
    case WeightRole::final_norm:
    case WeightRole::final_norm_bias:
    case WeightRole::out_bias:
    case WeightRole::down_bias:
    case WeightRole::expert_down_bias:
      return {hidden, 0};
    case WeightRole::q_weight:
      return {q, hidden};
    case WeightRole::k_weight:
    case WeightRole::v_weight:
      return {kv, hidden};
    case WeightRole::qkv_weight:
      return {q + 2 * kv, hidden};
    case WeightRole::q_bias:
      return {q, 0};
    case WeightRole::k_bias:
    case WeightRole::v_bias:
      return {kv, 0};
    case WeightRole::qkv_bias:
      return {q + 2 * kv, 0};
    case WeightRole::q_norm:
      return {attention.qk_norm == QkNorm::head ? attention.head_dim : q, 0};
    case WeightRole::k_norm:
      return {attention.qk_norm == QkNorm::head ? attention.head_dim : kv, 0};
    case WeightRole::sinks:
      return {attention.heads, 0};
    case WeightRole::q_a_weight:
      return {latent.q_rank, hidden};
    case WeightRole::q_a_bias:
    case WeightRole::q_a_norm:
      return {latent.q_rank, 0};
    case WeightRole::q_b_weight:
      return {q, latent.q_rank};
    case WeightRole::kv_a_weight:
      return {std::uint64_t{latent.kv_rank} + latent.rope_dim, hidden};
    case WeightRole::kv_a_bias:
      return {std::uint64_t{latent.kv_rank} + latent.rope_dim, 0};
    case WeightRole::kv_a_norm:
      return {latent.kv_rank, 0};
    case WeightRole::kv_b_weight:
      return {attention.heads * (std::uint64_t{latent.nope_dim} + latent.value_dim),
              latent.kv_rank};
    case WeightRole::out_weight:
      return {hidden, std::uint64_t{attention.heads} * attention.value_dim()};
    case WeightRole::gate_weight:
    case WeightRole::up_weight:
      return {width, hidden};
    case WeightRole::gate_up_weight:
      return {2 * width, hidden};
    case WeightRole::gate_bias:
    case WeightRole::up_bias:
      return {width, 0};
    case WeightRole::gate_up_bias:
      return {2 * width, 0};
    case WeightRole::down_weight:
      return {hidden, width};
    case WeightRole::router_weight:
      return {moe.experts, hidden};
    case WeightRole::router_bias:
    case WeightRole::router_select_bias:
      return {moe.experts, 0};
    case WeightRole::shared_router:
      return {1, hidden};
    case WeightRole::shared_gate_weight:
    case WeightRole::shared_up_weight:
      return {moe.shared_width, hidden};
    case WeightRole::shared_down_weight:
      return {hidden, moe.shared_width};
    case WeightRole::expert_gate_weight:
    case WeightRole::expert_up_weight:
      return {moe.width, hidden};
    case WeightRole::expert_gate_up_weight:
      return {2 * std::uint64_t{moe.width}, hidden};
    case WeightRole::expert_gate_bias:
    case WeightRole::expert_up_bias:
      return {moe.width, 0};
    case WeightRole::expert_gate_up_bias:
      return {2 * std::uint64_t{moe.width}, 0};
    case WeightRole::expert_down_weight:
      return {hidden, moe.width};
  }
  LIB_CHECK(false);
}

}  // namespace

std::uint64_t dtype_bytes(DType type) { return type == DType::f32 ? 4 : 2; }

const char* dtype_name(DType type) {
  switch (type) {
    case DType::bf16:
      return "bf16";
    case DType::f16:
      return "f16";
    case DType::f32:
      return "f32";
  }
  LIB_CHECK(false);
}

const char* weight_role_name(WeightRole role) { return kRoleNames[static_cast<std::size_t>(role)]; }

std::vector<float> rope_frequencies(const RopeSpec& rope, std::uint64_t sample_rows) {
  if (rope.short_rows_max == 0 || sample_rows <= rope.short_rows_max) {
    return rope.inverse_frequency;
  }
  if (!rope.long_inverse_frequency.empty()) {
    return rope.long_inverse_frequency;
  }
  // The model's own code takes the new theta in f32 too: there the length is a tensor.
  const auto dim = static_cast<double>(rope.rotary_dim);
  const float stretch = static_cast<float>(rope.dynamic_factor) * static_cast<float>(sample_rows) /
                        static_cast<float>(rope.short_rows_max);
  const float growth = stretch - static_cast<float>(rope.dynamic_factor - 1);
  const auto power = static_cast<float>(std::pow(
      static_cast<double>(growth), static_cast<double>(static_cast<float>(dim / (dim - 2)))));
  const auto theta = static_cast<double>(static_cast<float>(rope.dynamic_theta) * power);
  std::vector<float> frequencies(rope.rotary_dim / 2);
  for (std::uint32_t i = 0; i < frequencies.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(rope.rotary_dim);
    frequencies[i] = 1.0F / static_cast<float>(std::pow(theta, static_cast<double>(exponent)));
  }
  return frequencies;
}

float query_temperature(float beta, std::uint32_t original, std::uint64_t position) {
  const std::uint64_t steps = position / original;
  return static_cast<float>(1 + beta * std::log1p(static_cast<double>(steps)));
}

std::vector<float> alibi_slopes(std::uint32_t heads) {
  // Powers of one base for the power of two below, then every second one of a finer base.
  const std::uint32_t power = std::bit_floor(heads);
  std::vector<float> slopes(heads);
  for (std::uint32_t head = 0; head < heads; ++head) {
    const double exponent =
        head < power ? 8.0 * (head + 1) / power : 8.0 * (2 * (head - power) + 1) / (2 * power);
    slopes[head] = static_cast<float>(std::exp2(-exponent));
  }
  return slopes;
}

std::string weight_key_name(const WeightKey& key) {
  return std::string(weight_role_name(key.role)) +
         (is_expert_role(key.role) ? " of expert " + std::to_string(key.expert) : "");
}

bool weight_transposed(const LayerSpec& layer, WeightRole role) {
  if (is_expert_role(role)) {
    return layer.moe.storage == ExpertStorage::stacked_transposed ||
           (layer.moe.storage == ExpertStorage::flat && role == WeightRole::expert_down_weight);
  }
  return layer.transposed && role != WeightRole::embedding &&
         role != WeightRole::position_embedding && role != WeightRole::type_embedding;
}

std::vector<std::uint64_t> weight_shape(const ModelSpec& model, const LayerSpec& layer,
                                        WeightRole role) {
  const Extent extent = extent_of(model, layer, role);
  if (extent.inputs == 0) {
    if (layer.attention.qk_norm == QkNorm::head_each &&
        (role == WeightRole::q_norm || role == WeightRole::k_norm)) {
      return {extent.outputs / layer.attention.head_dim, layer.attention.head_dim};
    }
    return {extent.outputs};
  }
  if (weight_transposed(layer, role)) {
    return {extent.inputs, extent.outputs};
  }
  return {extent.outputs, extent.inputs};
}

std::vector<WeightRole> weight_roles(const ModelSpec& model, const LayerSpec& layer) {
  RoleList list;
  const AttentionSpec& attention = layer.attention;
  const MlpSpec& mlp = layer.mlp;
  const bool norm_bias = model.norm.bias;
  const bool separate = attention.storage == QkvStorage::separate;
  list.add(WeightRole::attention_norm, layer.attention_norm);
  list.add(WeightRole::attention_norm_bias, layer.attention_norm && norm_bias);
  const bool latent = attention.latent.kv_rank != 0;
  const bool q_latent = latent && attention.latent.q_rank != 0;
  list.add(WeightRole::q_a_weight, q_latent);
  list.add(WeightRole::q_a_bias, q_latent && attention.latent.bias);
  list.add(WeightRole::q_a_norm, q_latent);
  list.add(WeightRole::q_b_weight, q_latent);
  list.add(WeightRole::q_weight, latent && !q_latent);
  list.add(WeightRole::kv_a_weight, latent);
  list.add(WeightRole::kv_a_bias, latent && attention.latent.bias);
  list.add(WeightRole::kv_a_norm, latent);
  list.add(WeightRole::kv_b_weight, latent);
  for (const auto& [weight, bias, present] :
       {std::tuple(WeightRole::q_weight, WeightRole::q_bias, separate),
        std::tuple(WeightRole::k_weight, WeightRole::k_bias, separate),
        std::tuple(WeightRole::v_weight, WeightRole::v_bias, separate),
        std::tuple(WeightRole::qkv_weight, WeightRole::qkv_bias, !separate)}) {
    list.add(weight, present && !latent);
    list.add(bias, present && !latent && attention.qkv_bias);
  }
  const bool norm_weights = attention.qk_norm != QkNorm::none && attention.qk_norm != QkNorm::unit;
  list.add(WeightRole::q_norm, norm_weights);
  list.add(WeightRole::k_norm, norm_weights);
  list.add(WeightRole::sinks, attention.sinks);
  list.add(WeightRole::out_weight);
  list.add(WeightRole::out_bias, attention.out_bias);
  list.add(WeightRole::attention_out_norm, layer.attention_out_norm);
  list.add(WeightRole::attention_out_norm_bias, layer.attention_out_norm && norm_bias);
  list.add(WeightRole::mlp_norm, layer.mlp_norm);
  list.add(WeightRole::mlp_norm_bias, layer.mlp_norm && norm_bias);
  if (layer.moe.experts != 0) {
    add_moe_roles(layer.moe, list);
  } else {
    list.add(WeightRole::gate_weight, mlp.gated && !mlp.fused);
    list.add(WeightRole::gate_bias, mlp.gated && !mlp.fused && mlp.bias);
    list.add(WeightRole::up_weight, !mlp.fused);
    list.add(WeightRole::up_bias, !mlp.fused && mlp.bias);
    list.add(WeightRole::gate_up_weight, mlp.fused);
    list.add(WeightRole::gate_up_bias, mlp.fused && mlp.bias);
    list.add(WeightRole::down_weight);
    list.add(WeightRole::down_bias, mlp.bias);
  }
  list.add(WeightRole::mlp_out_norm, layer.mlp_out_norm);
  list.add(WeightRole::mlp_out_norm_bias, layer.mlp_out_norm && norm_bias);
  return list.roles;
}

std::vector<WeightKey> weight_keys(const ModelSpec& model, const LayerSpec& layer) {
  std::vector<WeightKey> keys;
  for (const WeightRole role : weight_roles(model, layer)) {
    const std::uint32_t count = is_expert_role(role) ? layer.moe.experts : 1;
    for (std::uint32_t expert = 0; expert < count; ++expert) {
      keys.emplace_back(role, expert);
    }
  }
  return keys;
}

std::vector<WeightRole> embedding_roles(const ModelSpec& model) {
  RoleList list;
  list.add(WeightRole::embedding);
  list.add(WeightRole::position_embedding, model.embedding.positions != 0);
  list.add(WeightRole::type_embedding, model.embedding.types != 0);
  list.add(WeightRole::embedding_norm, model.embedding.norm);
  list.add(WeightRole::embedding_norm_bias, model.embedding.norm && model.norm.bias);
  return list.roles;
}

std::vector<WeightRole> final_roles(const ModelSpec& model) {
  RoleList list;
  list.add(WeightRole::final_norm, model.final_norm);
  list.add(WeightRole::final_norm_bias, model.final_norm && model.norm.bias);
  return list.roles;
}

std::vector<WeightRole> head_roles(const ModelSpec& model) {
  RoleList list;
  list.add(WeightRole::head);
  list.add(WeightRole::head_bias, model.head.bias);
  return list.roles;
}

std::vector<WeightPart> weight_parts(const ModelSpec& model, const LayerSpec& layer,
                                     WeightRole role) {
  const auto part = [&](WeightRole of, const RowRuns& rows) {
    const Extent extent = extent_of(model, layer, of);
    return WeightPart{of, extent.outputs, extent.inputs, rows};
  };
  const std::uint64_t width = layer.mlp.width;
  switch (role) {
    case WeightRole::qkv_weight: {
      const std::array<RowRuns, 3> runs = qkv_runs(layer.attention);
      return {part(WeightRole::q_weight, runs[0]), part(WeightRole::k_weight, runs[1]),
              part(WeightRole::v_weight, runs[2])};
    }
    case WeightRole::qkv_bias: {
      const std::array<RowRuns, 3> runs = qkv_runs(layer.attention);
      return {part(WeightRole::q_bias, runs[0]), part(WeightRole::k_bias, runs[1]),
              part(WeightRole::v_bias, runs[2])};
    }
    case WeightRole::gate_up_weight:
      return {part(WeightRole::gate_weight, {0, width, width}),
              part(WeightRole::up_weight, {width, width, width})};
    case WeightRole::gate_up_bias:
      return {part(WeightRole::gate_bias, {0, width, width}),
              part(WeightRole::up_bias, {width, width, width})};
    case WeightRole::expert_gate_up_weight:
    case WeightRole::expert_gate_up_bias: {
      const std::uint64_t half = layer.moe.width;
      const bool weight = role == WeightRole::expert_gate_up_weight;
      const bool turns = layer.moe.interleaved;
      return {part(weight ? WeightRole::expert_gate_weight : WeightRole::expert_gate_bias,
                   turns ? RowRuns{0, 1, 2} : RowRuns{0, half, half}),
              part(weight ? WeightRole::expert_up_weight : WeightRole::expert_up_bias,
                   turns ? RowRuns{1, 1, 2} : RowRuns{half, half, half})};
    }
    default:
      return {part(role, {})};
  }
}

}  // namespace librarian::gpu_exec
