#include <array>

#include "weightmap/family.h"
#include "weightmap/family_names.h"

/// To add a family: read its configuration_*.py and modeling_*.py of transformers 4 and 5, then
/// 1. write a row, here or in families_layer_norm.cc. A field left out has the value of Llama;
/// family.h says what each means.
///    `sizes` and the values inside FlagKey and NumberKey are what __init__ takes for absent keys.
/// 2. give it a table of names in family_names.cc, or share one: the parts are joined there.
/// 3. list what else its published config.json files hold: other spellings of our keys (`aliases`),
///    keys that must have one value because we compute no other (`fixed`), keys without influence
///    (`harmless`). What is in none of them is refused by name, so nothing is ignored by accident.
/// 4. arithmetic that no flag describes needs a flag in gpu_exec/model_spec.h and its kernel first;
///    until then, a FixedKey says what is missing, or unsupported_families() the whole family.
/// 5. add its config to the tests (published_configs_test.cc) and a golden checkpoint
///    (tests/golden/make_golden.py): the golden is what shows that the row is right.
namespace librarian::weightmap {
namespace {

using gpu_exec::NormKind;
using gpu_exec::NormSpec;
using gpu_exec::QkNorm;
using gpu_exec::QkvStorage;
using gpu_exec::RopeStyle;

constexpr NormSpec kOnePlusRms{.kind = NormKind::rms, .one_plus = true};
constexpr FlagKey kAlways{nullptr, true};
constexpr FlagKey kAttentionBias{"attention_bias", false};
constexpr FlagKey kMlpBias{"mlp_bias", false};

// ---- Keys of single families.
constexpr std::array kQwenFixed{FixedKey{"use_mrope", false, "positions of images"}};
constexpr std::array kBidirectional{
    FixedKey{"use_bidirectional_attention", false, "attention in both directions"}};
constexpr std::array kGemma3Fixed{
    FixedKey{"use_bidirectional_attention", false, "attention in both directions"},
    FixedKey{"attn_logit_softcapping", 0.0, "what transformers ignores in this family"}};
constexpr std::array kGemma2Harmless{"sliding_window_size"};
constexpr std::array kGemma3Harmless{"_sliding_window_pattern"};  // Explains layer_types.
constexpr std::array kPhi3Fixed{FixedKey{"lm_head_bias", false, "a bias of the head"},
                                FixedKey{"full_attn_mod", 1.0, "attention of another kind"},
                                FixedKey{"interpolate_factor", 1.0, "interpolated positions"}};
constexpr std::array kSmolLm3Harmless{"max_window_layers"};
constexpr const char* kMinistral3Rope =
    R"({"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "beta_fast": 32.0,
        "original_max_position_embeddings": 16384, "beta_slow": 1.0, "mscale_all_dim": 1.0,
        "mscale": 1.0, "llama_4_scaling_beta": 0.1})";

constexpr AttentionForm kBiasByKey{.qkv_bias = kAttentionBias, .out_bias = kAttentionBias};
constexpr MlpForm kGatedBiasByKey{.bias = kMlpBias};
constexpr MlpForm kGemmaMlp{.activation = "gelu_pytorch_tanh", .hidden_activation = true};

// sizes: vocab, hidden, layers, heads, kv_heads, head_dim, width, positions.
constexpr std::array kRmsNormFamilies{
    // ---- RMS norm before each part.
    Family{.model_type = "llama",
           .names = &kLlamaNames,
           .sizes = {32000, 4096, 32, 32, 0, 0, 11008, 2048},
           .attention = kBiasByKey,
           .mlp = kGatedBiasByKey},
    Family{.model_type = "mistral",
           .names = &kLlamaNames,
           .sizes = {32000, 4096, 32, 32, 8, 0, 14336, 131072},
           .window = {WindowRule::every_layer, 4096}},
    Family{.model_type = "ministral3",
           .names = &kLlamaNames,
           .sizes = {131072, 4096, 34, 32, 8, 128, 14336, 262144},
           .epsilon = {"rms_norm_eps", 1e-5},
           .window = {WindowRule::every_layer, 0},
           .rope = {.temperature = true, .absent = kMinistral3Rope}},
    Family{.model_type = "qwen2",
           .names = &kLlamaNames,
           .sizes = {151936, 4096, 32, 32, 32, 0, 22016, 32768},
           .attention = {.qkv_bias = kAlways},
           .window = {WindowRule::upper_layers, 4096},
           .fixed = kQwenFixed},
    Family{.model_type = "qwen3",
           .names = &kLlamaNames,
           .sizes = {151936, 4096, 32, 32, 32, 128, 22016, 32768},
           .attention = {.qkv_bias = kAttentionBias,
                         .out_bias = kAttentionBias,
                         .qk_norm = QkNorm::head},
           .window = {WindowRule::upper_layers, 4096},
           .fixed = kQwenFixed},
    Family{.model_type = "phi3",
           .names = &kPhi3Names,
           .sizes = {32064, 3072, 32, 32, 0, 0, 8192, 4096},
           .epsilon = {"rms_norm_eps", 1e-5},
           .attention = {.storage = QkvStorage::concat},
           .window = {WindowRule::every_layer, 0},
           .rope = {.partial = true, .original = 4096, .longrope_aliases = true},
           .mlp = {.fused = true},
           .fixed = kPhi3Fixed},
    Family{.model_type = "granite",
           .names = &kLlamaNames,
           .sizes = {32000, 4096, 32, 32, 0, 0, 11008, 2048},
           .residual_multiplier_key = "residual_multiplier",
           .attention = {.qkv_bias = kAttentionBias,
                         .out_bias = kAttentionBias,
                         .scale = ScaleRule::multiplier},
           .mlp = kGatedBiasByKey,
           .embedding = {.multiplier_key = "embedding_multiplier"},
           .head = {.divisor = {"logits_scaling", 1.0}}},
    Family{.model_type = "smollm3",
           .names = &kLlamaNames,
           .sizes = {128256, 2048, 36, 16, 4, 0, 11008, 32768},
           .attention = kBiasByKey,
           .window = {WindowRule::rope_less, 0},
           .nope = NopeRule::listed,
           .rope = {.theta = 2e6, .theta_v5 = 2e6},
           .mlp = kGatedBiasByKey,
           .head = {.tied = true},
           .harmless = kSmolLm3Harmless},
    Family{.model_type = "seed_oss",
           .names = &kLlamaNames,
           .sizes = {155136, 4096, 64, 80, 8, 128, 27648, 524288},
           .attention = {.qkv_bias = {"attention_bias", true},
                         .out_bias = {"attention_out_bias", false}},
           .mlp = kGatedBiasByKey},
    Family{.model_type = "gemma",
           .names = &kLlamaNames,
           .sizes = {256000, 3072, 28, 16, 16, 256, 24576, 8192},
           .norm = kOnePlusRms,
           .attention = kBiasByKey,
           .mlp = kGemmaMlp,
           .embedding = {.sqrt_hidden = true},
           .head = {.tied = true},
           .fixed = kBidirectional},
    // ---- RMS norm before and after, or only after.
    Family{.model_type = "gemma2",
           .names = &kSandwichNames,
           .sizes = {256000, 2304, 26, 8, 4, 256, 9216, 8192},
           .norm = kOnePlusRms,
           .layer = kSandwich,
           .attention = {.qkv_bias = kAttentionBias,
                         .out_bias = kAttentionBias,
                         .scale = ScaleRule::query_pre_attn,
                         .softcap = {"attn_logit_softcapping", 50.0}},
           .window = {WindowRule::layer_types, 4096, 2},
           .mlp = kGemmaMlp,
           .embedding = {.sqrt_hidden = true},
           .head = {.tied = true, .softcap = {"final_logit_softcapping", 30.0}},
           .fixed = kBidirectional,
           .harmless = kGemma2Harmless},
    Family{.model_type = "gemma3_text",
           .names = &kSandwichNames,
           .sizes = {262208, 2304, 26, 8, 4, 256, 9216, 131072},
           .norm = kOnePlusRms,
           .layer = kSandwich,
           .attention = {.qkv_bias = kAttentionBias,
                         .out_bias = kAttentionBias,
                         .qk_norm = QkNorm::head,
                         .scale = ScaleRule::query_pre_attn},
           .window = {WindowRule::layer_types, 4096, 6, true},
           .rope = {.rule = RopeRule::local_theta, .theta = 1e6, .theta_v5 = 1e6},
           .mlp = kGemmaMlp,
           .embedding = {.sqrt_hidden = true},
           .head = {.tied = true, .softcap = {"final_logit_softcapping", 0.0}},
           .fixed = kGemma3Fixed,
           .harmless = kGemma3Harmless},
    Family{.model_type = "glm4",
           .names = &kGlm4Names,
           .sizes = {151552, 4096, 40, 32, 2, 128, 13696, 131072},
           .epsilon = {"rms_norm_eps", 1.5625e-7},
           .layer = kSandwich,
           .attention = {.qkv_bias = {"attention_bias", true}},
           .rope = {.style = RopeStyle::pairs, .partial = true, .part = 0.5},
           .mlp = {.fused = true}},
    Family{.model_type = "olmo2",
           .names = &kPostNormNames,
           .sizes = {50304, 4096, 32, 32, 0, 0, 11008, 2048},
           .epsilon = {"rms_norm_eps", 1e-5},
           .layer = kPostNorm,
           .attention = {.qkv_bias = kAttentionBias,
                         .out_bias = kAttentionBias,
                         .qk_norm = QkNorm::full}},
    Family{.model_type = "olmo3",
           .names = &kPostNormNames,
           .sizes = {50304, 4096, 32, 32, 0, 0, 11008, 2048},
           .epsilon = {"rms_norm_eps", 1e-5},
           .layer = kPostNorm,
           .attention = {.qkv_bias = kAttentionBias,
                         .out_bias = kAttentionBias,
                         .qk_norm = QkNorm::full},
           .window = {WindowRule::layer_types, 4096, 4},
           .rope = {.rule = RopeRule::local_plain, .theta_v5 = 5e5}},
    Family{.model_type = "exaone4",
           .names = &kPostNormNames,
           .sizes = {102400, 4096, 32, 32, 32, 0, 16384, 2048},
           .epsilon = {"rms_norm_eps", 1e-5},
           .layer = kPostNorm,
           .attention = {.qk_norm = QkNorm::head},
           .window = {WindowRule::layer_types, 4096, 4, true, true},
           .nope = NopeRule::full_layers},
};

constexpr std::array kWrappers{
    Wrapper{"gemma3", "gemma3_text"}, Wrapper{"mistral3", "mistral"},
    Wrapper{"llava", "llama"},        Wrapper{"llava_next", "llama"},
    Wrapper{"aya_vision", "cohere2"}, Wrapper{"internvl", "qwen2"},
    Wrapper{"llama4", "llama4_text"}, Wrapper{"kimi_k25", "kimi_k2"},
};

constexpr const char* kDelta = "gated delta net layers";
constexpr const char* kStateSpace = "state space layers";
constexpr std::array kUnsupported{
    UnsupportedFamily{"apertus", "an activation with trained parameters (xielu)"},
    UnsupportedFamily{"olmoe", "q and k that are clipped before the norm over all heads"},
    UnsupportedFamily{"phimoe", "a router that samples one expert after the other"},
    UnsupportedFamily{"dbrx", "q, k and v that are clipped"},
    UnsupportedFamily{"qwen3_next", kDelta},
    UnsupportedFamily{"qwen3_5", kDelta},
    UnsupportedFamily{"qwen3_5_moe", kDelta},
    UnsupportedFamily{"gemma4", "values taken from keys, and their norm"},
    UnsupportedFamily{"gemma3n", "inputs per layer"},
    UnsupportedFamily{"qwen2_vl", "positions of images (mrope)"},
    UnsupportedFamily{"qwen2_5_vl", "positions of images (mrope)"},
    UnsupportedFamily{"mamba", kStateSpace},
    UnsupportedFamily{"mamba2", kStateSpace},
    UnsupportedFamily{"jamba", kStateSpace},
    UnsupportedFamily{"nemotron_h", kStateSpace},
    UnsupportedFamily{"t5", "an encoder and a decoder"},
};

}  // namespace

std::vector<const Family*> families() {
  std::vector<const Family*> all;
  for (const std::span<const Family> rows :
       {std::span<const Family>(kRmsNormFamilies), moe_families(), layer_norm_families()}) {
    for (const Family& row : rows) {
      all.push_back(&row);
    }
  }
  return all;
}

const Family* find_family(std::string_view model_type) {
  for (const Family* family : families()) {
    if (model_type == family->model_type) {
      return family;
    }
  }
  return nullptr;
}

std::span<const Wrapper> wrappers() { return kWrappers; }
std::span<const UnsupportedFamily> unsupported_families() { return kUnsupported; }

}  // namespace librarian::weightmap
