#pragma once
/// Attention settings of config.json -> AttentionSpec and what differs between layers.

#include <cstdint>
#include <vector>

#include "base/error.h"
#include "gpu_exec/model_spec.h"
#include "weightmap/config_reader.h"
#include "weightmap/family.h"

namespace librarian::weightmap {

/// Everything that all layers share; rope is left out.
/// @error bad_input  Names the key.
Result<gpu_exec::AttentionSpec> read_attention(ConfigReader& config, const Family& family,
                                               std::uint32_t hidden);

/// What sets one layer's attention apart.
struct LayerKind {
  std::uint32_t window = 0;
  std::uint32_t chunk = 0;
  bool local = false;  ///< Turns by the second rope of a family that has two.
  bool rope = true;
};
Result<std::vector<LayerKind>> read_layer_kinds(ConfigReader& config, const Family& family,
                                                std::uint32_t layers);

/// Gives layers without rope their temperature, of a family whose config.json has it.
Result<void> read_nope_temperature(ConfigReader& config, gpu_exec::AttentionSpec& attention);

/// The value of a flag whose key depends on the family.
Result<bool> read_flag(ConfigReader& config, const FlagKey& flag);

}  // namespace librarian::weightmap
