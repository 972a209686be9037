#pragma once
/// A model as data: flags for the whole model and for each layer. weightmap fills them from
/// config.json and tensor names; executors read them. Adding a family adds no code here unless it
/// needs arithmetic that no family had before.

#include <compare>
#include <cstdint>
#include <string>
#include <vector>

namespace librarian::gpu_exec {

/// Element type of tensors in memory and of arithmetic between operations.
enum class DType : std::uint8_t { bf16, f16, f32 };
std::uint64_t dtype_bytes(DType type);
const char* dtype_name(DType type);  ///< "bf16", "f16", "f32"

enum class Activation : std::uint8_t {
  identity,
  silu,
  gelu,       ///< x * (1 + erf(x / sqrt(2))) / 2
  gelu_tanh,  ///< its approximation by tanh
  relu,
  relu_squared,
  /// Gated layers only: with gate at most 7 and up in -7..7, gate / (1 + exp(-1.702 gate)) times
  /// (up + 1) in place of act(gate) * up.
  clamped_swish,
};

enum class NormKind : std::uint8_t { rms, layer };

/// How every norm of a model works.
struct NormSpec {
  NormKind kind = NormKind::rms;
  bool bias = false;      ///< Not for the norms of q and k.
  bool one_plus = false;  ///< Multiplies by 1 + weight.
  float epsilon = 0;      ///< Added to the mean square (rms) or the variance (layer).
};

enum class RopeStyle : std::uint8_t {
  halves,  ///< Dimension i turns with i + rotary_dim / 2.
  pairs,   ///< Dimension 2i turns with 2i + 1.
};

/// Rotary embedding. Where the frequencies depend on the length of the sequence, it is the length
/// of the sample alone, never that of others it happens to be computed with.
struct RopeSpec {
  RopeStyle style = RopeStyle::halves;
  std::uint32_t rotary_dim = 0;          ///< Leading dimensions of each head that turn; even.
  std::vector<float> inverse_frequency;  ///< [rotary_dim / 2], scaling already applied.
  float cos_sin_multiplier = 1.0F;       ///< Applied to cos and sin.
  /// Samples of more tokens than this use other frequencies; 0: none do.
  std::uint32_t short_rows_max = 0;
  std::vector<float> long_inverse_frequency;  ///< Theirs ("longrope"), or empty:
  double dynamic_theta = 0;                   ///< they grow with the sample ("dynamic").
  double dynamic_factor = 0;
  bool operator==(const RopeSpec&) const = default;
};
/// [rotary_dim / 2] for a sample of `sample_rows` tokens.
std::vector<float> rope_frequencies(const RopeSpec& rope, std::uint64_t sample_rows);

/// Norm of q and k.
enum class QkNorm : std::uint8_t {
  none,
  head,       ///< Each head by itself; weights [head_dim].
  head_each,  ///< Each head by itself with its own weights, [heads, head_dim].
  full,       ///< All heads together; weights [heads * head_dim].
  unit,       ///< Each head by itself, without weights, and only where rope turns it.
};

/// Where the rows of q, k and v lie.
enum class QkvStorage : std::uint8_t {
  separate,  ///< Three tensors.
  concat,    ///< One: all of q, then k, then v.
  per_head,  ///< One: [heads, {q, k, v}, head_dim]; heads == kv_heads.
  grouped,   ///< One: [kv_heads, {q of the group, k, v}, head_dim].
};

/// Multi-head latent attention: a head's keys and values are made of one narrow row per token, its
/// latent, which all heads share, and of `rope_dim` dimensions of key that turn, shared likewise.
/// A head's query and key are {nope_dim, rope_dim}: only the latter turn.
/// @source DeepSeek-AI 2024 (DeepSeek-V2), section 2.1
struct LatentSpec {
  std::uint32_t kv_rank = 0;  ///< Width of the latent of keys and values; 0: ordinary attention.
  std::uint32_t q_rank = 0;   ///< Width of the queries' own; 0: they are projected at once.
  std::uint32_t nope_dim = 0;
  std::uint32_t rope_dim = 0;  ///< AttentionSpec::rope turns all of them.
  std::uint32_t value_dim = 0;
  float epsilon = 1e-6F;  ///< Of the RMS norms of the latents.
  bool bias = false;      ///< Of the projections to the latents.
  bool operator==(const LatentSpec&) const = default;
};

struct AttentionSpec {
  std::uint32_t heads = 0;
  std::uint32_t kv_heads = 0;  ///< Divides heads; query head h reads kv head h / (heads/kv_heads).
  std::uint32_t head_dim = 0;
  float scale = 0;  ///< Multiplies q.k before the softmax.
  QkvStorage storage = QkvStorage::separate;
  bool qkv_bias = false;
  bool out_bias = false;
  QkNorm qk_norm = QkNorm::none;    ///< With the model's NormSpec,
  bool qk_norm_after_rope = false;  ///< before rope or after it.
  RopeSpec rope;                    ///< rotary_dim 0: none.
  bool causal = true;
  std::uint32_t window = 0;  ///< Query i sees keys j with i - window < j <= i; 0: no limit.
  std::uint32_t chunk = 0;   ///< Query i sees keys j with i / chunk == j / chunk; 0: no limit.
  float softcap = 0;         ///< Scores become softcap * tanh(score / softcap); 0: none.
  bool sinks = false;        ///< One more score per head in the softmax's denominator.
  bool alibi = false;        ///< Adds slope(head) * key position to the scores.
  /// q is multiplied by 1 + beta * log(1 + floor(position / original)); original 0: not.
  float temperature_beta = 0;
  std::uint32_t temperature_original = 0;
  std::uint32_t temperature_offset = 0;  ///< Added to the position there.
  /// If it is there, heads == kv_heads and head_dim == nope_dim + rope_dim; storage and qk_norm are
  /// not used.
  LatentSpec latent;
  bool operator==(const AttentionSpec&) const = default;
  /// Width of one head's values.
  std::uint32_t value_dim() const { return latent.kv_rank != 0 ? latent.value_dim : head_dim; }
};
/// What multiplies a query at `position`: see AttentionSpec::temperature_beta.
float query_temperature(float beta, std::uint32_t original, std::uint64_t position);
/// Slope of each head.   @source Press et al. 2022, section 3, and its code for other head counts
std::vector<float> alibi_slopes(std::uint32_t heads);

struct MlpSpec {
  std::uint32_t width = 0;                   ///< Rows of gate and up.
  bool gated = true;                         ///< down(act(gate(h)) * up(h)), else down(act(up(h))).
  bool fused = false;                        ///< One tensor: gate, then up.
  Activation activation = Activation::silu;  ///< Never identity.
  bool bias = false;
  bool operator==(const MlpSpec&) const = default;
};

/// What a router makes of its products.
enum class RouterScore : std::uint8_t {
  softmax,  ///< Over all experts. Over the chosen ones alone is the same with `renormalise`.
  sigmoid,
};

/// How a group of experts is ranked among the groups.
enum class GroupRank : std::uint8_t {
  best,      ///< By the best score in it.
  best_two,  ///< By the sum of its two best.
};

enum class ExpertStorage : std::uint8_t {
  separate,            ///< Tensors of its own for each expert.
  stacked,             ///< One of all: [experts, outputs, inputs].
  stacked_transposed,  ///< [experts, inputs, outputs].
  flat,                ///< [experts * width, hidden], the down matrix transposed.
};

/// A mixture of experts in the MLP's place: of each token, the `top_k` experts with the best scores
/// give sum(weight * down(act(gate(h)) * up(h))), and a shared expert that every token meets is
/// added. The activation is MlpSpec's.
/// @source Shazeer et al. 2017; DeepSeek-AI 2024 (DeepSeek-V3), section 2.1.2
struct MoeSpec {
  std::uint32_t experts = 0;  ///< 0: none, the layer has an MLP.
  std::uint32_t top_k = 0;
  std::uint32_t width = 0;  ///< Rows of an expert's gate and up.
  ExpertStorage storage = ExpertStorage::separate;
  bool fused = false;        ///< Gate and up are one tensor: gate, then up,
  bool interleaved = false;  ///< or their rows take turns.
  bool bias = false;         ///< Of the experts' matrices.
  RouterScore score = RouterScore::softmax;
  bool router_bias = false;  ///< Added to the products.
  float router_cap = 0;      ///< Products become cap * tanh(product / cap); 0: none.
  /// Added to the scores where experts are chosen, not to the weights.
  bool select_bias = false;
  /// Experts are chosen from the `top_groups` best of `groups` equal runs of them.
  std::uint32_t groups = 1, top_groups = 1;
  GroupRank group_rank = GroupRank::best_two;
  bool renormalise = true;         ///< Weights are scores divided by their sum,
  float renormalise_floor = 0;     ///< or by this if it is larger; scores as they are otherwise.
  float multiplier = 1.0F;         ///< Of the weights.
  bool input_scaled = false;       ///< The weight multiplies an expert's input, not its output.
  std::uint32_t shared_width = 0;  ///< 0: there is no shared expert.
  bool shared_gate = false;        ///< It is multiplied by sigmoid(h * shared_router^T).
  bool operator==(const MoeSpec&) const = default;
};

/// How attention and MLP are joined to the residual stream x.
enum class Residual : std::uint8_t {
  sequential,  ///< x += f(norm(x)) for each, one after the other.
  parallel,    ///< Both read the same x: x += attention(norm(x)) + mlp(norm(x)).
  norm_after,  ///< x = norm(x + f(x)): the out norms stand behind the addition.
};

struct LayerSpec {
  AttentionSpec attention;
  MlpSpec mlp;
  MoeSpec moe;  ///< In place of `mlp` if it has experts.
  Residual residual = Residual::sequential;
  bool attention_norm = true;       ///< Before attention.
  bool attention_out_norm = false;  ///< After it.
  bool mlp_norm = true;  ///< Parallel without it: the MLP shares attention_norm's output.
  bool mlp_out_norm = false;
  float residual_multiplier = 1.0F;  ///< Of what is added to x.
  bool transposed = false;           ///< Matrices lie as [inputs, outputs].
  bool operator==(const LayerSpec&) const = default;
};

/// The first layer's input: norm(word * multiplier + position + type).
struct EmbeddingSpec {
  float multiplier = 1.0F;
  bool multiplier_in_dtype = false;   ///< The multiplier is rounded to the compute type first.
  std::uint32_t positions = 0;        ///< Rows of the learned position table; 0: none.
  std::uint32_t position_offset = 0;  ///< Row of position 0.
  std::uint32_t types = 0;            ///< Rows of the token type table, of which row 0 is added.
  bool norm = false;
};

/// What turns final.post_norm into logits.
struct HeadSpec {
  bool tied = false;  ///< The embedding is the matrix.
  bool bias = false;
  float multiplier = 1.0F;
  float softcap = 0;  ///< 0: none.
};

struct ModelSpec {
  std::uint32_t hidden_size = 0;
  std::uint32_t vocab_size = 0;
  std::uint32_t max_positions = 0;  ///< 0: not said.
  NormSpec norm;
  EmbeddingSpec embedding;
  bool final_norm = true;
  HeadSpec head;
  std::vector<LayerSpec> layers;
};

/// What a tensor is to the layer that uses it.
enum class WeightRole : std::uint8_t {
  embedding,  ///< [vocab, hidden]; gathered on the host, never loaded into an executor
  position_embedding,
  type_embedding,
  embedding_norm,
  embedding_norm_bias,
  attention_norm,
  attention_norm_bias,
  q_weight,
  q_bias,
  k_weight,
  k_bias,
  v_weight,
  v_bias,
  qkv_weight,  ///< Comes apart into q, k and v when it is loaded.
  qkv_bias,
  q_norm,
  k_norm,
  sinks,
  q_a_weight,  ///< Of latent attention: hidden -> the queries' latent,
  q_a_bias,
  q_a_norm,
  q_b_weight,   ///< which becomes the queries.
  kv_a_weight,  ///< hidden -> the keys' and values' latent and the keys' part that turns,
  kv_a_bias,
  kv_a_norm,    ///< of the latent,
  kv_b_weight,  ///< which becomes {key's nope_dim, value} of each head.
  out_weight,
  out_bias,
  attention_out_norm,
  attention_out_norm_bias,
  mlp_norm,
  mlp_norm_bias,
  gate_weight,
  gate_bias,
  up_weight,
  up_bias,
  gate_up_weight,  ///< Comes apart into gate and up when it is loaded.
  gate_up_bias,
  down_weight,
  down_bias,
  router_weight,
  router_bias,
  router_select_bias,
  shared_router,  ///< [1, hidden]
  shared_gate_weight,
  shared_up_weight,
  shared_down_weight,
  expert_gate_weight,  ///< From here to expert_down_bias: one of each expert.
  expert_gate_bias,
  expert_up_weight,
  expert_up_bias,
  expert_gate_up_weight,  ///< Comes apart into gate and up when it is loaded.
  expert_gate_up_bias,
  expert_down_weight,
  expert_down_bias,
  mlp_out_norm,
  mlp_out_norm_bias,
  final_norm,
  final_norm_bias,
  head,  ///< [vocab, hidden]; multiplied in tiles of kVocabularyTile rows
  head_bias,
};
inline constexpr std::size_t kWeightRoles = static_cast<std::size_t>(WeightRole::head_bias) + 1;
const char* weight_role_name(WeightRole role);
/// Whether there is one of each expert.
constexpr bool is_expert_role(WeightRole role) {
  return role >= WeightRole::expert_gate_weight && role <= WeightRole::expert_down_bias;
}

/// Matrices that checkpoints may hold in f32 whatever the others are. They are small: room for them
/// is always that of f32.
constexpr bool is_router_role(WeightRole role) {
  return role == WeightRole::router_weight || role == WeightRole::shared_router;
}

/// One tensor of a layer. Checkpoints may hold all experts' in one: then it is a part of that.
struct WeightKey {
  WeightRole role{};
  std::uint32_t expert = 0;  ///< 0 unless is_expert_role().
  // NOLINTNEXTLINE(google-explicit-constructor): most roles have one tensor.
  constexpr WeightKey(WeightRole role_of = {}, std::uint32_t expert_of = 0)
      : role(role_of), expert(expert_of) {}
  auto operator<=>(const WeightKey&) const = default;  // NOLINT(modernize-use-nullptr): its own 0
};
/// Where a layer's tensor stands when the layer comes in stages: those of attention are 0, then
/// what an MLP or the choice of experts begins with, then what an MLP ends with or expert by
/// expert.
constexpr std::uint32_t stage_order(const WeightKey& key) {
  if (is_expert_role(key.role)) {
    return 2 + key.expert;
  }
  if (key.role == WeightRole::down_weight || key.role == WeightRole::down_bias) {
    return 2;
  }
  return key.role >= WeightRole::mlp_norm ? 1 : 0;
}
/// "expert_up_weight of expert 3".
std::string weight_key_name(const WeightKey& key);

/// Row-major shape that the tensor of `role` must have (of one expert); {n} for vectors, {rows,
/// columns} for matrices ({columns, rows} if weight_transposed()).
std::vector<std::uint64_t> weight_shape(const ModelSpec& model, const LayerSpec& layer,
                                        WeightRole role);
/// Whether a matrix lies as [inputs, outputs].
bool weight_transposed(const LayerSpec& layer, WeightRole role);
/// The tensors that a layer, the step before the first and the step after the last need, in the
/// order the arithmetic uses them; an expert's once for all of them.
std::vector<WeightRole> weight_roles(const ModelSpec& model, const LayerSpec& layer);
/// All tensors of a layer: weight_roles(), an expert's once for each.
std::vector<WeightKey> weight_keys(const ModelSpec& model, const LayerSpec& layer);
std::vector<WeightRole> embedding_roles(const ModelSpec& model);
std::vector<WeightRole> final_roles(const ModelSpec& model);
/// What the last step needs besides where logits are wanted.
std::vector<WeightRole> head_roles(const ModelSpec& model);

/// Rows of a tensor that make up a matrix or vector: row i is first + i / run * stride + i % run.
struct RowRuns {
  std::uint64_t first = 0;
  std::uint64_t run = ~std::uint64_t{0};
  std::uint64_t stride = 0;
  std::uint64_t at(std::uint64_t row) const { return first + row / run * stride + row % run; }
};
/// What the executor keeps of a tensor: itself, or the parts of a fused one.
struct WeightPart {
  WeightRole role;
  std::uint64_t outputs;
  std::uint64_t inputs;  ///< 0: a vector.
  RowRuns rows;
};
std::vector<WeightPart> weight_parts(const ModelSpec& model, const LayerSpec& layer,
                                     WeightRole role);

}  // namespace librarian::gpu_exec
