// Matrix products; part of cpu_kernel_bodies.h.
//
// Order of arithmetic of one output, the same whatever tile it is in: for each run of kDepth
// inputs a sum from zero, one multiply_add per input in order; these sums added in order to an
// f32 accumulator; then the bias, then the activation, then one rounding.
//
// A task sums a tile of about 200 x 512 outputs. For each run of inputs it widens its rows once
// (they stay in L2), then takes the panels of weights one after the other: widened, a panel's run
// stays in L1 while all rows meet it. Nothing in that comes from L3 unasked: while the product
// runs, the next panel and the next run of rows are fetched into L2.
#include "gpu_exec/cpu_kernel_finish.h"

namespace librarian::gpu_exec {
namespace {

constexpr std::uint64_t kPanel = 2 * kLanes;  // Columns of the micro kernel.
// Inputs per sum, even: a widened panel and the rows that meet it fit in an L1 of 32 KiB or more.
constexpr std::uint64_t kDepth = 192;
constexpr std::uint64_t kTileRows = (std::uint64_t{224} / kMicroRows) * kMicroRows;
constexpr std::uint64_t kTileColumns = 512;  // Of both matrices together.
constexpr std::uint64_t kTileColumnsMin = 64;
constexpr std::uint64_t kCacheLine = 64;

/// What a product fetches into L2 as it runs: every kAheadInputs inputs two lines at `weights`,
/// which moves on by `weights_step` bytes, and one at `x`, which moves on by `x_step`.
struct Ahead {
  const std::byte* weights;
  const std::byte* x;
  std::uint64_t weights_step, x_step;
};
constexpr std::uint64_t kAheadInputs = 16;

/// Lines that are there already.
inline Ahead nothing_ahead(const float* near) {
  const auto* at = reinterpret_cast<const std::byte*>(near);
  return {at, at, 0, 0};
}

/// c[R, kPanel] = a^T * b[depth, kPanel], or added to c; a[depth, kMicroRows], R columns of it.
template <int R>
void micro_kernel(const float* a, const float* b, std::uint64_t depth, float* c, bool add,
                  Ahead ahead) {
  Vec sum[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    sum[r][0] = Vec(0.0F);
    sum[r][1] = Vec(0.0F);
  }
  // The same pointer, which the compiler is not to know.
  const float* again = a;
  asm("" : "+r"(again));
  for (std::uint64_t k = 0; k < depth;) {
    __builtin_prefetch(ahead.weights, 0, 2);
    __builtin_prefetch(ahead.weights + kCacheLine, 0, 2);
    __builtin_prefetch(ahead.x, 0, 2);
    ahead.weights += ahead.weights_step;
    ahead.x += ahead.x_step;
    const float* c_ahead = c + smaller(k / kAheadInputs, R - 1) * kPanel;
    __builtin_prefetch(c_ahead, 1);
    __builtin_prefetch(c_ahead + kLanes, 1);
    const std::uint64_t end = smaller(k + kAheadInputs, depth);
#pragma GCC unroll 1
    for (; k < end; ++k) {
      const Vec b0 = load_f32(b);
      const Vec b1 = load_f32(b + kLanes);
      b += kPanel;
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Vec x0 = Vec(a[r]);
        const Vec x1 = r < kRowsReadTwice ? Vec(again[r]) : x0;
        sum[r][0] = multiply_add(x0, b0, sum[r][0]);
        sum[r][1] = multiply_add(x1, b1, sum[r][1]);
      }
      a += kMicroRows;
      again += kMicroRows;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    float* row = c + static_cast<std::uint64_t>(r) * kPanel;
    if (add) {
      sum[r][0] = load_f32(row) + sum[r][0];
      sum[r][1] = load_f32(row + kLanes) + sum[r][1];
    }
    store_f32(sum[r][0], row);
    store_f32(sum[r][1], row + kLanes);
  }
}

/// All rows of `a`, as widen_rows() left them; the last group's rows that are not there are zeros.
/// @param ahead  Called once for each group.
template <typename AheadOf>
inline void multiply_rows(std::uint64_t rows, const float* a, const float* b, std::uint64_t depth,
                          float* c, bool add, AheadOf ahead) {
  for (std::uint64_t r = 0; r < rows; r += kMicroRows) {
    const float* group = a + r * depth;
    float* sums = c + r * kPanel;
    if (rows - r > kMicroRows / 2) {
      micro_kernel<kMicroRows>(group, b, depth, sums, add, ahead());
    } else {
      micro_kernel<kMicroRows / 2>(group, b, depth, sums, add, ahead());
    }
  }
}

/// Widens `rows` rows of `x` for multiply_rows(): [row / kMicroRows][depth][kMicroRows].
template <typename Storage>
inline void widen_rows(const std::byte* x, std::uint64_t row_bytes, std::uint64_t rows,
                       std::uint64_t depth, float* a) {
  static_assert(kMicroRows <= kLanes);
  for (std::uint64_t group = 0; group < rows; group += kMicroRows) {
    const std::uint64_t present = smaller(kMicroRows, rows - group);
    for (std::uint64_t k = 0; k < depth; k += kLanes) {
      const std::uint64_t count = smaller(kLanes, depth - k);
      const std::byte* from = x + group * row_bytes + k * Storage::kBytes;
      Vec block[kLanes];
      if (present == kMicroRows && count == kLanes) {
#pragma GCC unroll 16
        for (std::uint64_t r = 0; r < kMicroRows; ++r) {
          block[r] = Storage::load(from + r * row_bytes);
        }
      } else {
        for (std::uint64_t r = 0; r < present; ++r) {
          block[r] = count == kLanes ? Storage::load(from + r * row_bytes)
                                     : load_part<Storage>(from + r * row_bytes, count);
        }
      }
      for (std::uint64_t r = present; r < kLanes; ++r) {
        block[r] = Vec(0.0F);
      }
      transpose(block);
      for (std::uint64_t i = 0; i < count; ++i) {
        store_f32(block[i], a);  // What it writes too far is written over by the next.
        a += kMicroRows;
      }
    }
  }
}

/// Scratch of one linear task.
struct LinearScratch {
  float* a;  // [kTileRows / kMicroRows][kDepth][kMicroRows], and what widen_rows() writes too far
  float* b;  // [kDepth, kPanel]
  float* c;  // [kTileColumns / kPanel][rows][kPanel], rows to the next multiple of kMicroRows

  static std::uint64_t panel_floats(std::uint64_t rows) {
    return round_up(rows, kMicroRows) * kPanel;
  }
};
constexpr std::uint64_t kLinearScratchFloats =
    kTileRows * kDepth + kLanes + kDepth * kPanel + kTileRows * kTileColumns;

inline LinearScratch split_linear_scratch(float* scratch) {
  float* b = scratch + kTileRows * kDepth + kLanes;
  return {scratch, b, b + kDepth * kPanel};
}

/// The panels of a tile's weights in the order of their products: a gated pair one after the other.
struct TilePanels {
  explicit TilePanels(const LinearTile& linear)
      : tile(linear),
        matrices(linear.glu ? 2 : 1),
        count(round_up(linear.column_end - linear.column_begin, kPanel) / kPanel * matrices) {}

  const WeightView& matrix(std::uint64_t panel) const { return tile.matrices[panel % matrices]; }
  /// First output, counted from the tile's.
  std::uint64_t column(std::uint64_t panel) const { return panel / matrices * kPanel; }
  /// Bytes of one input.
  std::uint64_t input_bytes(std::uint64_t panel) const {
    return kPanel * (matrix(panel).type == DType::f32 ? 4 : 2);
  }
  /// Where input `k`, an even one, lies.
  const std::byte* at(std::uint64_t panel, std::uint64_t k) const {
    const WeightView& weights = matrix(panel);
    const bool paired = Bf16::kPaired && weights.type == DType::bf16;
    const std::uint64_t inputs = paired ? round_up(tile.inputs, kPairedInputsUnit) : tile.inputs;
    const std::uint64_t index = (tile.column_begin + column(panel)) / kPanel;
    return weights.packed + (index * inputs + k) * input_bytes(panel);
  }

  const LinearTile& tile;
  const std::uint64_t matrices, count;
};

/// Widens `depth` inputs of a panel into b[depth, kPanel].
template <typename Weight>
inline void widen_panel(const std::byte* packed, std::uint64_t depth, float* b) {
  if constexpr (Weight::kPaired) {
    for (std::uint64_t k = 0; k < depth; k += 2) {
      for (std::uint64_t half = 0; half < kPanel; half += kLanes) {
        const auto pair = Weight::load_pairs(packed + (k * kPanel + 2 * half) * Weight::kBytes);
        store_f32(pair.even, b + k * kPanel + half);
        store_f32(pair.odd, b + (k + 1) * kPanel + half);
      }
    }
  } else {
    widen_row<Weight>(packed, depth * kPanel, b);
  }
}

/// One run of a tile's inputs.
struct Run {
  std::uint64_t begin, depth;
  const std::byte* next_x;  // Where the run after it begins in the tile's first row; null: nowhere.
};

/// Adds a run's product with one panel to the accumulators; its rows are in scratch.a already.
template <typename Storage>
inline void multiply_weights(const TilePanels& panels, std::uint64_t panel, const Run& run,
                             const LinearScratch& scratch, std::uint64_t& next_row) {
  const LinearTile& tile = panels.tile;
  const std::uint64_t rows = tile.row_end - tile.row_begin;
  const std::byte* packed = panels.at(panel, run.begin);
  const float* b = scratch.b;
  with_storage(panels.matrix(panel).type, [&](auto weight) {
    using Weight = decltype(weight);
    if constexpr (Weight::kBytes == sizeof(float)) {
      b = reinterpret_cast<const float*>(packed);  // Panels begin at multiples of 32 bytes.
    } else {
      widen_panel<Weight>(packed, run.depth, scratch.b);
    }
  });
  // What comes next: the next panel, or the first one's next run. All of it over the calls for
  // this panel, as far as two lines at a time go.
  const bool last = panel + 1 == panels.count;
  const std::byte* next = last ? panels.at(0, run.begin) + run.depth * panels.input_bytes(0)
                               : panels.at(panel + 1, run.begin);
  const std::uint64_t next_bytes = run.depth * panels.input_bytes(last ? 0 : panel + 1);
  const std::uint64_t calls = (rows + kMicroRows - 1) / kMicroRows;
  const std::uint64_t steps = (run.depth + kAheadInputs - 1) / kAheadInputs;
  const std::uint64_t step = smaller(2 * kCacheLine, next_bytes / (calls * steps) + 1);
  const auto ahead = [&] {
    Ahead lines = nothing_ahead(scratch.b);
    if (!last || run.next_x != nullptr) {
      lines.weights = next;
      lines.weights_step = step;
      next += step * steps;
    }
    if (run.next_x != nullptr && next_row < rows) {
      lines.x = run.next_x + next_row * tile.inputs * Storage::kBytes;
      lines.x_step = kAheadInputs * Storage::kBytes;
      ++next_row;
    }
    return lines;
  };
  multiply_rows(rows, scratch.a, b, run.depth, scratch.c + panel * scratch.panel_floats(rows),
                run.begin > 0, ahead);
}

/// Writes the outputs of a panel, or of the gated pair that ends with it.
/// @param first, second  [rows, kPanel] sums of the pair; the same if there is no pair.
template <typename Storage>
inline void finish_panel(const TilePanels& panels, std::uint64_t panel, const float* first,
                         const float* second) {
  constexpr std::uint64_t kAheadRows = 16;
  const LinearTile& tile = panels.tile;
  const std::uint64_t rows = tile.row_end - tile.row_begin;
  const std::uint64_t column = tile.column_begin + panels.column(panel);
  const std::uint64_t count = smaller(kPanel, tile.column_end - column);
  const std::uint64_t row_bytes = tile.y_stride * Storage::kBytes;
  std::byte* y = tile.y + tile.row_begin * row_bytes + column * Storage::kBytes;
  for (std::uint64_t r = 0; r < rows; ++r) {
    const std::byte* ahead = y + smaller(kAheadRows, rows - 1 - r) * row_bytes;
    __builtin_prefetch(ahead, 1);
    __builtin_prefetch(ahead + (count - 1) * Storage::kBytes, 1);
    finish_columns<Storage>(tile, column, count, first + r * kPanel, second + r * kPanel, y);
    y += row_bytes;
  }
}

/// As finish_panel(), in the type that the tile asks for.
template <typename Storage>
inline void finish_sums(const TilePanels& panels, std::uint64_t panel, const float* first,
                        const float* second) {
  if (panels.tile.y_f32) {
    finish_panel<F32>(panels, panel, first, second);
  } else {
    finish_panel<Storage>(panels, panel, first, second);
  }
}

template <typename Storage>
void linear_rows(const LinearTile& tile) {
  const LinearScratch scratch = split_linear_scratch(tile.scratch);
  const TilePanels panels(tile);
  const std::uint64_t rows = tile.row_end - tile.row_begin;
  const std::byte* x = tile.x + tile.row_begin * tile.inputs * Storage::kBytes;
  for (std::uint64_t k = 0; k < tile.inputs; k += kDepth) {
    const std::uint64_t depth = smaller(kDepth, tile.inputs - k);
    widen_rows<Storage>(x + k * Storage::kBytes, tile.inputs * Storage::kBytes, rows, depth,
                        scratch.a);
    const bool last = k + depth == tile.inputs;
    const Run run{k, depth, last ? nullptr : x + (k + depth) * Storage::kBytes};
    std::uint64_t next_row = 0;
    for (std::uint64_t panel = 0; panel < panels.count; ++panel) {
      multiply_weights<Storage>(panels, panel, run, scratch, next_row);
      if (last && (panel + 1) % panels.matrices == 0) {
        const std::uint64_t floats = scratch.panel_floats(rows);
        const float* sums = scratch.c + panel * floats;
        finish_sums<Storage>(panels, panel, sums - (panels.matrices - 1) * floats, sums);
      }
    }
  }
}

inline void linear_tile(const LinearTile& tile) {
  with_storage(tile.dtype, [&](auto storage) { linear_rows<decltype(storage)>(tile); });
}

inline LinearShape linear_shape(const LinearTile& whole) {
  return {kTileRows, kMicroRows, whole.glu ? kTileColumns / 2 : kTileColumns, kTileColumnsMin};
}

}  // namespace
}  // namespace librarian::gpu_exec
