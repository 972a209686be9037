#pragma once
/// Finds a checkpoint's quantised modules among its tensors, by their names.

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace librarian::weightmap {

/// "a.q_proj.weight_scale" -> {"a.q_proj", "weight_scale"}; no suffix if the name is none that a
/// quantised module's tensors have.
struct ModuleName {
  std::string_view module;
  std::string_view suffix;
};
ModuleName split_module_name(std::string_view name);

struct FoundTensor;

/// A module that is quantised: the places of its tensors in the list it was found in.
using QuantisedTensors = std::map<std::string, std::vector<std::size_t>>;

/// @param tensors  Of all files.
/// @return  Module name -> its tensors but the bias. Modules of plain tensors are not among them.
QuantisedTensors find_quantised_modules(std::span<const FoundTensor> tensors);

}  // namespace librarian::weightmap
