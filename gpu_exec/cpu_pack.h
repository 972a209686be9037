#pragma once
/// Packing of matrices for the CPU kernels: pure movement of elements, the same on every path.

#include <cstddef>
#include <cstdint>

#include "gpu_exec/cpu_kernels.h"
#include "gpu_exec/device.h"

namespace librarian::gpu_exec {

/// Where a panel's elements go; see WeightView.
struct PanelLayout {
  std::uint64_t columns;  ///< A multiple of 8, at most 64.
  bool pairs;             ///< Only for elements of two bytes.
};
PanelLayout panel_layout(const CpuKernels& kernels, DType type);

/// Bytes of one packed panel: every one is full, padded with zeros.
std::uint64_t packed_panel_bytes(std::uint64_t inputs, PanelLayout layout, DType type);

/// Writes panel `panel` of a matrix [outputs, inputs]. Panels may be packed concurrently.
/// @param packed  The whole packed matrix, aligned to 64.
void pack_panel(const MatrixSource& source, std::uint64_t outputs, std::uint64_t inputs,
                PanelLayout layout, std::uint64_t panel, std::byte* packed);

}  // namespace librarian::gpu_exec
