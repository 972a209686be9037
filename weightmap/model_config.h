#pragma once
/// config.json -> ModelSpec. One table row per `model_type`; every key is used, known to be
/// harmless, or refused by name: a key that we ignored could be the one that changes the numbers.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "gpu_exec/model_spec.h"

namespace librarian::weightmap {

struct ModelConfig {
  std::string model_type;
  gpu_exec::ModelSpec spec;
  /// config `dtype` / `torch_dtype`, if it names a type that can be computed in.
  std::optional<gpu_exec::DType> dtype;
  std::string rope_type;  ///< "default", "linear" or "llama3", for `plan`.
};

/// The families that are built in, sorted.
std::vector<std::string> supported_model_types();

/// Reads either dialect: transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) or 5
/// (`rope_parameters`, `dtype`). Keys equal to a class default are often left out by the writer,
/// so each family carries transformers' defaults.
/// @param what  Names the document in errors.
/// @error bad_input  Names the key: unknown, of the wrong kind, out of bounds, or a value that
///                   needs arithmetic we do not have.
/// @source transformers 4.57 configuration_{llama,qwen2,qwen3,mistral}.py, modeling_rope_utils.py
Result<ModelConfig> parse_model_config(std::string_view json, const std::string& what);

}  // namespace librarian::weightmap
