#pragma once
/// What transformers knows about a family of models beyond its config.json, as one table row.

#include <cstdint>
#include <span>
#include <string_view>
#include <variant>
#include <vector>

#include "base/error.h"
#include "gpu_exec/model_spec.h"
#include "weightmap/config_reader.h"
#include "weightmap/tensor_names.h"

namespace librarian::weightmap {

/// Values of absent keys. Where 4 and 5 of transformers differ, both are in the row.
struct FamilySizes {
  std::uint32_t vocab = 0;
  std::uint32_t hidden = 0;
  std::uint32_t layers = 0;
  std::uint32_t heads = 0;
  std::uint32_t kv_heads = 0;   ///< 0: as many as heads.
  std::uint32_t head_dim = 0;   ///< 0: hidden / heads.
  std::uint32_t width = 0;      ///< 0: 4 * hidden.
  std::uint32_t positions = 0;  ///< 0: the family has no such key.
};

/// Another spelling of `key` in this family's config.json.
struct KeyAlias {
  const char* key;
  const char* spelling;
};
/// A bias, norm or the like that a key switches; without a key it is always `value`.
struct FlagKey {
  const char* key = nullptr;
  bool value = false;  ///< If the key is absent.
};
struct NumberKey {
  const char* key = nullptr;
  double value = 0;
};
/// A key that must be absent, null, or `value`: anything else needs what is not built in.
struct FixedKey {
  const char* key;
  std::variant<bool, double, std::string_view> value;
  const char* missing;  ///< "needs ...".
};

/// Where the norms of a layer stand.
struct LayerForm {
  gpu_exec::Residual residual = gpu_exec::Residual::sequential;
  bool attention_norm = true;
  bool attention_out_norm = false;
  bool mlp_norm = true;
  bool mlp_out_norm = false;
};
inline constexpr LayerForm kPreNorm{};
inline constexpr LayerForm kPostNorm{
    .attention_norm = false, .attention_out_norm = true, .mlp_norm = false, .mlp_out_norm = true};
inline constexpr LayerForm kSandwich{.attention_out_norm = true, .mlp_out_norm = true};
inline constexpr LayerForm kParallelTwoNorms{.residual = gpu_exec::Residual::parallel};
inline constexpr LayerForm kParallelOneNorm{.residual = gpu_exec::Residual::parallel,
                                            .mlp_norm = false};
inline constexpr LayerForm kNormAfter{.residual = gpu_exec::Residual::norm_after,
                                      .attention_norm = false,
                                      .attention_out_norm = true,
                                      .mlp_norm = false,
                                      .mlp_out_norm = true};

enum class WindowRule : std::uint8_t {
  none,          ///< `sliding_window` is not a key of this family.
  every_layer,   ///< Wherever `sliding_window` is a number.
  upper_layers,  ///< use_sliding_window, from layer max_window_layers on; layer_types overrides.
  layer_types,   ///< layer_types, else all but every `pattern`-th layer.
  rope_less,     ///< use_sliding_window, on layers without rotary embedding; layer_types overrides.
  chunks,        ///< attention_chunk_size, on layers with rotary embedding.
};
struct WindowForm {
  WindowRule rule = WindowRule::none;
  std::uint32_t window = 0;  ///< When the key is absent; 0: none.
  std::uint32_t pattern = 0;
  bool pattern_key = false;  ///< `sliding_window_pattern` is a key of this family.
  bool window_null = false;  ///< A null `sliding_window` means that all layers are full.
};
/// Layers without rotary embedding.
enum class NopeRule : std::uint8_t {
  none,
  full_layers,  ///< Those without a window, unless no layer has one and window_null.
  listed,       ///< no_rope_layers, else every no_rope_layer_interval-th.
};

enum class RopeRule : std::uint8_t {
  none,
  one,
  local_theta,  ///< Layers with a window: `rope_local_base_freq`, no scaling.
  local_plain,  ///< Layers with a window: no scaling.
};
struct RopeForm {
  RopeRule rule = RopeRule::one;
  gpu_exec::RopeStyle style = gpu_exec::RopeStyle::halves;
  double theta = 10000.0;
  double theta_v5 = 10000.0;  ///< Of transformers 5.
  double local_theta = 10000.0;
  bool partial = false;           ///< May turn a part of each head only;
  double part = 1.0;              ///< this much of it if the key is absent.
  bool part_by_dim = false;       ///< `rotary_dim` says how much, if it is there.
  bool alpha = false;             ///< "dynamic" may have `alpha`, which stretches theta.
  bool scaling = true;            ///< Honours `rope_scaling` of transformers 4.
  bool temperature = false;       ///< Needs `llama_4_scaling_beta`.
  std::uint32_t original = 0;     ///< `original_max_position_embeddings` if absent; 0: no such key.
  bool longrope_aliases = false;  ///< "su" and "yarn" mean "longrope".
  const char* absent = nullptr;   ///< `rope_parameters` when there are none, JSON.
};

/// Multi-head latent attention: values of absent keys. A null `q_lora_rank` means that queries have
/// no latent.
struct LatentForm {
  std::uint32_t kv_rank = 0;  ///< 0: the family has ordinary attention.
  std::uint32_t q_rank = 0;
  std::uint32_t nope_dim = 0;
  std::uint32_t rope_dim = 0;
  std::uint32_t value_dim = 0;
  bool interleave_key = false;  ///< `rope_interleave`: pairs turn unless it is false.
  /// `index_topk`: of longer samples a trained index chooses the keys that are seen, which is not
  /// built in. 0: no such key.
  std::uint32_t index_topk = 0;
};

/// Which layers have experts.
enum class SparseRule : std::uint8_t {
  all,
  after_dense,  ///< From `first_k_dense_replace` on; `mlp_layer_types` overrides.
  step,         ///< Every `decoder_sparse_step`-th that is not in `mlp_only_layers`.
  listed,       ///< `moe_layers`, else every `interleave_moe_layer_step`-th.
  range,        ///< Every `moe_layer_interval`-th of moe_layer_start_index..moe_layer_end_index.
};
/// The width of the shared expert.
enum class SharedRule : std::uint8_t {
  none,
  own_key,  ///< shared_expert_intermediate_size
  counted,  ///< n_shared_experts times an expert's; null or 0: none.
  same,     ///< An expert's.
};
/// Groups of experts, of which a token sees some.
enum class GroupRule : std::uint8_t {
  none,
  always,     ///< n_group, topk_group
  by_method,  ///< The same if topk_method is "group_limited_greedy", ranked by the best.
};
/// A mixture of experts in the MLP's place. Numbers are values of absent keys.
struct MoeForm {
  std::uint32_t experts = 0;  ///< num_experts; 0: the family has none.
  std::uint32_t top_k = 0;    ///< num_experts_per_tok
  std::uint32_t width = 0;    ///< moe_intermediate_size; 0: no such key, it is intermediate_size.
  SparseRule layers = SparseRule::all;
  std::uint32_t dense_layers = 0;         ///< first_k_dense_replace
  const char* dense_width_key = nullptr;  ///< Width of layers without experts, if it is another.
  std::uint32_t dense_width = 0;
  gpu_exec::ExpertStorage storage = gpu_exec::ExpertStorage::separate;
  bool fused = false;
  bool interleaved = false;
  bool bias = false;     ///< Of experts and router.
  bool clamped = false;  ///< Activation::clamped_swish, whatever `hidden_act` says.
  gpu_exec::RouterScore score = gpu_exec::RouterScore::softmax;
  bool select_bias = false;
  GroupRule groups = GroupRule::none;
  std::uint32_t group_count = 1;  ///< n_group
  std::uint32_t top_groups = 1;   ///< topk_group
  FlagKey renormalise{nullptr, true};
  NumberKey renormalise_floor{};
  NumberKey multiplier{nullptr, 1.0};
  bool input_scaled = false;
  SharedRule shared = SharedRule::none;
  std::uint32_t shared_default = 0;  ///< Of the key that `shared` names.
  bool shared_gate = false;
};

enum class ScaleRule : std::uint8_t {
  head_dim,        ///< head_dim^-0.5
  query_pre_attn,  ///< query_pre_attn_scalar^-0.5
  multiplier,      ///< attention_multiplier
};
struct AttentionForm {
  gpu_exec::QkvStorage storage = gpu_exec::QkvStorage::separate;
  bool head_dim_key = true;  ///< Else it is hidden / heads.
  bool kv_heads_key = true;  ///< Else as many as heads.
  FlagKey qkv_bias{};
  FlagKey out_bias{};
  gpu_exec::QkNorm qk_norm = gpu_exec::QkNorm::none;
  bool qk_norm_after_rope = false;
  const char* qk_norm_key = nullptr;  ///< Must be true for qk_norm;
  bool qk_norm_default = false;       ///< this if it is absent.
  ScaleRule scale = ScaleRule::head_dim;
  NumberKey softcap{};
  bool causal = true;
  bool alibi = false;
  bool sinks = false;
  /// Layers without rope: attn_temperature_tuning, attn_scale and floor_scale are keys.
  bool nope_temperature = false;
};
struct MlpForm {
  bool gated = true;
  bool fused = false;
  FlagKey bias{};
  const char* activation = "silu";  ///< If `hidden_act` is absent.
  bool activation_key = true;       ///< Else it is always that.
  bool width_key = true;            ///< Else it is 4 * hidden.
  bool hidden_activation = false;   ///< That key counts before `hidden_act`, whose gelu is tanh's.
};
struct EmbeddingForm {
  bool sqrt_hidden = false;  ///< Multiplied by it, rounded to the compute dtype.
  const char* multiplier_key = nullptr;
  bool positions = false;  ///< Learned.
  std::uint32_t position_offset = 0;
  std::uint32_t types = 0;  ///< If `type_vocab_size` is absent; 0: no such key.
  bool norm = false;
};
struct HeadForm {
  bool tied = false;  ///< If `tie_word_embeddings` is absent.
  NumberKey multiplier{nullptr, 1.0};
  NumberKey divisor{nullptr, 1.0};
  NumberKey softcap{};
};

struct Family {
  const char* model_type;
  const TensorNames* names;
  FamilySizes sizes;
  gpu_exec::NormSpec norm{};  ///< Its epsilon is read.
  NumberKey epsilon{"rms_norm_eps", 1e-6};
  LayerForm layer = kPreNorm;
  FlagKey parallel{};                            ///< If true, the layer is
  LayerForm parallel_layer = kParallelTwoNorms;  ///< this.
  const char* residual_multiplier_key = nullptr;
  bool transposed = false;
  bool final_norm = true;
  AttentionForm attention{};
  WindowForm window{};
  NopeRule nope = NopeRule::none;
  RopeForm rope{};
  MlpForm mlp{};
  EmbeddingForm embedding{};
  HeadForm head{};
  LatentForm latent{};
  MoeForm moe{};
  /// `num_nextn_predict_layers` stand behind the last layer.
  bool next_token_layers = false;
  std::span<const KeyAlias> aliases{};
  std::span<const FixedKey> fixed{};
  std::span<const char* const> harmless{};
  /// What no flag above says.
  Result<void> (*adjust)(ConfigReader& config, gpu_exec::ModelSpec& model,
                         gpu_exec::LayerSpec& layer) = nullptr;
};

/// All that are built in.
std::vector<const Family*> families();
/// Those of families_layer_norm.cc and families_moe.cc.
std::span<const Family> layer_norm_families();
std::span<const Family> moe_families();
/// Null if it is not built in.
const Family* find_family(std::string_view model_type);

/// A multimodal model: what its text part is if `text_config` does not say.
struct Wrapper {
  const char* model_type;
  const char* text_type;
};
std::span<const Wrapper> wrappers();

/// A family we know and cannot compute, and what is missing.
struct UnsupportedFamily {
  const char* model_type;
  const char* missing;
};
std::span<const UnsupportedFamily> unsupported_families();

}  // namespace librarian::weightmap
