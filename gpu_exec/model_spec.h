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

enum class Activation : std::uint8_t { silu };

/// Rotary embedding by halves: dimension i turns with i + rotary_dim / 2.
struct RopeSpec {
  std::uint32_t rotary_dim = 0;          ///< Dimensions of each head that turn; even.
  std::vector<float> inverse_frequency;  ///< [rotary_dim / 2], scaling already applied.
  float cos_sin_multiplier = 1.0F;       ///< Applied to cos and sin.
};

struct AttentionSpec {
  std::uint32_t heads = 0;
  std::uint32_t kv_heads = 0;  ///< Divides heads; query head h reads kv head h / (heads/kv_heads).
  std::uint32_t head_dim = 0;
  float scale = 0;  ///< Multiplies q.k before the softmax.
  bool qkv_bias = false;
  bool out_bias = false;
  bool qk_norm = false;      ///< RMS norm of each head of q and k, before rope.
  std::uint32_t window = 0;  ///< Query i sees keys j with i - window < j <= i; 0: no limit.
  RopeSpec rope;
};

struct MlpSpec {
  std::uint32_t width = 0;  ///< Rows of gate and up.
  Activation activation = Activation::silu;
  bool bias = false;
};

/// h = norm(x); x += attention(h); h = norm(x); x += down(act(gate(h)) * up(h)).
struct LayerSpec {
  AttentionSpec attention;
  MlpSpec mlp;
};

struct ModelSpec {
  std::uint32_t hidden_size = 0;
  std::uint32_t vocab_size = 0;
  std::uint32_t max_positions = 0;  ///< 0: not said.
  float norm_epsilon = 0;           ///< Added to the mean square.
  bool tied_embeddings = false;
  std::vector<LayerSpec> layers;
};

/// What a tensor is to the layer that uses it.
enum class WeightRole : std::uint8_t {
  embedding,  ///< [vocab, hidden]; gathered on the host, never loaded into an executor
  attention_norm,
  q_weight,
  q_bias,
  k_weight,
  k_bias,
  v_weight,
  v_bias,
  q_norm,
  k_norm,
  out_weight,
  out_bias,
  mlp_norm,
  gate_weight,
  gate_bias,
  up_weight,
  up_bias,
  down_weight,
  down_bias,
  final_norm,
};
const char* weight_role_name(WeightRole role);

/// Row-major shape that `role` must have; {n} for vectors, {rows, columns} for matrices.
std::vector<std::uint64_t> weight_shape(const ModelSpec& model, const LayerSpec& layer,
                                        WeightRole role);
/// The roles that `layer` needs, in the order the arithmetic uses them.
std::vector<WeightRole> weight_roles(const LayerSpec& layer);

}  // namespace librarian::gpu_exec
