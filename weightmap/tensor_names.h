#pragma once
/// Tensor names -> what the tensor is to the model. A table per family; no name is guessed.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gpu_exec/model_spec.h"

namespace librarian::weightmap {

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
  /// Known and not needed by the layers: heads (without prefix; all names below one that ends in a
  /// dot), and buffers with the prefix, outside and inside of layers.
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
  gpu_exec::WeightRole role{};
};

/// What this checkpoint puts before its names: the prefix under which one of `names` is the token
/// embedding; the most usual one if none is.
std::string base_prefix(const NameScheme& scheme, std::span<const std::string_view> names);

/// @param prefix  base_prefix() of the checkpoint.
/// @param layers  Number of layers; a tensor of a layer beyond is unknown.
NamedTensor classify_tensor(std::string_view name, const NameScheme& scheme,
                            std::string_view prefix, std::int32_t layers);

/// Whether `name` is that of the matrix that gives logits (or of its bias), in any writer's
/// spelling.
bool is_head_name(std::string_view name, const NameScheme& scheme, gpu_exec::WeightRole role);

/// The name that `role` must have; `layer` counts for roles of weight_roles() only, which the
/// family must have.
std::string tensor_name(const NameScheme& scheme, std::string_view prefix, std::int32_t layer,
                        gpu_exec::WeightRole role);

}  // namespace librarian::weightmap
