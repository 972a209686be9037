// Attention with an online softmax; part of cpu_kernel_bodies.h.
//
// A query row meets the key chunks that hold at least one key it sees, in order; chunks begin at
// multiples of kChunk from the sample's start. In each it takes part with all kChunk keys, those
// it does not see having probability zero. So its arithmetic depends on its position and window
// only, not on the tile it is in.
#include "gpu_exec/cpu_kernel_rows.h"

namespace librarian::gpu_exec {
namespace {

constexpr std::uint64_t kChunk = 64;  // Keys per softmax step.
constexpr std::uint64_t kScoreRows =
    std::uint64_t{4} * kMicroRows;  // Rows whose scores are in cache at once.

struct AttentionScratch {
  float* q;       // [rows, kRowStride]
  float* out;     // [rows, columns]
  float* keys;    // [kChunk / kPanel][head_dim][kPanel]: transposed
  float* values;  // [columns / kPanel][kChunk][kPanel]
  float* scores;  // [kScoreRows, kRowStride]
  float* line;    // [columns + kLanes]: one row being converted
  float* maxima;  // [rows]
  float* sums;    // [rows]
};

struct AttentionShape {
  std::uint64_t rows, columns;
};
constexpr AttentionShape attention_shape(std::uint64_t head_dim, std::uint64_t group) {
  return {round_up(attention_tile_positions(group) * group, 16), round_up(head_dim, kPanel)};
}

std::uint64_t attention_scratch_size(std::uint64_t head_dim, std::uint64_t group) {
  const AttentionShape shape = attention_shape(head_dim, group);
  return shape.rows * (kRowStride + shape.columns + 2) + kChunk * (head_dim + shape.columns) +
         kScoreRows * kRowStride + shape.columns + kLanes;
}

inline AttentionScratch split_attention_scratch(float* scratch, std::uint64_t head_dim,
                                                std::uint64_t group) {
  const AttentionShape shape = attention_shape(head_dim, group);
  AttentionScratch s{};
  s.q = scratch;
  s.out = s.q + shape.rows * kRowStride;
  s.keys = s.out + shape.rows * shape.columns;
  s.values = s.keys + kChunk * head_dim;
  s.scores = s.values + kChunk * shape.columns;
  s.line = s.scores + kScoreRows * kRowStride;
  s.maxima = s.line + shape.columns + kLanes;
  s.sums = s.maxima + shape.rows;
  return s;
}

/// Keys [begin, begin + count) as columns; columns beyond `count` are zero.
template <typename Storage>
inline void load_keys(const AttentionTile& tile, std::uint64_t begin, std::uint64_t count,
                      const AttentionScratch& s) {
  for (std::uint64_t j = 0; j < kChunk; ++j) {
    float* column = s.keys + (j / kPanel) * tile.head_dim * kPanel + j % kPanel;
    if (j < count) {
      widen_row<Storage>(tile.k + (begin + j) * tile.kv_stride * Storage::kBytes, tile.head_dim,
                         s.line);
      for (std::uint64_t d = 0; d < tile.head_dim; ++d) {
        column[d * kPanel] = s.line[d];
      }
    } else {
      for (std::uint64_t d = 0; d < tile.head_dim; ++d) {
        column[d * kPanel] = 0;
      }
    }
  }
}

/// Values as rows of panels, zero beyond `count` and beyond head_dim.
/// @return  Whether all are finite: then a probability of zero cancels any of them.
template <typename Storage>
inline bool load_values(const AttentionTile& tile, std::uint64_t begin, std::uint64_t count,
                        const AttentionScratch& s) {
  const std::uint64_t columns = round_up(tile.head_dim, kPanel);
  Vec poison(0.0F);  // x - x is zero for finite x and NaN otherwise; NaN stays in a sum.
  for (std::uint64_t d = 0; d < columns; ++d) {
    s.line[d] = 0;
  }
  for (std::uint64_t j = 0; j < kChunk; ++j) {
    if (j < count) {
      widen_row<Storage>(tile.v + (begin + j) * tile.kv_stride * Storage::kBytes, tile.head_dim,
                         s.line);
    } else if (j == count) {
      for (std::uint64_t d = 0; d < columns; ++d) {
        s.line[d] = 0;
      }
    }
    for (std::uint64_t d = 0; d < columns; d += kLanes) {
      const Vec value = load_f32(s.line + d);
      poison = poison + (value - value);
      store_f32(value, s.values + ((d / kPanel) * kChunk + j) * kPanel + d % kPanel);
    }
  }
  return lane_sum(poison) == 0.0F;
}

/// Scores of one row and chunk into probabilities; `lo` to `hi` are the keys it sees.
inline void softmax_row(float* score, std::uint64_t lo, std::uint64_t hi, float scale, float* out,
                        std::uint64_t columns, float* maximum_so_far, float* sum_so_far) {
  const float minus_infinity = -__builtin_inff();
  Vec top(minus_infinity);
  for (std::uint64_t j = 0; j < kChunk; j += kLanes) {
    store_f32(load_f32(score + j) * Vec(scale), score + j);
  }
  for (std::uint64_t j = 0; j < lo; ++j) {
    score[j] = minus_infinity;
  }
  for (std::uint64_t j = hi; j < kChunk; ++j) {
    score[j] = minus_infinity;
  }
  for (std::uint64_t j = 0; j < kChunk; j += kLanes) {
    top = maximum(top, load_f32(score + j));
  }
  alignas(64) float lane[kLanes];
  store_f32(top, lane);
  float now = *maximum_so_far;
  for (const float value : lane) {
    now = value > now ? value : now;
  }
  Vec total(0.0F);
  for (std::uint64_t j = 0; j < kChunk; j += kLanes) {
    const Vec p = exp_of(load_f32(score + j) - Vec(now));
    total = total + p;
    store_f32(p, score + j);
  }
  alignas(64) float shrink[kLanes];
  store_f32(exp_of(Vec(*maximum_so_far) - Vec(now)), shrink);
  *sum_so_far = *sum_so_far * shrink[0] + lane_sum(total);
  *maximum_so_far = now;
  if (shrink[0] != 1.0F) {  // Times one changes nothing.
    for (std::uint64_t d = 0; d < columns; d += kLanes) {
      store_f32(load_f32(out + d) * Vec(shrink[0]), out + d);
    }
  }
}

/// Keys of the chunk at `begin` that the query at `position` sees, relative to `begin`.
struct Visible {
  std::uint64_t lo, hi;
};
inline Visible visible_keys(std::uint64_t position, std::uint64_t window, std::uint64_t begin) {
  const std::uint64_t first = window != 0 && position + 1 > window ? position + 1 - window : 0;
  return {first > begin ? first - begin : 0, smaller(kChunk, position + 1 - begin)};
}

/// Rows [row_begin, row_end), at most kScoreRows, against the loaded chunk.
inline void attend_rows(const AttentionTile& tile, const AttentionScratch& s,
                        std::uint64_t row_begin, std::uint64_t row_end, std::uint64_t chunk_begin,
                        bool finite) {
  const std::uint64_t rows = row_end - row_begin;
  const std::uint64_t columns = round_up(tile.head_dim, kPanel);
  for (std::uint64_t j = 0; j < kChunk; j += kPanel) {
    multiply_rows(rows, s.q + row_begin * kRowStride, s.keys + j * tile.head_dim, tile.head_dim,
                  s.scores + j, kRowStride, false);
  }
  for (std::uint64_t r = 0; r < rows; ++r) {
    const std::uint64_t row = row_begin + r;
    const Visible see =
        visible_keys(tile.position_begin + row / tile.group, tile.window, chunk_begin);
    softmax_row(s.scores + r * kRowStride, see.lo, see.hi, tile.scale, s.out + row * columns,
                columns, s.maxima + row, s.sums + row);
    if (!finite) {  // Zero times infinity is NaN: leave out what the row does not see.
      for (std::uint64_t d = 0; d < columns; d += kPanel) {
        multiply_rows(1, s.scores + r * kRowStride + see.lo,
                      s.values + d * kChunk + see.lo * kPanel, see.hi - see.lo,
                      s.out + row * columns + d, columns, true);
      }
    }
  }
  for (std::uint64_t d = 0; finite && d < columns; d += kPanel) {
    multiply_rows(rows, s.scores, s.values + d * kChunk, kChunk, s.out + row_begin * columns + d,
                  columns, true);
  }
}

template <typename Storage>
void attend(const AttentionTile& tile) {
  const AttentionScratch s = split_attention_scratch(tile.scratch, tile.head_dim, tile.group);
  const std::uint64_t columns = round_up(tile.head_dim, kPanel);
  const std::uint64_t begin = tile.position_begin;
  const std::uint64_t end = tile.position_end;
  const std::uint64_t rows = (end - begin) * tile.group;
  const auto q_at = [&](std::uint64_t row) {
    return tile.q + ((row / tile.group) * tile.q_stride + (row % tile.group) * tile.head_dim) *
                        Storage::kBytes;
  };
  for (std::uint64_t row = 0; row < rows; ++row) {
    widen_row<Storage>(q_at(row), tile.head_dim, s.q + row * kRowStride);
    s.maxima[row] = -__builtin_inff();
    s.sums[row] = 0;
    for (std::uint64_t d = 0; d < columns; d += kLanes) {
      store_f32(Vec(0.0F), s.out + row * columns + d);
    }
  }
  const std::uint64_t first_key =
      tile.window != 0 && begin + 1 > tile.window ? begin + 1 - tile.window : 0;
  for (std::uint64_t chunk = first_key / kChunk * kChunk; chunk < end; chunk += kChunk) {
    const std::uint64_t count = smaller(kChunk, end - chunk);
    load_keys<Storage>(tile, chunk, count, s);
    const bool finite = load_values<Storage>(tile, chunk, count, s);
    // Only queries that see a key of this chunk take part.
    const std::uint64_t from = larger(begin, chunk);
    const std::uint64_t to =
        tile.window == 0 ? end : smaller(end, chunk + kChunk - 1 + tile.window);
    for (std::uint64_t row = (from - begin) * tile.group; row < (to - begin) * tile.group;
         row += kScoreRows) {
      attend_rows(tile, s, row, smaller(row + kScoreRows, (to - begin) * tile.group), chunk,
                  finite);
    }
  }
  for (std::uint64_t row = 0; row < rows; ++row) {
    float* out = s.out + row * columns;
    for (std::uint64_t d = 0; d < columns; d += kLanes) {
      // Adding zero makes -0 into +0: its sign could come from keys that the row does not see.
      store_f32(load_f32(out + d) / Vec(s.sums[row]) + Vec(0.0F), out + d);
    }
    narrow_row<Storage>(out, tile.head_dim, q_at(row));
  }
}

void attention_tile(const AttentionTile& tile) {
  with_storage(tile.dtype, [&](auto storage) { attend<decltype(storage)>(tile); });
}

}  // namespace
}  // namespace librarian::gpu_exec
