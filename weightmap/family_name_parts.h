#pragma once
/// Names that the tables of several families are put together from.

#include <array>
#include <string_view>

#include "weightmap/tensor_names.h"

namespace librarian::weightmap::name_parts {

using gpu_exec::WeightRole;
using Names = std::string_view;

template <typename T, std::size_t... N>
constexpr auto join(const std::array<T, N>&... parts) {
  std::array<T, (N + ...)> whole{};
  std::size_t at = 0;
  const auto append = [&](const auto& part) {
    for (const T& item : part) {
      whole[at++] = item;
    }
  };
  (append(parts), ...);
  return whole;
}

// ---- What most families since Llama share.
inline constexpr std::array kModelPrefixes{Names("model."), Names("")};
inline constexpr std::array kHeads{Names("lm_head.weight"), Names("score.weight"),
                                   Names("classifier."), Names("qa_outputs.")};
inline constexpr std::array kOutside{RoleName{WeightRole::embedding, "embed_tokens.weight"},
                                     RoleName{WeightRole::final_norm, "norm.weight"}};
inline constexpr std::array kQkv{RoleName{WeightRole::q_weight, "self_attn.q_proj.weight"},
                                 RoleName{WeightRole::q_bias, "self_attn.q_proj.bias"},
                                 RoleName{WeightRole::k_weight, "self_attn.k_proj.weight"},
                                 RoleName{WeightRole::k_bias, "self_attn.k_proj.bias"},
                                 RoleName{WeightRole::v_weight, "self_attn.v_proj.weight"},
                                 RoleName{WeightRole::v_bias, "self_attn.v_proj.bias"}};
inline constexpr std::array kQkNorm{RoleName{WeightRole::q_norm, "self_attn.q_norm.weight"},
                                    RoleName{WeightRole::k_norm, "self_attn.k_norm.weight"}};
inline constexpr std::array kOut{RoleName{WeightRole::out_weight, "self_attn.o_proj.weight"},
                                 RoleName{WeightRole::out_bias, "self_attn.o_proj.bias"}};
inline constexpr std::array kGate{RoleName{WeightRole::gate_weight, "mlp.gate_proj.weight"},
                                  RoleName{WeightRole::gate_bias, "mlp.gate_proj.bias"}};
inline constexpr std::array kUp{RoleName{WeightRole::up_weight, "mlp.up_proj.weight"},
                                RoleName{WeightRole::up_bias, "mlp.up_proj.bias"}};
inline constexpr std::array kDown{RoleName{WeightRole::down_weight, "mlp.down_proj.weight"},
                                  RoleName{WeightRole::down_bias, "mlp.down_proj.bias"}};
inline constexpr std::array kGateUp{
    RoleName{WeightRole::gate_up_weight, "mlp.gate_up_proj.weight"}};
inline constexpr std::array kAttentionNorm{
    RoleName{WeightRole::attention_norm, "input_layernorm.weight"}};
inline constexpr std::array kAttentionNormBias{
    RoleName{WeightRole::attention_norm_bias, "input_layernorm.bias"}};
inline constexpr std::array kMlpNorm{
    RoleName{WeightRole::mlp_norm, "post_attention_layernorm.weight"}};
inline constexpr std::array kMlpNormBias{
    RoleName{WeightRole::mlp_norm_bias, "post_attention_layernorm.bias"}};
inline constexpr std::array kOutNorms{
    RoleName{WeightRole::attention_out_norm, "post_attention_layernorm.weight"},
    RoleName{WeightRole::mlp_out_norm, "post_feedforward_layernorm.weight"}};

inline constexpr auto kAttention = join(kQkv, kQkNorm, kOut);
inline constexpr auto kMlp = join(kGate, kUp, kDown);
inline constexpr auto kNorms = join(kAttentionNorm, kMlpNorm);
inline constexpr auto kNormsWithBias =
    join(kAttentionNorm, kAttentionNormBias, kMlpNorm, kMlpNormBias);

}  // namespace librarian::weightmap::name_parts
