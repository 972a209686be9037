#include "gpu_exec/cpu_pack.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace librarian::gpu_exec {
namespace {

constexpr std::uint64_t kColumnsMax = 64;
constexpr std::uint64_t kLine = 64;

/// 16 bytes of Unit, in the processor family's smallest vector.
template <typename Unit>
struct Units {
  using Vector __attribute__((vector_size(16))) = Unit;
  static constexpr int kCount = 16 / sizeof(Unit);
};

inline void interleave(Units<std::uint16_t>::Vector a, Units<std::uint16_t>::Vector b,
                       Units<std::uint16_t>::Vector* out) {
  out[0] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  out[1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
inline void interleave(Units<std::uint32_t>::Vector a, Units<std::uint32_t>::Vector b,
                       Units<std::uint32_t>::Vector* out) {
  out[0] = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  out[1] = __builtin_shufflevector(a, b, 2, 6, 3, 7);
}

/// Transposes a square: rows[i] points to kCount units, which go to to[j * stride + i].
template <typename Unit>
inline void transpose(const std::byte* const* rows, std::uint64_t offset, std::byte* to,
                      std::uint64_t stride) {
  using Vector = typename Units<Unit>::Vector;
  constexpr int kCount = Units<Unit>::kCount;
  Vector block[kCount];
  for (int i = 0; i < kCount; ++i) {
    std::memcpy(&block[i], rows[i] + offset, sizeof block[i]);
  }
  // Interleaving row i with row i + kCount / 2 moves a bit of the row number into the column
  // number; log2(kCount) times is the transposition.
  for (int round = 1; round < kCount; round *= 2) {
    Vector next[kCount];
    for (int i = 0; i < kCount / 2; ++i) {
      interleave(block[i], block[i + kCount / 2], next + 2 * i);
    }
    std::memcpy(block, next, sizeof block);
  }
  for (int j = 0; j < kCount; ++j) {
    std::memcpy(to + static_cast<std::uint64_t>(j) * stride * sizeof(Unit), &block[j],
                sizeof block[j]);
  }
}

/// Packs a panel whose source rows lie in memory one by one.
/// @param units  Of one row; what lies beyond its last input must not be read.
/// @param rows   Source rows of the panel's columns; null beyond the last output.
template <typename Unit>
void pack_rows(const std::byte* const* rows, std::uint64_t columns, std::uint64_t units,
               std::byte* out) {
  constexpr std::uint64_t kCount = Units<Unit>::kCount;
  constexpr std::uint64_t kLineUnits = kLine / sizeof(Unit);
  static constexpr std::array<std::byte, kLine> kZeros{};
  std::uint64_t k = 0;
  for (; k + kLineUnits <= units; k += kLineUnits) {
    const std::byte* lines[kColumnsMax];
    for (std::uint64_t column = 0; column < columns; ++column) {
      lines[column] = kZeros.data();
      if (rows[column] != nullptr) {
        lines[column] = rows[column] + k * sizeof(Unit);
        // There are as many source rows as columns, too many for the processor to follow.
        __builtin_prefetch(lines[column] + kLine);
      }
    }
    for (std::uint64_t column = 0; column < columns; column += kCount) {
      for (std::uint64_t i = 0; i < kLineUnits; i += kCount) {
        transpose<Unit>(lines + column, i * sizeof(Unit),
                        out + ((k + i) * columns + column) * sizeof(Unit), columns);
      }
    }
  }
  for (; k < units; ++k) {
    for (std::uint64_t column = 0; column < columns; ++column) {
      const std::byte* from =
          rows[column] == nullptr ? kZeros.data() : rows[column] + k * sizeof(Unit);
      std::memcpy(out + (k * columns + column) * sizeof(Unit), from, sizeof(Unit));
    }
  }
}

/// Packs any panel, input by input.
template <typename Element>
void pack_elements(const MatrixSource& source, std::uint64_t first, std::uint64_t present,
                   std::uint64_t input_begin, std::uint64_t inputs, PanelLayout layout,
                   std::byte* out) {
  const std::uint64_t pair = layout.pairs ? 2 : 1;
  for (std::uint64_t k = input_begin; k < inputs; ++k) {
    std::byte* to = out + (k / pair * layout.columns * pair + k % pair) * sizeof(Element);
    for (std::uint64_t column = 0; column < present; ++column) {
      const std::uint64_t row = source.rows.at(first + column);
      const std::uint64_t at = source.transposed ? k * source.tensor_rows + row : row * inputs + k;
      std::memcpy(to + column * pair * sizeof(Element), source.bytes + at * sizeof(Element),
                  sizeof(Element));
    }
  }
}

template <typename Element>
void pack_elements_of_panel(const MatrixSource& source, std::uint64_t outputs, std::uint64_t inputs,
                            PanelLayout layout, std::uint64_t panel, std::byte* out) {
  const std::uint64_t first = panel * layout.columns;
  const std::uint64_t present = std::min(layout.columns, outputs - first);
  std::uint64_t packed = 0;  // Inputs that are there already.
  if (!source.transposed) {
    const std::byte* rows[kColumnsMax] = {};
    for (std::uint64_t column = 0; column < present; ++column) {
      rows[column] = source.bytes + source.rows.at(first + column) * inputs * sizeof(Element);
    }
    if (layout.pairs) {
      packed = inputs / 2 * 2;
      pack_rows<std::uint32_t>(rows, layout.columns, inputs / 2, out);
    } else {
      packed = inputs;
      pack_rows<Element>(rows, layout.columns, inputs, out);
    }
  }
  const std::uint64_t bytes = packed_panel_bytes(inputs, layout, source.type);
  const std::uint64_t packed_bytes = packed * layout.columns * sizeof(Element);
  std::memset(out + packed_bytes, 0, bytes - packed_bytes);
  pack_elements<Element>(source, first, present, packed, inputs, layout, out);
}

/// Decodes a quantised matrix tile by tile and packs the tiles.
template <typename Element>
void pack_quantised_panel(const MatrixSource& source, std::uint64_t outputs, std::uint64_t inputs,
                          PanelLayout layout, std::uint64_t panel, std::byte* out) {
  // A whole number of every layout's units, and small enough for a thread's stack and cache.
  constexpr std::uint64_t kTileInputs = 1024;
  alignas(kLine) std::byte tile[kColumnsMax * kTileInputs * sizeof(Element)];
  const std::uint64_t first = panel * layout.columns;
  const std::uint64_t present = std::min(layout.columns, outputs - first);
  for (std::uint64_t begin = 0; begin < inputs; begin += kTileInputs) {
    const std::uint64_t width = std::min(kTileInputs, inputs - begin);
    for (std::uint64_t column = 0; column < present;) {
      // Rows that follow one another in the tensor are decoded together.
      const std::uint64_t row = source.rows.at(first + column);
      std::uint64_t rows = 1;
      while (column + rows < present && source.rows.at(first + column + rows) == row + rows) {
        ++rows;
      }
      dequantise(*source.quantised, row, rows, begin, begin + width, source.type,
                 tile + column * width * sizeof(Element));
      column += rows;
    }
    const MatrixSource decoded{tile, source.type, {}, false, 0, nullptr, nullptr, 0};
    pack_elements_of_panel<Element>(decoded, present, width, layout, 0,
                                    out + begin * layout.columns * sizeof(Element));
  }
}

}  // namespace

PanelLayout panel_layout(const CpuKernels& kernels, DType type) {
  return {kernels.panel_columns, kernels.bf16_in_pairs && type == DType::bf16};
}

std::uint64_t packed_panel_bytes(std::uint64_t inputs, PanelLayout layout, DType type) {
  const std::uint64_t unit = layout.pairs ? kPairedInputsUnit : 1;
  return (inputs + unit - 1) / unit * unit * layout.columns * dtype_bytes(type);
}

void pack_panel(const MatrixSource& source, std::uint64_t outputs, std::uint64_t inputs,
                PanelLayout layout, std::uint64_t panel, std::byte* packed) {
  LIB_CHECK(layout.columns <= kColumnsMax && layout.columns % 8 == 0);
  std::byte* out = packed + panel * packed_panel_bytes(inputs, layout, source.type);
  if (source.quantised != nullptr) {
    LIB_CHECK(!source.transposed);
    source.type == DType::f32
        ? pack_quantised_panel<std::uint32_t>(source, outputs, inputs, layout, panel, out)
        : pack_quantised_panel<std::uint16_t>(source, outputs, inputs, layout, panel, out);
    return;
  }
  if (source.type == DType::f32) {
    pack_elements_of_panel<std::uint32_t>(source, outputs, inputs, layout, panel, out);
  } else {
    pack_elements_of_panel<std::uint16_t>(source, outputs, inputs, layout, panel, out);
  }
}

}  // namespace librarian::gpu_exec
