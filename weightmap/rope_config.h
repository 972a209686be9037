#pragma once
/// Rotary embedding settings of either config dialect -> frequencies.

#include <cstdint>
#include <string>

#include "base/error.h"
#include "gpu_exec/model_spec.h"
#include "weightmap/config_reader.h"
#include "weightmap/family.h"

namespace librarian::weightmap {

/// Which transformers wrote a config.json: absent keys have other values in 5.
enum class Dialect : std::uint8_t { v4, v5 };

struct RopeConfig {
  std::string type;  ///< "none", "default", "linear", "dynamic", "llama3", "yarn" or "longrope"
  gpu_exec::RopeSpec spec;
  gpu_exec::RopeSpec local;  ///< Of layers with a window; the same unless the family has two.
  double temperature_beta = 0;
  std::uint32_t temperature_original = 0;
  /// What some families multiply scores by where "yarn" has mscale_all_dim.
  double score_multiplier = 1;
};

/// Reads `rope_parameters`, or `rope_theta` with `rope_scaling`, and what belongs to them.
/// @param max_positions  config `max_position_embeddings`.
/// @error bad_input  A type or key that is not built in, or values that make no sense.
/// @source transformers 4.57 and 5.23 modeling_rope_utils.py: frequencies in f32, as computed
///         there; its powers come out one unit in the last place apart between kinds of CPU.
Result<RopeConfig> read_rope(ConfigReader& config, const RopeForm& form, Dialect dialect,
                             std::uint32_t head_dim, std::uint32_t max_positions);

}  // namespace librarian::weightmap
