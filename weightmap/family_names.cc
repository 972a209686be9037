#include "weightmap/family_names.h"

#include <array>

#include "weightmap/family_name_parts.h"

namespace librarian::weightmap {
namespace {

// NOLINTNEXTLINE(google-build-using-namespace): a table is nothing but these.
using namespace name_parts;

constexpr auto kLlamaInside = join(kNorms, kAttention, kMlp);

constexpr std::array kMlpNormOfSandwich{
    RoleName{WeightRole::mlp_norm, "pre_feedforward_layernorm.weight"}};
constexpr auto kSandwichInside =
    join(kAttentionNorm, kAttention, kOutNorms, kMlpNormOfSandwich, kMlp);
constexpr auto kPostNormInside = join(kAttention, kOutNorms, kMlp);

constexpr std::array kQkvProj{RoleName{WeightRole::qkv_weight, "self_attn.qkv_proj.weight"}};
constexpr auto kPhi3Inside = join(kNorms, kQkvProj, kOut, kGateUp, kDown);

constexpr std::array kGlm4OutNorms{
    RoleName{WeightRole::attention_out_norm, "post_self_attn_layernorm.weight"},
    RoleName{WeightRole::mlp_out_norm, "post_mlp_layernorm.weight"}};
constexpr auto kGlm4Inside = join(kNorms, kQkv, kOut, kGlm4OutNorms, kGateUp, kDown);

// ---- Llama's names with LayerNorm.
constexpr std::array kFinalNormBias{RoleName{WeightRole::final_norm_bias, "norm.bias"}};
constexpr auto kLayerNormOutside = join(kOutside, kFinalNormBias);
constexpr auto kLayerNormInside = join(kNormsWithBias, kQkv, kOut, kMlp);

constexpr std::array kStarcoder2Mlp{RoleName{WeightRole::up_weight, "mlp.c_fc.weight"},
                                    RoleName{WeightRole::up_bias, "mlp.c_fc.bias"},
                                    RoleName{WeightRole::down_weight, "mlp.c_proj.weight"},
                                    RoleName{WeightRole::down_bias, "mlp.c_proj.bias"}};
constexpr auto kStarcoder2Inside = join(kNormsWithBias, kQkv, kOut, kStarcoder2Mlp);

constexpr std::array kPhiHeads{Names("lm_head.weight"), Names("lm_head.bias"),
                               Names("score.weight"), Names("classifier.")};
constexpr std::array kPhiOutside{RoleName{WeightRole::embedding, "embed_tokens.weight"},
                                 RoleName{WeightRole::final_norm, "final_layernorm.weight"},
                                 RoleName{WeightRole::final_norm_bias, "final_layernorm.bias"}};
constexpr std::array kPhiOwn{RoleName{WeightRole::out_weight, "self_attn.dense.weight"},
                             RoleName{WeightRole::out_bias, "self_attn.dense.bias"},
                             RoleName{WeightRole::up_weight, "mlp.fc1.weight"},
                             RoleName{WeightRole::up_bias, "mlp.fc1.bias"},
                             RoleName{WeightRole::down_weight, "mlp.fc2.weight"},
                             RoleName{WeightRole::down_bias, "mlp.fc2.bias"}};
constexpr auto kPhiInside = join(kAttentionNorm, kAttentionNormBias, kQkv, kPhiOwn);

// ---- The older ones.
constexpr std::array kNeoxPrefixes{Names("gpt_neox."), Names("")};
constexpr std::array kNeoxHeads{Names("embed_out.weight"), Names("score.weight"),
                                Names("classifier."), Names("qa_outputs.")};
constexpr std::array kNeoxOutside{RoleName{WeightRole::embedding, "embed_in.weight"},
                                  RoleName{WeightRole::final_norm, "final_layer_norm.weight"},
                                  RoleName{WeightRole::final_norm_bias, "final_layer_norm.bias"}};
constexpr std::array kNeoxBuffers{Names("attention.bias"), Names("attention.masked_bias"),
                                  Names("attention.rotary_emb.inv_freq")};
constexpr std::array kDense4h{RoleName{WeightRole::up_weight, "mlp.dense_h_to_4h.weight"},
                              RoleName{WeightRole::up_bias, "mlp.dense_h_to_4h.bias"},
                              RoleName{WeightRole::down_weight, "mlp.dense_4h_to_h.weight"},
                              RoleName{WeightRole::down_bias, "mlp.dense_4h_to_h.bias"}};
constexpr std::array kNeoxOwn{RoleName{WeightRole::qkv_weight, "attention.query_key_value.weight"},
                              RoleName{WeightRole::qkv_bias, "attention.query_key_value.bias"},
                              RoleName{WeightRole::out_weight, "attention.dense.weight"},
                              RoleName{WeightRole::out_bias, "attention.dense.bias"}};
constexpr auto kNeoxInside = join(kNormsWithBias, kNeoxOwn, kDense4h);

constexpr std::array kTransformerPrefixes{Names("transformer."), Names("")};
constexpr std::array kBloomOutside{
    RoleName{WeightRole::embedding, "word_embeddings.weight"},
    RoleName{WeightRole::embedding_norm, "word_embeddings_layernorm.weight"},
    RoleName{WeightRole::embedding_norm_bias, "word_embeddings_layernorm.bias"},
    RoleName{WeightRole::final_norm, "ln_f.weight"},
    RoleName{WeightRole::final_norm_bias, "ln_f.bias"}};
constexpr std::array kSelfAttention{
    RoleName{WeightRole::qkv_weight, "self_attention.query_key_value.weight"},
    RoleName{WeightRole::qkv_bias, "self_attention.query_key_value.bias"},
    RoleName{WeightRole::out_weight, "self_attention.dense.weight"},
    RoleName{WeightRole::out_bias, "self_attention.dense.bias"}};
constexpr auto kBloomInside = join(kNormsWithBias, kSelfAttention, kDense4h);

constexpr std::array kFalconOutside{RoleName{WeightRole::embedding, "word_embeddings.weight"},
                                    RoleName{WeightRole::final_norm, "ln_f.weight"},
                                    RoleName{WeightRole::final_norm_bias, "ln_f.bias"}};
constexpr std::array kFalconTwoNorms{RoleName{WeightRole::attention_norm, "ln_attn.weight"},
                                     RoleName{WeightRole::attention_norm_bias, "ln_attn.bias"},
                                     RoleName{WeightRole::mlp_norm, "ln_mlp.weight"},
                                     RoleName{WeightRole::mlp_norm_bias, "ln_mlp.bias"}};
constexpr std::array kFalconBuffers{Names("self_attention.maybe_rotary.inv_freq")};
constexpr auto kFalconInside = join(kNormsWithBias, kFalconTwoNorms, kSelfAttention, kDense4h);

constexpr std::array kGpt2Outside{RoleName{WeightRole::embedding, "wte.weight"},
                                  RoleName{WeightRole::position_embedding, "wpe.weight"},
                                  RoleName{WeightRole::final_norm, "ln_f.weight"},
                                  RoleName{WeightRole::final_norm_bias, "ln_f.bias"}};
constexpr std::array kGpt2Inside{RoleName{WeightRole::attention_norm, "ln_1.weight"},
                                 RoleName{WeightRole::attention_norm_bias, "ln_1.bias"},
                                 RoleName{WeightRole::qkv_weight, "attn.c_attn.weight"},
                                 RoleName{WeightRole::qkv_bias, "attn.c_attn.bias"},
                                 RoleName{WeightRole::out_weight, "attn.c_proj.weight"},
                                 RoleName{WeightRole::out_bias, "attn.c_proj.bias"},
                                 RoleName{WeightRole::mlp_norm, "ln_2.weight"},
                                 RoleName{WeightRole::mlp_norm_bias, "ln_2.bias"},
                                 RoleName{WeightRole::up_weight, "mlp.c_fc.weight"},
                                 RoleName{WeightRole::up_bias, "mlp.c_fc.bias"},
                                 RoleName{WeightRole::down_weight, "mlp.c_proj.weight"},
                                 RoleName{WeightRole::down_bias, "mlp.c_proj.bias"}};
constexpr std::array kGpt2Buffers{Names("attn.bias"), Names("attn.masked_bias")};

constexpr std::array kOptPrefixes{Names("model.decoder."), Names("decoder."), Names("")};
constexpr std::array kOptOutside{RoleName{WeightRole::embedding, "embed_tokens.weight"},
                                 RoleName{WeightRole::position_embedding, "embed_positions.weight"},
                                 RoleName{WeightRole::final_norm, "final_layer_norm.weight"},
                                 RoleName{WeightRole::final_norm_bias, "final_layer_norm.bias"}};
constexpr std::array kOptOwn{RoleName{WeightRole::attention_norm, "self_attn_layer_norm.weight"},
                             RoleName{WeightRole::attention_norm_bias, "self_attn_layer_norm.bias"},
                             RoleName{WeightRole::out_weight, "self_attn.out_proj.weight"},
                             RoleName{WeightRole::out_bias, "self_attn.out_proj.bias"},
                             RoleName{WeightRole::mlp_norm, "final_layer_norm.weight"},
                             RoleName{WeightRole::mlp_norm_bias, "final_layer_norm.bias"},
                             RoleName{WeightRole::up_weight, "fc1.weight"},
                             RoleName{WeightRole::up_bias, "fc1.bias"},
                             RoleName{WeightRole::down_weight, "fc2.weight"},
                             RoleName{WeightRole::down_bias, "fc2.bias"}};
constexpr auto kOptInside = join(kQkv, kOptOwn);

// The first checkpoints call a norm's weight and bias gamma and beta.
constexpr std::array kBertPrefixes{Names("bert."), Names("")};
constexpr std::array kBertHeads{Names("cls."), Names("bert.pooler."), Names("pooler."),
                                Names("classifier."), Names("qa_outputs.")};
constexpr std::array kBertOutside{
    RoleName{WeightRole::embedding, "embeddings.word_embeddings.weight"},
    RoleName{WeightRole::position_embedding, "embeddings.position_embeddings.weight"},
    RoleName{WeightRole::type_embedding, "embeddings.token_type_embeddings.weight"},
    RoleName{WeightRole::embedding_norm, "embeddings.LayerNorm.weight"},
    RoleName{WeightRole::embedding_norm, "embeddings.LayerNorm.gamma"},
    RoleName{WeightRole::embedding_norm_bias, "embeddings.LayerNorm.bias"},
    RoleName{WeightRole::embedding_norm_bias, "embeddings.LayerNorm.beta"}};
constexpr std::array kBertBuffers{Names("embeddings.position_ids"),
                                  Names("embeddings.token_type_ids")};
constexpr std::array kBertInside{
    RoleName{WeightRole::q_weight, "attention.self.query.weight"},
    RoleName{WeightRole::q_bias, "attention.self.query.bias"},
    RoleName{WeightRole::k_weight, "attention.self.key.weight"},
    RoleName{WeightRole::k_bias, "attention.self.key.bias"},
    RoleName{WeightRole::v_weight, "attention.self.value.weight"},
    RoleName{WeightRole::v_bias, "attention.self.value.bias"},
    RoleName{WeightRole::out_weight, "attention.output.dense.weight"},
    RoleName{WeightRole::out_bias, "attention.output.dense.bias"},
    RoleName{WeightRole::attention_out_norm, "attention.output.LayerNorm.weight"},
    RoleName{WeightRole::attention_out_norm, "attention.output.LayerNorm.gamma"},
    RoleName{WeightRole::attention_out_norm_bias, "attention.output.LayerNorm.bias"},
    RoleName{WeightRole::attention_out_norm_bias, "attention.output.LayerNorm.beta"},
    RoleName{WeightRole::up_weight, "intermediate.dense.weight"},
    RoleName{WeightRole::up_bias, "intermediate.dense.bias"},
    RoleName{WeightRole::down_weight, "output.dense.weight"},
    RoleName{WeightRole::down_bias, "output.dense.bias"},
    RoleName{WeightRole::mlp_out_norm, "output.LayerNorm.weight"},
    RoleName{WeightRole::mlp_out_norm, "output.LayerNorm.gamma"},
    RoleName{WeightRole::mlp_out_norm_bias, "output.LayerNorm.bias"},
    RoleName{WeightRole::mlp_out_norm_bias, "output.LayerNorm.beta"}};

}  // namespace

constexpr TensorNames kLlamaNames{kModelPrefixes, "layers.", kOutside, kLlamaInside,
                                  kHeads,         {},        {}};
constexpr TensorNames kSandwichNames{kModelPrefixes, "layers.", kOutside, kSandwichInside,
                                     kHeads,         {},        {}};
constexpr TensorNames kPostNormNames{kModelPrefixes, "layers.", kOutside, kPostNormInside,
                                     kHeads,         {},        {}};
constexpr TensorNames kPhi3Names{kModelPrefixes, "layers.", kOutside, kPhi3Inside, kHeads, {}, {}};
constexpr TensorNames kGlm4Names{kModelPrefixes, "layers.", kOutside, kGlm4Inside, kHeads, {}, {}};
constexpr TensorNames kLayerNormNames{
    kModelPrefixes, "layers.", kLayerNormOutside, kLayerNormInside, kHeads, {}, {}};
constexpr TensorNames kStarcoder2Names{
    kModelPrefixes, "layers.", kLayerNormOutside, kStarcoder2Inside, kHeads, {}, {}};
constexpr TensorNames kPhiNames{kModelPrefixes, "layers.", kPhiOutside, kPhiInside,
                                kPhiHeads,      {},        {},          "lm_head.weight",
                                "lm_head.bias"};
constexpr TensorNames kGptNeoxNames{kNeoxPrefixes, "layers.", kNeoxOutside, kNeoxInside,
                                    kNeoxHeads,    {},        kNeoxBuffers, "embed_out.weight"};
constexpr TensorNames kFalconNames{
    kTransformerPrefixes, "h.", kFalconOutside, kFalconInside, kHeads, {}, kFalconBuffers};
constexpr TensorNames kBloomNames{
    kTransformerPrefixes, "h.", kBloomOutside, kBloomInside, kHeads, {}, {}};
constexpr TensorNames kGpt2Names{kTransformerPrefixes, "h.", kGpt2Outside, kGpt2Inside, kHeads, {},
                                 kGpt2Buffers};
constexpr TensorNames kOptNames{kOptPrefixes, "layers.", kOptOutside, kOptInside, kHeads, {}, {}};
constexpr TensorNames kBertNames{kBertPrefixes, "encoder.layer.", kBertOutside, kBertInside,
                                 kBertHeads,    kBertBuffers,     {},           ""};

}  // namespace librarian::weightmap
