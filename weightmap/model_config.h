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
#include "weightmap/quantisation.h"
#include "weightmap/tensor_names.h"

namespace librarian::weightmap {

struct ModelConfig {
  std::string model_type;  ///< Of the text part where config.json has several.
  gpu_exec::ModelSpec spec;
  NameScheme names;
  /// config `dtype` / `torch_dtype`, if it names a type that can be computed in.
  std::optional<gpu_exec::DType> dtype;
  /// `quantization_config`, of the whole document or of its text part.
  std::optional<Quantisation> quantisation;
  std::string rope_type;  ///< "none", "default", "linear", "dynamic", "llama3", "yarn", "longrope"
  /// Longer samples need arithmetic that is not built in; 0: any length does. `samples_need` says
  /// what.
  std::uint32_t sample_tokens_max = 0;
  std::string samples_need;
  /// What the user should know about how this config.json was read, one sentence each.
  std::vector<std::string> warnings;
};

/// The families that are built in, sorted.
std::vector<std::string> supported_model_types();

/// Reads either dialect: transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) or 5
/// (`rope_parameters`, `dtype`). Keys equal to a class default are often left out by the writer,
/// so each family carries transformers' defaults; where those differ between 4 and 5, the version
/// that wrote the document decides, and a warning says so. Of a multimodal model the `text_config`
/// is read.
/// @param what  Names the document in errors.
/// @error bad_input  Names the key: unknown, of the wrong kind, out of bounds, or a value that
///                   needs arithmetic we do not have.
/// @source transformers 4.57.6 and 5.23.0 configuration_*.py and modeling_*.py
Result<ModelConfig> parse_model_config(std::string_view json, const std::string& what);

}  // namespace librarian::weightmap
