// The tensor names of families with mixtures of experts.
#include <array>

#include "weightmap/family_name_parts.h"
#include "weightmap/family_names.h"

namespace librarian::weightmap {
namespace {

// NOLINTNEXTLINE(google-build-using-namespace): a table is nothing but these.
using namespace name_parts;

constexpr std::array kRouter{RoleName{WeightRole::router_weight, "mlp.gate.weight"}};
constexpr std::array kSelectBias{
    RoleName{WeightRole::router_select_bias, "mlp.gate.e_score_correction_bias"}};
constexpr std::array kExperts{
    RoleName{WeightRole::expert_gate_weight, "mlp.experts.{}.gate_proj.weight"},
    RoleName{WeightRole::expert_up_weight, "mlp.experts.{}.up_proj.weight"},
    RoleName{WeightRole::expert_down_weight, "mlp.experts.{}.down_proj.weight"}};
constexpr std::array kSharedExperts{
    RoleName{WeightRole::shared_gate_weight, "mlp.shared_experts.gate_proj.weight"},
    RoleName{WeightRole::shared_up_weight, "mlp.shared_experts.up_proj.weight"},
    RoleName{WeightRole::shared_down_weight, "mlp.shared_experts.down_proj.weight"}};
constexpr std::array kSharedExpert{
    RoleName{WeightRole::shared_router, "mlp.shared_expert_gate.weight"},
    RoleName{WeightRole::shared_gate_weight, "mlp.shared_expert.gate_proj.weight"},
    RoleName{WeightRole::shared_up_weight, "mlp.shared_expert.up_proj.weight"},
    RoleName{WeightRole::shared_down_weight, "mlp.shared_expert.down_proj.weight"}};
constexpr auto kExpertInside =
    join(kNorms, kAttention, kMlp, kRouter, kSelectBias, kExperts, kSharedExperts, kSharedExpert);

constexpr std::array kMixtralOwn{
    RoleName{WeightRole::router_weight, "block_sparse_moe.gate.weight"},
    RoleName{WeightRole::router_select_bias, "block_sparse_moe.e_score_correction_bias"},
    RoleName{WeightRole::expert_gate_weight, "block_sparse_moe.experts.{}.w1.weight"},
    RoleName{WeightRole::expert_up_weight, "block_sparse_moe.experts.{}.w3.weight"},
    RoleName{WeightRole::expert_down_weight, "block_sparse_moe.experts.{}.w2.weight"}};
constexpr auto kMixtralInside = join(kNorms, kAttention, kMixtralOwn);
// Layers that predict tokens further ahead.
constexpr std::array kMtpOutside{Names("mtp.")};

constexpr std::array kGptOssOwn{
    RoleName{WeightRole::sinks, "self_attn.sinks"},
    RoleName{WeightRole::router_weight, "mlp.router.weight"},
    RoleName{WeightRole::router_bias, "mlp.router.bias"},
    RoleName{WeightRole::expert_gate_up_weight, "mlp.experts.gate_up_proj"},
    RoleName{WeightRole::expert_gate_up_bias, "mlp.experts.gate_up_proj_bias"},
    RoleName{WeightRole::expert_down_weight, "mlp.experts.down_proj"},
    RoleName{WeightRole::expert_down_bias, "mlp.experts.down_proj_bias"}};
constexpr auto kGptOssInside = join(kNorms, kQkv, kOut, kGptOssOwn);

constexpr std::array kGraniteMoeOwn{
    RoleName{WeightRole::router_weight, "block_sparse_moe.router.layer.weight"},
    RoleName{WeightRole::expert_gate_up_weight, "block_sparse_moe.input_linear.weight"},
    RoleName{WeightRole::expert_down_weight, "block_sparse_moe.output_linear.weight"}};
constexpr auto kGraniteMoeInside = join(kNorms, kQkv, kOut, kGraniteMoeOwn);

constexpr std::array kErnieSelectBias{
    RoleName{WeightRole::router_select_bias, "mlp.moe_statics.e_score_correction_bias"}};
constexpr auto kErnieMoeInside =
    join(kNorms, kQkv, kOut, kMlp, kRouter, kErnieSelectBias, kExperts, kSharedExperts);
constexpr std::array kErnieMtp{Names("mtp_block."), Names("mtp_emb_norm."),
                               Names("mtp_hidden_norm."), Names("mtp_linear_proj.")};

constexpr std::array kHunyuanOwn{
    RoleName{WeightRole::q_norm, "self_attn.query_layernorm.weight"},
    RoleName{WeightRole::k_norm, "self_attn.key_layernorm.weight"},
    RoleName{WeightRole::router_weight, "mlp.gate.wg.weight"},
    RoleName{WeightRole::shared_gate_weight, "mlp.shared_mlp.gate_proj.weight"},
    RoleName{WeightRole::shared_up_weight, "mlp.shared_mlp.up_proj.weight"},
    RoleName{WeightRole::shared_down_weight, "mlp.shared_mlp.down_proj.weight"}};
constexpr auto kHunyuanMoeInside = join(kNorms, kQkv, kOut, kHunyuanOwn, kExperts);

constexpr std::array kLlama4Own{
    RoleName{WeightRole::gate_weight, "feed_forward.gate_proj.weight"},
    RoleName{WeightRole::up_weight, "feed_forward.up_proj.weight"},
    RoleName{WeightRole::down_weight, "feed_forward.down_proj.weight"},
    RoleName{WeightRole::router_weight, "feed_forward.router.weight"},
    RoleName{WeightRole::shared_gate_weight, "feed_forward.shared_expert.gate_proj.weight"},
    RoleName{WeightRole::shared_up_weight, "feed_forward.shared_expert.up_proj.weight"},
    RoleName{WeightRole::shared_down_weight, "feed_forward.shared_expert.down_proj.weight"},
    RoleName{WeightRole::expert_gate_up_weight, "feed_forward.experts.gate_up_proj"},
    RoleName{WeightRole::expert_down_weight, "feed_forward.experts.down_proj"}};
constexpr auto kLlama4Inside = join(kNorms, kQkv, kOut, kLlama4Own);

constexpr std::array kLatent{
    RoleName{WeightRole::q_weight, "self_attn.q_proj.weight"},
    RoleName{WeightRole::q_a_weight, "self_attn.q_a_proj.weight"},
    RoleName{WeightRole::q_a_bias, "self_attn.q_a_proj.bias"},
    RoleName{WeightRole::q_a_norm, "self_attn.q_a_layernorm.weight"},
    RoleName{WeightRole::q_b_weight, "self_attn.q_b_proj.weight"},
    RoleName{WeightRole::kv_a_weight, "self_attn.kv_a_proj_with_mqa.weight"},
    RoleName{WeightRole::kv_a_bias, "self_attn.kv_a_proj_with_mqa.bias"},
    RoleName{WeightRole::kv_a_norm, "self_attn.kv_a_layernorm.weight"},
    RoleName{WeightRole::kv_b_weight, "self_attn.kv_b_proj.weight"}};
constexpr auto kLatentInside =
    join(kNorms, kLatent, kOut, kMlp, kRouter, kSelectBias, kExperts, kSharedExperts);
// Chooses among keys of long samples, which are refused.
constexpr std::array kIndexer{Names("self_attn.indexer.")};

}  // namespace

constexpr TensorNames kExpertNames{kModelPrefixes, "layers.", kOutside, kExpertInside,
                                   kHeads,         {},        {}};
constexpr TensorNames kMixtralNames{kModelPrefixes, "layers.",   kOutside, kMixtralInside,
                                    kHeads,         kMtpOutside, {}};
constexpr TensorNames kGptOssNames{kModelPrefixes, "layers.", kOutside, kGptOssInside,
                                   kHeads,         {},        {}};
constexpr TensorNames kGraniteMoeNames{kModelPrefixes, "layers.", kOutside, kGraniteMoeInside,
                                       kHeads,         {},        {}};
constexpr TensorNames kErnieMoeNames{kModelPrefixes, "layers.", kOutside, kErnieMoeInside,
                                     kHeads,         kErnieMtp, {}};
constexpr TensorNames kHunyuanMoeNames{kModelPrefixes, "layers.", kOutside, kHunyuanMoeInside,
                                       kHeads,         {},        {}};
constexpr TensorNames kLlama4Names{kModelPrefixes, "layers.", kOutside, kLlama4Inside,
                                   kHeads,         {},        {}};
constexpr TensorNames kLatentNames{kModelPrefixes, "layers.", kOutside, kLatentInside,
                                   kHeads,         {},        kIndexer};

}  // namespace librarian::weightmap
