#include "gpu_exec/cpu_pack.h"

#include <algorithm>
#include <cstring>

namespace librarian::gpu_exec {
namespace {

/// Inputs [k, k + depth) of output `row`.
template <typename Element>
void load_line(const MatrixSource& source, std::uint64_t row, std::uint64_t inputs, std::uint64_t k,
               std::uint64_t depth, Element* line) {
  const std::uint64_t at = source.rows.at(row);
  if (!source.transposed) {
    std::memcpy(line, source.bytes + (at * inputs + k) * sizeof(Element), depth * sizeof(Element));
    return;
  }
  for (std::uint64_t i = 0; i < depth; ++i) {
    std::memcpy(line + i, source.bytes + ((k + i) * source.tensor_rows + at) * sizeof(Element),
                sizeof(Element));
  }
}

template <typename Element>
void pack_elements(const MatrixSource& source, std::uint64_t outputs, std::uint64_t inputs,
                   std::uint64_t panel_columns, std::uint64_t panel, std::byte* packed) {
  // One cache line of each source row per step, so that every line is read once.
  constexpr std::uint64_t kStep = 64 / sizeof(Element);
  const std::uint64_t first = panel * panel_columns;
  const std::uint64_t present = std::min(panel_columns, outputs - first);
  std::byte* out = packed + first * inputs * sizeof(Element);
  for (std::uint64_t k = 0; k < inputs; k += kStep) {
    const std::uint64_t depth = std::min(kStep, inputs - k);
    for (std::uint64_t column = 0; column < panel_columns; ++column) {
      Element line[kStep] = {};
      if (column < present) {
        load_line(source, first + column, inputs, k, depth, line);
      }
      for (std::uint64_t i = 0; i < depth; ++i) {
        std::memcpy(out + ((k + i) * panel_columns + column) * sizeof(Element), line + i,
                    sizeof(Element));
      }
    }
  }
}

}  // namespace

std::uint64_t packed_panel_bytes(std::uint64_t inputs, std::uint64_t panel_columns, DType type) {
  return inputs * panel_columns * dtype_bytes(type);
}

void pack_panel(const MatrixSource& source, std::uint64_t outputs, std::uint64_t inputs,
                std::uint64_t panel_columns, std::uint64_t panel, std::byte* packed) {
  if (source.type == DType::f32) {
    pack_elements<std::uint32_t>(source, outputs, inputs, panel_columns, panel, packed);
  } else {
    pack_elements<std::uint16_t>(source, outputs, inputs, panel_columns, panel, packed);
  }
}

}  // namespace librarian::gpu_exec
