#pragma once
/// The tensors of a checkpoint's files as the model uses them: what each one's name says it is, and
/// those that hold all experts' cut into one per expert.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "gpu_exec/model_spec.h"
#include "weightmap/safetensors_header.h"
#include "weightmap/tensor_names.h"

namespace librarian::weightmap {

struct FoundTensor {
  std::uint32_t file = 0;
  TensorInfo info;  ///< Of one expert's part: its own name ("NAME[3]"), shape and bytes.
  NamedTensor named;
  /// Of one that may belong to a quantised matrix: the module, and what follows its name and dot,
  /// as quantisation.h calls it; both empty otherwise.
  std::string module;
  std::string suffix;
};

/// @param tensors  Of all files, with the file's number; their shapes and bytes agree.
/// @param where    Names a file of them, for errors.
/// @error bad_input  A tensor of all experts does not have as many as the layer: names it.
Result<std::vector<FoundTensor>> find_tensors(
    std::span<const std::pair<std::uint32_t, TensorInfo>> tensors, const NameScheme& scheme,
    std::string_view prefix, const gpu_exec::ModelSpec& model,
    const std::function<std::string(std::uint32_t file)>& where);

/// "[2, 3]".
std::string shape_text(std::span<const std::uint64_t> shape);

}  // namespace librarian::weightmap
