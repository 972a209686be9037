// Products of bf16 rows with bf16 weights in AMX tiles; included by kernels_amx.cc, and by the test
// that emulates the instructions, after they have defined Tiles and a path with bf16 in pairs and
// kLanes = 16. No include guard on purpose.
//
// Tiles is the instruction set: eight registers of 16 rows of 64 bytes.
//   configure(), release()        around all others, on the same thread
//   zero<T>()
//   load<T>(from, stride)         rows are `stride` bytes apart
//   store<T>(to, stride)
//   dot<C, A, B>()                TDPBF16PS: c[m][n] += sum over i < 32 of a[m][i] * b[i / 2][n][i
//   % 2]
//
// Order of arithmetic of one output, the same whatever tile it is in: for each run of 32 inputs,
// padded with zeros, the sum of those at even places and the sum of those at odd places, each from
// zero in order; the two added, then added to an f32 accumulator, in order; then as in
// cpu_kernel_finish.h. Subnormal numbers count as zero up to the accumulator.
//
// A task packs its rows once, as tiles that stay in L2 (1 MiB at most), and sweeps the panels of
// weights; of a panel, kStripe inputs at a time stay in L1 while all rows meet them, and the next
// ones are fetched. Only products over more inputs than kSlice need accumulators for all columns.
#include "gpu_exec/cpu_kernel_gemm.h"

namespace librarian::gpu_exec {
namespace {

constexpr std::uint64_t kTileSide = 16;             // Rows of a tile, and its columns in f32.
constexpr std::uint64_t kStep = kPairedInputsUnit;  // Inputs of one tile.
constexpr std::uint64_t kTileBytes = 1024;
constexpr std::uint64_t kAmxRows = 256;
constexpr std::uint64_t kSlice = 2048;
constexpr std::uint64_t kStripe = 512;
constexpr std::uint64_t kAmxColumns = 2048;
constexpr std::uint64_t kAmxSlicedColumns = 1024;
constexpr std::uint64_t kAmxColumnsMin = 256;  // Below, packing the rows would count.
constexpr std::uint64_t kAmxScratchFloats = kAmxRows * kSlice / 2 + kAmxRows * kAmxSlicedColumns;
static_assert(kPanel == 2 * kTileSide && Bf16::kPaired);

/// Inputs [begin, begin + steps * kStep) of the product, zeros beyond the last one.
struct Slice {
  std::uint64_t begin, steps;
};

/// Packs the tile's rows as A tiles: [row / 16][step][16][kStep], zeros beyond the last row.
inline void pack_tiles(const LinearTile& tile, const Slice& slice, std::byte* to) {
  const std::uint64_t rows = tile.row_end - tile.row_begin;
  const std::uint64_t line = kStep * Bf16::kBytes;
  const std::uint64_t present = smaller(slice.steps * kStep, tile.inputs - slice.begin);
  for (std::uint64_t r = 0; r < round_up(rows, kTileSide); ++r) {
    std::byte* out = to + (r / kTileSide * slice.steps * kTileSide + r % kTileSide) * line;
    const std::byte* x = tile.x + ((tile.row_begin + r) * tile.inputs + slice.begin) * Bf16::kBytes;
    std::uint64_t step = 0;
    for (; r < rows && (step + 1) * kStep <= present; ++step) {
      __builtin_memcpy(out + step * kTileBytes, x + step * line, line);
    }
    for (; step < slice.steps; ++step) {
      __builtin_memset(out + step * kTileBytes, 0, line);
      if (r < rows && step * kStep < present) {
        __builtin_memcpy(out + step * kTileBytes, x + step * line,
                         (present - step * kStep) * Bf16::kBytes);
      }
    }
  }
}

/// c[16 * RowTiles, kPanel] = a * b, or added to c.
/// @param a       A tiles of the stripe; those of the next 16 rows are `a_stride` bytes on.
/// @param ahead   Weights to fetch into L2, `lines` cache lines per step.
template <int RowTiles>
inline void multiply_tiles(const std::byte* a, std::uint64_t a_stride, const std::byte* b,
                           std::uint64_t steps, float* c, bool add, const std::byte* ahead,
                           std::uint64_t lines) {
  constexpr std::uint64_t kBRow = kPanel * 2 * Bf16::kBytes;
  constexpr std::uint64_t kCRow = kPanel * sizeof(float);
  float* below = c + kTileSide * kPanel;
  if (add) {
    Tiles::load<0>(c, kCRow);
    Tiles::load<1>(c + kTileSide, kCRow);
    if constexpr (RowTiles == 2) {
      Tiles::load<2>(below, kCRow);
      Tiles::load<3>(below + kTileSide, kCRow);
    }
  } else {
    Tiles::zero<0>();
    Tiles::zero<1>();
    if constexpr (RowTiles == 2) {
      Tiles::zero<2>();
      Tiles::zero<3>();
    }
  }
  for (std::uint64_t step = 0; step < steps; ++step) {
    Tiles::load<4>(a, kTileBytes / kTileSide);
    Tiles::load<6>(b, kBRow);
    Tiles::load<7>(b + kBRow / 2, kBRow);
    if constexpr (RowTiles == 2) {
      Tiles::load<5>(a + a_stride, kTileBytes / kTileSide);
    }
    Tiles::dot<0, 4, 6>();
    Tiles::dot<1, 4, 7>();
    if constexpr (RowTiles == 2) {
      Tiles::dot<2, 5, 6>();
      Tiles::dot<3, 5, 7>();
    }
    for (std::uint64_t line = 0; line < lines; ++line) {
      __builtin_prefetch(ahead, 0, 2);
      ahead += kCacheLine;
    }
    a += kTileBytes;
    b += 2 * kTileBytes;
  }
  Tiles::store<0>(c, kCRow);
  Tiles::store<1>(c + kTileSide, kCRow);
  if constexpr (RowTiles == 2) {
    Tiles::store<2>(below, kCRow);
    Tiles::store<3>(below + kTileSide, kCRow);
  }
}

/// All rows against the stripes of one panel's slice.
/// @param a     As pack_tiles() left it.
/// @param next  The weights that come after this panel's slice, or null.
inline void multiply_slice(std::uint64_t rows, const Slice& slice, const std::byte* a,
                           const std::byte* b, float* c, const std::byte* next) {
  constexpr std::uint64_t kStripeSteps = kStripe / kStep;
  constexpr std::uint64_t kGroup = 2 * kTileSide;
  const std::uint64_t a_stride = slice.steps * kTileBytes;
  for (std::uint64_t first = 0; first < slice.steps; first += kStripeSteps) {
    const std::uint64_t steps = smaller(kStripeSteps, slice.steps - first);
    const std::byte* stripe = b + first * 2 * kTileBytes;
    const bool add = slice.begin + first > 0;
    // The stripe after this one, a share in each group of rows.
    const std::byte* ahead = first + steps < slice.steps ? stripe + steps * 2 * kTileBytes : next;
    const std::uint64_t groups = round_up(rows, kGroup) / kGroup;
    const std::uint64_t stripe_lines = 2 * kTileBytes / kCacheLine;  // Of one step.
    const std::uint64_t lines =
        ahead == nullptr ? 0 : smaller(8, (stripe_lines + groups - 1) / groups);
    for (std::uint64_t r = 0; r < rows; r += kGroup) {
      const std::byte* from = a + r / kTileSide * a_stride + first * kTileBytes;
      if (r + kTileSide < rows) {
        multiply_tiles<2>(from, a_stride, stripe, steps, c + r * kPanel, add, ahead, lines);
      } else {
        multiply_tiles<1>(from, a_stride, stripe, steps, c + r * kPanel, add, ahead, lines);
      }
      ahead += steps * lines * kCacheLine;
    }
  }
}

inline bool takes_tiles(const LinearTile& tile) {
  return tile.dtype == DType::bf16 && tile.matrices[0].type == DType::bf16 &&
         (!tile.glu || tile.matrices[1].type == DType::bf16);
}

inline std::uint64_t slice_count(std::uint64_t inputs) {
  return (round_up(inputs, kStep) + kSlice - 1) / kSlice;
}

inline LinearShape amx_shape(const LinearTile& whole) {
  const std::uint64_t columns = slice_count(whole.inputs) == 1 ? kAmxColumns : kAmxSlicedColumns;
  const std::uint64_t matrices = whole.glu ? 2 : 1;
  return {kAmxRows, 2 * kTileSide, columns / matrices, kAmxColumnsMin / matrices};
}

/// LinearTile in tiles; only if takes_tiles().
inline void multiply_in_tiles(const LinearTile& tile) {
  const TilePanels panels(tile);
  const std::uint64_t rows = tile.row_end - tile.row_begin;
  const std::uint64_t slices = slice_count(tile.inputs);
  const std::uint64_t all_steps = round_up(tile.inputs, kStep) / kStep;
  const std::uint64_t panel_floats = round_up(rows, kTileSide) * kPanel;
  auto* a = reinterpret_cast<std::byte*>(tile.scratch);
  float* c = tile.scratch + kAmxRows * kSlice / 2;
  Tiles::configure();
  for (std::uint64_t i = 0; i < slices; ++i) {
    const std::uint64_t first = all_steps * i / slices;
    const Slice slice{first * kStep, all_steps * (i + 1) / slices - first};
    const bool last = i + 1 == slices;
    pack_tiles(tile, slice, a);
    for (std::uint64_t panel = 0; panel < panels.count; ++panel) {
      // Without a second slice the sums of a panel are finished at once.
      float* sums = c + (slices == 1 ? panel % panels.matrices : panel) * panel_floats;
      const std::byte* next =
          panel + 1 < panels.count ? panels.at(panel + 1, slice.begin) : nullptr;
      multiply_slice(rows, slice, a, panels.at(panel, slice.begin), sums, next);
      if (last && (panel + 1) % panels.matrices == 0) {
        finish_sums<Bf16>(panels, panel, sums - (panels.matrices - 1) * panel_floats, sums);
      }
    }
  }
  Tiles::release();
}

/// As CpuKernels::peak for bf16: products of tiles that stay where they are.
inline std::uint64_t peak_of_tiles(std::uint64_t rounds, float* sink) {
  alignas(64) std::uint16_t one[kTileBytes / 2];
  for (std::uint16_t& value : one) {
    value = 0x3C00;  // 2^-7.
  }
  Tiles::configure();
  Tiles::zero<0>();
  Tiles::zero<1>();
  Tiles::zero<2>();
  Tiles::zero<3>();
  Tiles::load<4>(one, 64);
  Tiles::load<5>(one, 64);
  Tiles::load<6>(one, 64);
  Tiles::load<7>(one, 64);
  for (std::uint64_t i = 0; i < rounds; ++i) {
    Tiles::dot<0, 4, 6>();
    Tiles::dot<1, 4, 7>();
    Tiles::dot<2, 5, 6>();
    Tiles::dot<3, 5, 7>();
  }
  alignas(64) float sums[kTileBytes / 4];
  Tiles::store<0>(sums, 64);
  Tiles::release();
  sink[0] = sums[0];
  return rounds * 4 * kTileSide * kTileSide * kStep * 2;
}

}  // namespace
}  // namespace librarian::gpu_exec
