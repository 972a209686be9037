#pragma once
/// A model as data: flags for the whole model and for each layer. weightmap fills them from
/// config.json and tensor names; executors read them. Adding a family adds no code here unless it
/// needs arithmetic that no family had before.

#include <cstdint>
#include <optional>
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
};
/// [rotary_dim / 2] for a sample of `sample_rows` tokens.
std::vector<float> rope_frequencies(const RopeSpec& rope, std::uint64_t sample_rows);

/// Norm of q and k.
enum class QkNorm : std::uint8_t {
  none,
  head,       ///< Each head by itself; weights [head_dim].
  head_each,  ///< Each head by itself with its own weights, [heads, head_dim].
  full,       ///< All heads together; weights [heads * head_dim].
};

/// Where the rows of q, k and v lie.
enum class QkvStorage : std::uint8_t {
  separate,  ///< Three tensors.
  concat,    ///< One: all of q, then k, then v.
  per_head,  ///< One: [heads, {q, k, v}, head_dim]; heads == kv_heads.
  grouped,   ///< One: [kv_heads, {q of the group, k, v}, head_dim].
};

struct AttentionSpec {
  std::uint32_t heads = 0;
  std::uint32_t kv_heads = 0;  ///< Divides heads; query head h reads kv head h / (heads/kv_heads).
  std::uint32_t head_dim = 0;
  float scale = 0;  ///< Multiplies q.k before the softmax.
  QkvStorage storage = QkvStorage::separate;
  bool qkv_bias = false;
  bool out_bias = false;
  QkNorm qk_norm = QkNorm::none;  ///< Before rope, with the model's NormSpec.
  RopeSpec rope;                  ///< rotary_dim 0: none.
  bool causal = true;
  std::uint32_t window = 0;  ///< Query i sees keys j with i - window < j <= i; 0: no limit.
  std::uint32_t chunk = 0;   ///< Query i sees keys j with i / chunk == j / chunk; 0: no limit.
  float softcap = 0;         ///< Scores become softcap * tanh(score / softcap); 0: none.
  bool sinks = false;        ///< One more score per head in the softmax's denominator.
  bool alibi = false;        ///< Adds slope(head) * key position to the scores.
  /// q is multiplied by 1 + beta * log(1 + floor(position / original)); original 0: not.
  float temperature_beta = 0;
  std::uint32_t temperature_original = 0;
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
  Residual residual = Residual::sequential;
  bool attention_norm = true;       ///< Before attention.
  bool attention_out_norm = false;  ///< After it.
  bool mlp_norm = true;  ///< Parallel without it: the MLP shares attention_norm's output.
  bool mlp_out_norm = false;
  float residual_multiplier = 1.0F;  ///< Of what is added to x.
  bool transposed = false;           ///< Matrices lie as [inputs, outputs].
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
  mlp_out_norm,
  mlp_out_norm_bias,
  final_norm,
  final_norm_bias,
  head,  ///< [vocab, hidden]; multiplied in tiles of kVocabularyTile rows
  head_bias,
};
inline constexpr std::size_t kWeightRoles = static_cast<std::size_t>(WeightRole::head_bias) + 1;
const char* weight_role_name(WeightRole role);

/// Row-major shape that the tensor of `role` must have; {n} for vectors, {rows, columns} for
/// matrices ({columns, rows} if the layer is transposed).
std::vector<std::uint64_t> weight_shape(const ModelSpec& model, const LayerSpec& layer,
                                        WeightRole role);
/// The tensors that a layer, the step before the first and the step after the last need, in the
/// order the arithmetic uses them.
std::vector<WeightRole> weight_roles(const ModelSpec& model, const LayerSpec& layer);
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
