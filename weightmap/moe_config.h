#pragma once
/// Settings of config.json for mixtures of experts -> MoeSpec, and which layers have one.

#include <cstdint>
#include <vector>

#include "base/error.h"
#include "gpu_exec/model_spec.h"
#include "weightmap/config_reader.h"
#include "weightmap/family.h"

namespace librarian::weightmap {

struct MoeConfig {
  gpu_exec::MoeSpec moe;      ///< Of each layer that has experts.
  std::vector<bool> layers;   ///< Which they are.
  gpu_exec::MlpSpec mlp;      ///< Of the other layers.
  gpu_exec::MlpSpec experts;  ///< Its activation is the experts'.
};

/// @param mlp     What read_layer() made of the family's MLP.
/// @param layers  How many there are.
/// @error bad_input  Names the key.
Result<MoeConfig> read_moe(ConfigReader& config, const Family& family, const gpu_exec::MlpSpec& mlp,
                           std::uint32_t layers);

}  // namespace librarian::weightmap
