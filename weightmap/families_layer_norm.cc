#include <array>

#include "weightmap/family.h"
#include "weightmap/family_names.h"

namespace librarian::weightmap {
namespace {

using gpu_exec::LayerSpec;
using gpu_exec::ModelSpec;
using gpu_exec::NormKind;
using gpu_exec::NormSpec;
using gpu_exec::QkNorm;
using gpu_exec::QkvStorage;
using gpu_exec::Residual;
using gpu_exec::RopeStyle;

constexpr NormSpec kLayerNorm{.kind = NormKind::layer, .bias = true};
constexpr NormSpec kLayerNormNoBias{.kind = NormKind::layer};
constexpr FlagKey kAlways{nullptr, true};
constexpr FlagKey kAttentionBias{"attention_bias", false};
constexpr FlagKey kMlpBias{"mlp_bias", false};
constexpr AttentionForm kBiasByKey{.qkv_bias = kAttentionBias, .out_bias = kAttentionBias};
constexpr RopeForm kNoRope{.rule = RopeRule::none};

// ---- Keys of single families.
constexpr std::array kCohereFixed{
    FixedKey{"order_of_interleaved_layers", std::string_view("local_attn_first"),
             "another order of layers"},
    FixedKey{"position_embedding_type", std::string_view("rope_gptj"), "another rope"},
    FixedKey{"rotary_pct", 1.0, "a rope over a part of each head"},
    FixedKey{"use_embedding_sharing", true, "a head of its own"},
    FixedKey{"use_gated_activation", true, "an MLP without gate"},
    FixedKey{"use_parallel_block", true, "a sequential layer"}};
constexpr std::array kCohere2Fixed{
    kCohereFixed[0],
    kCohereFixed[1],
    kCohereFixed[2],
    kCohereFixed[3],
    kCohereFixed[4],
    kCohereFixed[5],
    FixedKey{"use_qk_norm", false, "what transformers ignores in this family"}};
constexpr std::array kCohereHarmless{"use_parallel_embedding", "_sliding_window_pattern"};
constexpr std::array kStarcoder2Fixed{
    FixedKey{"norm_type", std::string_view("layer_norm"), "another norm"},
    FixedKey{"mlp_type", std::string_view("default"), "another MLP"},
    FixedKey{"scale_attn_weights", true, "unscaled attention"}};
constexpr std::array kStarcoder2Aliases{KeyAlias{"norm_epsilon", "layer_norm_epsilon"}};
constexpr std::array kStarcoder2Harmless{"attention_softmax_in_fp32",
                                         "scale_attention_softmax_in_fp32"};
constexpr std::array kPhiFixed{FixedKey{"qk_layernorm", false, "norms of q and k with biases"}};
constexpr std::array kStableLmFixed{
    FixedKey{"qk_layernorm", false, "a tensor of norm weights for each head"},
    FixedKey{"rotary_scaling_factor", 1.0, "a rope scaled in its own way"}};
constexpr std::array kNeoxAliases{KeyAlias{"rope_theta", "rotary_emb_base"},
                                  KeyAlias{"partial_rotary_factor", "rotary_pct"}};
constexpr std::array kFalconAliases{
    KeyAlias{"num_key_value_heads", "num_kv_heads"}, KeyAlias{"hidden_size", "n_embed"},
    KeyAlias{"intermediate_size", "ffn_hidden_size"}, KeyAlias{"hidden_act", "activation"}};
constexpr std::array kFalconFixed{
    FixedKey{"alibi", false, "ALiBi scaled with the scores and rounded to bfloat16"},
    FixedKey{"apply_residual_connection_post_layernorm", false, "a residual after the norm"}};
constexpr std::array kFalconHarmless{"ff_factor"};
constexpr std::array kBloomAliases{KeyAlias{"hidden_size", "n_embed"},
                                   KeyAlias{"num_hidden_layers", "n_layer"},
                                   KeyAlias{"num_attention_heads", "n_head"}};
constexpr std::array kBloomFixed{
    FixedKey{"apply_residual_connection_post_layernorm", false, "a residual after the norm"},
    FixedKey{"slow_but_exact", false, "sums split as in training"},
    FixedKey{"skip_bias_add", true, "another order of additions"},
    FixedKey{"skip_bias_add_qkv", false, "another order of additions"}};
constexpr std::array kBloomHarmless{"attention_softmax_in_fp32",
                                    "bias_dropout_fusion",
                                    "masked_softmax_fusion",
                                    "offset_alibi",

                                    "seq_length",
                                    "n_inner"};
constexpr std::array kGpt2Aliases{KeyAlias{"hidden_size", "n_embd"},
                                  KeyAlias{"num_hidden_layers", "n_layer"},
                                  KeyAlias{"num_attention_heads", "n_head"},
                                  KeyAlias{"intermediate_size", "n_inner"},
                                  KeyAlias{"hidden_act", "activation_function"},
                                  KeyAlias{"max_position_embeddings", "n_positions"}};
constexpr std::array kGpt2Fixed{
    FixedKey{"scale_attn_weights", true, "unscaled attention"},
    FixedKey{"scale_attn_by_inverse_layer_idx", false, "a scale per layer"},
    FixedKey{"add_cross_attention", false, "cross attention"}};
constexpr std::array kGpt2Harmless{"n_ctx",
                                   "reorder_and_upcast_attn",
                                   "summary_activation",
                                   "summary_first_dropout",
                                   "summary_proj_to_labels",
                                   "summary_type",
                                   "summary_use_proj"};
constexpr std::array kOptAliases{KeyAlias{"intermediate_size", "ffn_dim"},
                                 KeyAlias{"hidden_act", "activation_function"}};
constexpr std::array kOptFixed{
    FixedKey{"do_layer_norm_before", true, "norms after the additions and projections"},
    FixedKey{"_remove_final_layer_norm", false, "a model without its last norm"},
    FixedKey{"layer_norm_elementwise_affine", true, "norms without weights"}};
constexpr std::array kBertFixed{
    FixedKey{"position_embedding_type", std::string_view("absolute"), "relative positions"},
    FixedKey{"is_decoder", false, "BERT as a decoder"},
    FixedKey{"add_cross_attention", false, "cross attention"}};
constexpr std::array kBertHarmless{
    "directionality",       "pooler_fc_size",       "pooler_num_attention_heads",
    "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"};
/// Both generations of layers: 7B shares one k and v head and one norm, 40B has groups and two.
Result<void> adjust_falcon(ConfigReader& config, ModelSpec& /*model*/, LayerSpec& layer) {
  LIB_TRY(const bool grouped, config.flag("new_decoder_architecture", false));
  LIB_TRY(const bool multi_query, config.flag("multi_query", true));
  LIB_TRY(const bool parallel, config.flag("parallel_attn", true));
  LIB_TRY(const std::uint32_t norms,
          config.count("num_ln_in_parallel_attn", 1, 2, grouped ? 2U : 1U));
  if (grouped ? !parallel : norms == 2) {
    return config.refuse(grouped ? "parallel_attn" : "num_ln_in_parallel_attn",
                         "contradicts new_decoder_architecture");
  }
  gpu_exec::AttentionSpec& attention = layer.attention;
  attention.storage = QkvStorage::grouped;
  if (!grouped) {
    attention.kv_heads = multi_query ? 1 : attention.heads;
    attention.storage = multi_query ? QkvStorage::grouped : QkvStorage::per_head;
  }
  layer.residual = parallel ? Residual::parallel : Residual::sequential;
  layer.mlp_norm = !parallel || norms == 2;
  return {};
}
Result<void> adjust_opt(ConfigReader& config, ModelSpec& model, LayerSpec& /*layer*/) {
  LIB_TRY(const std::uint32_t width,
          config.count("word_embed_proj_dim", 1, 1U << 20U, model.hidden_size));
  if (width != model.hidden_size) {
    return config.refuse("word_embed_proj_dim",
                         "is not hidden_size: projections around the layers are not built in");
  }
  return {};
}

// sizes: vocab, hidden, layers, heads, kv_heads, head_dim, width, positions.
constexpr std::array kFamilies{
    Family{.model_type = "cohere",
           .names = &kLlamaNames,
           .sizes = {256000, 8192, 40, 64, 0, 0, 22528, 8192},
           .norm = kLayerNormNoBias,
           .epsilon = {"layer_norm_eps", 1e-5},
           .layer = kParallelOneNorm,
           .attention = {.qkv_bias = kAttentionBias,
                         .out_bias = kAttentionBias,
                         .qk_norm = QkNorm::head_each,
                         .qk_norm_key = "use_qk_norm"},
           .rope = {.style = RopeStyle::pairs, .theta_v5 = 5e5},
           .head = {.tied = true, .multiplier = {"logit_scale", 0.0625}},
           .fixed = kCohereFixed,
           .harmless = kCohereHarmless},
    Family{.model_type = "cohere2",
           .names = &kLlamaNames,
           .sizes = {256000, 8192, 40, 64, 0, 0, 22528, 8192},
           .norm = kLayerNormNoBias,
           .epsilon = {"layer_norm_eps", 1e-5},
           .layer = kParallelOneNorm,
           .attention = kBiasByKey,
           .window = {WindowRule::layer_types, 4096, 4, true},
           .nope = NopeRule::full_layers,
           .rope = {.style = RopeStyle::pairs},
           .head = {.tied = true, .multiplier = {"logit_scale", 0.0625}},
           .fixed = kCohere2Fixed,
           .harmless = kCohereHarmless},
    Family{.model_type = "starcoder2",
           .names = &kStarcoder2Names,
           .sizes = {49152, 3072, 30, 24, 2, 0, 12288, 4096},
           .norm = kLayerNorm,
           .epsilon = {"norm_epsilon", 1e-5},
           .attention = {.qkv_bias = {"use_bias", true}, .out_bias = {"use_bias", true}},
           .window = {WindowRule::every_layer, 0},
           .mlp = {.gated = false, .bias = {"use_bias", true}, .activation = "gelu_pytorch_tanh"},
           .head = {.tied = true},
           .aliases = kStarcoder2Aliases,
           .fixed = kStarcoder2Fixed,
           .harmless = kStarcoder2Harmless},
    Family{.model_type = "stablelm",
           .names = &kLayerNormNames,
           .sizes = {50304, 2560, 32, 32, 32, 0, 6912, 4096},
           .norm = kLayerNorm,
           .epsilon = {"layer_norm_eps", 1e-5},
           .parallel = {"use_parallel_residual", false},
           .parallel_layer = kParallelOneNorm,
           .attention = {.head_dim_key = false, .qkv_bias = {"use_qkv_bias", false}},
           .rope = {.partial = true, .part = 0.25},
           .fixed = kStableLmFixed},
    Family{.model_type = "phi",
           .names = &kPhiNames,
           .sizes = {51200, 2048, 24, 32, 0, 0, 8192, 2048},
           .norm = kLayerNorm,
           .epsilon = {"layer_norm_eps", 1e-5},
           .layer = kParallelOneNorm,
           .attention = {.qkv_bias = kAlways, .out_bias = kAlways},
           .rope = {.partial = true, .part = 0.5},
           .mlp = {.gated = false, .bias = kAlways, .activation = "gelu_new"},
           .fixed = kPhiFixed},
    Family{.model_type = "nemotron",
           .names = &kLayerNormNames,
           .sizes = {256000, 6144, 32, 48, 0, 0, 24576, 4096},
           .norm = {.kind = NormKind::layer, .bias = true, .one_plus = true},
           .epsilon = {"norm_eps", 1e-5},
           .attention = kBiasByKey,
           .rope = {.partial = true, .part = 0.5, .scaling = false},
           .mlp = {.gated = false, .bias = kMlpBias, .activation = "relu2"}},
    Family{.model_type = "gpt_neox",
           .names = &kGptNeoxNames,
           .sizes = {50432, 6144, 44, 64, 0, 0, 24576, 2048},
           .norm = kLayerNorm,
           .epsilon = {"layer_norm_eps", 1e-5},
           .parallel = {"use_parallel_residual", true},
           .attention = {.storage = QkvStorage::per_head,
                         .head_dim_key = false,
                         .kv_heads_key = false,
                         .qkv_bias = {"attention_bias", true},
                         .out_bias = {"attention_bias", true}},
           .rope = {.partial = true, .part = 0.25},
           .mlp = {.gated = false, .bias = kAlways, .activation = "gelu"},
           .aliases = kNeoxAliases},
    Family{.model_type = "falcon",
           .names = &kFalconNames,
           .sizes = {65024, 4544, 32, 71, 0, 0, 0, 2048},
           .norm = kLayerNorm,
           .epsilon = {"layer_norm_epsilon", 1e-5},
           .attention = {.head_dim_key = false,
                         .qkv_bias = {"bias", false},
                         .out_bias = {"bias", false}},
           .mlp = {.gated = false, .bias = {"bias", false}, .activation = "gelu"},
           .head = {.tied = true},
           .aliases = kFalconAliases,
           .fixed = kFalconFixed,
           .harmless = kFalconHarmless,
           .adjust = adjust_falcon},
    Family{.model_type = "bloom",
           .names = &kBloomNames,
           .sizes = {250880, 64, 2, 8, 0, 0, 0, 0},
           .norm = kLayerNorm,
           .epsilon = {"layer_norm_epsilon", 1e-5},
           .attention = {.storage = QkvStorage::per_head,
                         .head_dim_key = false,
                         .kv_heads_key = false,
                         .qkv_bias = kAlways,
                         .out_bias = kAlways,
                         .alibi = true},
           .rope = kNoRope,
           .mlp = {.gated = false,
                   .bias = kAlways,
                   .activation = "gelu_pytorch_tanh",
                   .activation_key = false,
                   .width_key = false},
           .embedding = {.norm = true},
           .head = {.tied = true},
           .aliases = kBloomAliases,
           .fixed = kBloomFixed,
           .harmless = kBloomHarmless},
    Family{.model_type = "gpt2",
           .names = &kGpt2Names,
           .sizes = {50257, 768, 12, 12, 0, 0, 0, 1024},
           .norm = kLayerNorm,
           .epsilon = {"layer_norm_epsilon", 1e-5},
           .transposed = true,
           .attention = {.storage = QkvStorage::concat,
                         .head_dim_key = false,
                         .kv_heads_key = false,
                         .qkv_bias = kAlways,
                         .out_bias = kAlways},
           .rope = kNoRope,
           .mlp = {.gated = false, .bias = kAlways, .activation = "gelu_new"},
           .embedding = {.positions = true},
           .head = {.tied = true},
           .aliases = kGpt2Aliases,
           .fixed = kGpt2Fixed,
           .harmless = kGpt2Harmless},
    Family{.model_type = "opt",
           .names = &kOptNames,
           .sizes = {50272, 768, 12, 12, 0, 0, 3072, 2048},
           .norm = kLayerNorm,
           .epsilon = {nullptr, 1e-5},
           .attention = {.head_dim_key = false,
                         .kv_heads_key = false,
                         .qkv_bias = {"enable_bias", true},
                         .out_bias = {"enable_bias", true}},
           .rope = kNoRope,
           .mlp = {.gated = false, .bias = {"enable_bias", true}, .activation = "relu"},
           .embedding = {.positions = true, .position_offset = 2},
           .head = {.tied = true},
           .aliases = kOptAliases,
           .fixed = kOptFixed,
           .adjust = adjust_opt},
    Family{.model_type = "bert",
           .names = &kBertNames,
           .sizes = {30522, 768, 12, 12, 0, 0, 3072, 512},
           .norm = kLayerNorm,
           .epsilon = {"layer_norm_eps", 1e-12},
           .layer = kNormAfter,
           .final_norm = false,
           .attention = {.head_dim_key = false,
                         .kv_heads_key = false,
                         .qkv_bias = kAlways,
                         .out_bias = kAlways,
                         .causal = false},
           .rope = kNoRope,
           .mlp = {.gated = false, .bias = kAlways, .activation = "gelu"},
           .embedding = {.positions = true, .types = 2, .norm = true},
           .head = {.tied = true},
           .fixed = kBertFixed,
           .harmless = kBertHarmless},
};

}  // namespace

std::span<const Family> layer_norm_families() { return kFamilies; }

}  // namespace librarian::weightmap
