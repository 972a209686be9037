#pragma once
/// Tensor names of the Llama layout -> what the tensor is to the model.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "gpu_exec/model_spec.h"

namespace librarian::weightmap {

/// What a tensor is, from its name alone.
struct NamedTensor {
  enum class Kind : std::uint8_t {
    weight,   ///< `role` of `layer` (kEmbeddingLayer and L included).
    unused,   ///< Known and not needed: lm_head, rotary buffers.
    unknown,  ///< Nothing we know: refused, it may change the numbers.
  };
  Kind kind = Kind::unknown;
  std::int32_t layer = 0;
  gpu_exec::WeightRole role{};
};

/// @param prefix  "model." or "", whatever this checkpoint puts before `layers.0...`.
/// @param layers  Number of layers; a tensor of a layer beyond is unknown.
NamedTensor classify_tensor(std::string_view name, std::string_view prefix, std::int32_t layers);

/// The name that `role` of `layer` must have.
std::string tensor_name(std::string_view prefix, std::int32_t layer, gpu_exec::WeightRole role);

}  // namespace librarian::weightmap
