#pragma once
/// Floating-point operations of a layer, counted as everybody counts them: two per multiply-add.

#include <cstdint>
#include <span>

#include "gpu_exec/model_spec.h"

namespace librarian::ingest {

/// Matrix products and attention of one layer over samples; norms and other row work left out.
/// @param offsets  [samples + 1]
double layer_flops(const gpu_exec::ModelSpec& model, std::uint32_t layer,
                   std::span<const std::int64_t> offsets);

}  // namespace librarian::ingest
