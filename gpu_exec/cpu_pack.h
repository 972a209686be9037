#pragma once
/// Packing of matrices for the CPU kernels: pure movement of elements, the same on every path.

#include <cstddef>
#include <cstdint>

#include "gpu_exec/device.h"

namespace librarian::gpu_exec {

/// Bytes of one packed panel: every one is full, padded with zeros.
std::uint64_t packed_panel_bytes(std::uint64_t inputs, std::uint64_t panel_columns, DType type);

/// Writes panel `panel` of a matrix [outputs, inputs] in the layout of WeightView. Panels may be
/// packed concurrently.
/// @param packed  The whole packed matrix.
void pack_panel(const MatrixSource& source, std::uint64_t outputs, std::uint64_t inputs,
                std::uint64_t panel_columns, std::uint64_t panel, std::byte* packed);

}  // namespace librarian::gpu_exec
