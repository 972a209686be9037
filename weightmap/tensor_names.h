#pragma once
/// Tensor names -> what the tensor is to the model. A table per family; no name is guessed.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gpu_exec/model_spec.h"

namespace librarian::weightmap {

/// `name` of a tensor that each expert has holds "{}" for the expert's number; without it, that of
/// such a role is the one tensor of all experts.
struct RoleName {
  gpu_exec::WeightRole role;
  std::string_view name;
};

/// The names of one family. Where a role stands twice, checkpoints have it under either name, and
/// the first is the one we write.
struct TensorNames {
  /// What may stand before everything below, longest first.
  std::span<const std::string_view> prefixes;
  std::string_view layers;            ///< Before a layer's number, which a dot follows.
  std::span<const RoleName> outside;  ///< Of embedding_roles() and final_roles().
  std::span<const RoleName> inside;   ///< Of weight_roles(), after the number's dot.
  /// Known and not needed by the layers: heads (without prefix), and buffers with the prefix,
  /// outside and inside of layers; all names below one that ends in a dot.
  std::span<const std::string_view> heads;
  std::span<const std::string_view> buffers_outside;
  std::span<const std::string_view> buffers_inside;
  /// The one of `heads` that gives logits and its bias; empty: there is none.
  std::string_view head = "lm_head.weight";
  std::string_view head_bias = "";
};

/// What the checkpoints of one config.json call their tensors.
struct NameScheme {
  const TensorNames* family = nullptr;
  bool multimodal = false;  ///< The text part of a larger model, whose other parts are not needed.
  /// Layers behind the last that predict tokens further ahead: known and not needed.
  std::int32_t layers_beyond = 0;
};

/// What a tensor is, from its name alone.
struct NamedTensor {
  enum class Kind : std::uint8_t {
    weight,   ///< `role` of `layer`: -1 before the first, the number of layers after the last.
    head,     ///< Makes something of the last layer's rows, such as logits.
    unused,   ///< Known and not needed: buffers, towers of a multimodal model.
    unknown,  ///< Nothing we know: refused, it may change the numbers.
  };
  Kind kind = Kind::unknown;
  std::int32_t layer = 0;
  gpu_exec::WeightKey key{};
  bool all_experts = false;  ///< The tensor of all experts; `key` is that of the first.
};

/// What this checkpoint puts before its names: the prefix under which one of `names` is the token
/// embedding; the most usual one if none is.
std::string base_prefix(const NameScheme& scheme, std::span<const std::string_view> names);

/// @param prefix  base_prefix() of the checkpoint.
/// @param layers  Number of layers; a tensor of a layer beyond is unknown, but for layers_beyond.
NamedTensor classify_tensor(std::string_view name, const NameScheme& scheme,
                            std::string_view prefix, std::int32_t layers);

/// Whether `name` is that of the matrix that gives logits (or of its bias), in any writer's
/// spelling.
bool is_head_name(std::string_view name, const NameScheme& scheme, gpu_exec::WeightRole role);

/// The name that `key` must have; `layer` counts for roles of weight_roles() only, which the family
/// must have. An expert's part of the tensor of all is "NAME[3]".
std::string tensor_name(const NameScheme& scheme, std::string_view prefix, std::int32_t layer,
                        const gpu_exec::WeightKey& key);

}  // namespace librarian::weightmap
