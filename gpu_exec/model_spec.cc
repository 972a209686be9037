#include "gpu_exec/model_spec.h"

#include "base/error.h"

namespace librarian::gpu_exec {

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

const char* weight_role_name(WeightRole role) {
  switch (role) {
    case WeightRole::embedding:
      return "embedding";
    case WeightRole::attention_norm:
      return "attention_norm";
    case WeightRole::q_weight:
      return "q_weight";
    case WeightRole::q_bias:
      return "q_bias";
    case WeightRole::k_weight:
      return "k_weight";
    case WeightRole::k_bias:
      return "k_bias";
    case WeightRole::v_weight:
      return "v_weight";
    case WeightRole::v_bias:
      return "v_bias";
    case WeightRole::q_norm:
      return "q_norm";
    case WeightRole::k_norm:
      return "k_norm";
    case WeightRole::out_weight:
      return "out_weight";
    case WeightRole::out_bias:
      return "out_bias";
    case WeightRole::mlp_norm:
      return "mlp_norm";
    case WeightRole::gate_weight:
      return "gate_weight";
    case WeightRole::gate_bias:
      return "gate_bias";
    case WeightRole::up_weight:
      return "up_weight";
    case WeightRole::up_bias:
      return "up_bias";
    case WeightRole::down_weight:
      return "down_weight";
    case WeightRole::down_bias:
      return "down_bias";
    case WeightRole::final_norm:
      return "final_norm";
  }
  LIB_CHECK(false);
}

std::vector<std::uint64_t> weight_shape(const ModelSpec& model, const LayerSpec& layer,
                                        WeightRole role) {
  const std::uint64_t hidden = model.hidden_size;
  const std::uint64_t head_dim = layer.attention.head_dim;
  const std::uint64_t q_rows = layer.attention.heads * head_dim;
  const std::uint64_t kv_rows = layer.attention.kv_heads * head_dim;
  const std::uint64_t width = layer.mlp.width;
  switch (role) {
    case WeightRole::embedding:
      return {model.vocab_size, hidden};
    case WeightRole::attention_norm:
    case WeightRole::mlp_norm:
    case WeightRole::final_norm:
    case WeightRole::out_bias:
    case WeightRole::down_bias:
      return {hidden};
    case WeightRole::q_weight:
      return {q_rows, hidden};
    case WeightRole::k_weight:
    case WeightRole::v_weight:
      return {kv_rows, hidden};
    case WeightRole::q_bias:
      return {q_rows};
    case WeightRole::k_bias:
    case WeightRole::v_bias:
      return {kv_rows};
    case WeightRole::q_norm:
    case WeightRole::k_norm:
      return {head_dim};
    case WeightRole::out_weight:
      return {hidden, q_rows};
    case WeightRole::gate_weight:
    case WeightRole::up_weight:
      return {width, hidden};
    case WeightRole::gate_bias:
    case WeightRole::up_bias:
      return {width};
    case WeightRole::down_weight:
      return {hidden, width};
  }
  LIB_CHECK(false);
}

std::vector<WeightRole> weight_roles(const LayerSpec& layer) {
  std::vector<WeightRole> roles;
  const auto add = [&roles](WeightRole role, bool present = true) {
    if (present) {
      roles.push_back(role);
    }
  };
  const AttentionSpec& attention = layer.attention;
  add(WeightRole::attention_norm);
  add(WeightRole::q_weight);
  add(WeightRole::q_bias, attention.qkv_bias);
  add(WeightRole::k_weight);
  add(WeightRole::k_bias, attention.qkv_bias);
  add(WeightRole::v_weight);
  add(WeightRole::v_bias, attention.qkv_bias);
  add(WeightRole::q_norm, attention.qk_norm);
  add(WeightRole::k_norm, attention.qk_norm);
  add(WeightRole::out_weight);
  add(WeightRole::out_bias, attention.out_bias);
  add(WeightRole::mlp_norm);
  add(WeightRole::gate_weight);
  add(WeightRole::gate_bias, layer.mlp.bias);
  add(WeightRole::up_weight);
  add(WeightRole::up_bias, layer.mlp.bias);
  add(WeightRole::down_weight);
  add(WeightRole::down_bias, layer.mlp.bias);
  return roles;
}

}  // namespace librarian::gpu_exec
