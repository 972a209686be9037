#pragma once
/// Rotary embedding settings of either config dialect -> frequencies.

#include <cstdint>
#include <string>

#include "base/error.h"
#include "gpu_exec/model_spec.h"
#include "weightmap/config_reader.h"

namespace librarian::weightmap {

struct RopeConfig {
  std::string type;  ///< "default", "linear" or "llama3"
  gpu_exec::RopeSpec spec;
};

/// Reads `rope_parameters`, or `rope_theta` with `rope_scaling`.
/// @param head_dim       All of a head's dimensions turn; even.
/// @param max_positions  config `max_position_embeddings`.
/// @error bad_input  A type or key that is not built in, or values that make no sense.
/// @source transformers 4.57 modeling_rope_utils.py: frequencies in f32, as it computes them.
Result<RopeConfig> parse_rope(ConfigReader& config, std::uint32_t head_dim,
                              std::uint32_t max_positions, double default_theta);

}  // namespace librarian::weightmap
