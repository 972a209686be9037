#pragma once
/// From fp8 e4m3fn with a scale per row to the types that models compute in. Pure arithmetic.

#include <cstddef>
#include <span>

#include "activation_store/types.h"
#include "base/error.h"

namespace librarian::activation_store::python {

/// into = value * scale of its row, computed in f32 and rounded to nearest even. NaN stays NaN.
/// @param values  e4m3fn, [scales.size(), width] row-major.
/// @param type    bf16, f16 or f32; `into` has as many elements as `values`.
/// @error invalid_argument  Another type, or sizes that do not belong together.
/// @source Micikevicius et al. 2022 (FP8 formats for deep learning), table 1: e4m3.
Result<void> dequantise_fp8(std::span<const std::byte> values, std::span<const float> scales,
                            StoredType type, std::span<std::byte> into);

}  // namespace librarian::activation_store::python
