#pragma once
/// `model.safetensors.index.json`: which file holds which tensor.

#include <map>
#include <string>
#include <string_view>

#include "base/error.h"

namespace librarian::weightmap {

/// True for a name that can only be a file beside the index: letters, digits, `._-`, ending in
/// `.safetensors`, no leading dot. Anything else could reach out of the model's directory.
bool is_weight_file_name(std::string_view name);

/// Tensor name -> file name.
/// @error bad_input  Not such a document, empty, or a file name that is not is_weight_file_name().
Result<std::map<std::string, std::string>> parse_weight_index(std::string_view json,
                                                              const std::string& what);

}  // namespace librarian::weightmap
