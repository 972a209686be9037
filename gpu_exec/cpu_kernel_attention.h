// Attention with an online softmax; part of cpu_kernel_bodies.h.
//
// Queries are lanes: kQueries rows side by side make a panel, and every step is the same
// instruction for all of them. Scores are keys * queries^T and the output is values^T *
// probabilities, so that keys and values are read as they lie, and the softmax runs down the
// lanes. Panels hold the rows of all query heads that share the keys.
//
// A row meets the key chunks that hold a key it sees, in order; chunks begin at multiples of
// kChunk from the sample's start. In each it adds its keys one by one to a sum from zero, and the
// sum to its output. Keys that only its neighbours see have probability zero: adding them changes
// nothing but the sign of a zero, which the end takes away. So its arithmetic depends on its
// position and on what it sees, not on the tile or the lane it is in.
#include <utility>

#include "gpu_exec/cpu_kernel_rows.h"

namespace librarian::gpu_exec {
namespace {

constexpr std::uint64_t kQueries = 2 * kLanes;
constexpr std::uint64_t kChunk = 128 / kMicroRows * kMicroRows;  // Keys per softmax step.
// Distance of key and value rows in scratch: kHeadDimMax and one more cache line, so that
// consecutive rows use different sets.
constexpr std::uint64_t kKeyStride = 256 + 16;
constexpr float kLowest = -3.40282346638528860e+38F;
constexpr double kLog2E = 1.4426950408889634;

constexpr std::uint64_t divide_up(std::uint64_t value, std::uint64_t unit) {
  return (value + unit - 1) / unit;
}

struct AttentionScratch {
  float* q;       // [panels][depth][kQueries], depth = round_up(head_dim, kLanes)
  float* out;     // The same for value_dim.
  float* maxima;  // [panels][kQueries]
  float* sums;    // [panels][kQueries]
  float* keys;    // [kChunk][kKeyStride]
  float* values;  // [kChunk][kKeyStride]
  float* scores;  // [kChunk][kQueries]
};

std::uint64_t attention_scratch_size(std::uint64_t head_dim, std::uint64_t group) {
  const std::uint64_t rows = round_up(attention_tile_positions(group) * group, kQueries);
  return rows * 2 * (round_up(head_dim, kLanes) + 1) + kChunk * (2 * kKeyStride + kQueries);
}

inline AttentionScratch split_attention_scratch(const AttentionTile& tile) {
  const std::uint64_t rows = round_up(attention_tile_positions(tile.group) * tile.group, kQueries);
  AttentionScratch s{};
  s.q = tile.scratch;
  s.out = s.q + rows * round_up(tile.head_dim, kLanes);
  s.maxima = s.out + rows * round_up(tile.value_dim, kLanes);
  s.sums = s.maxima + rows;
  s.keys = s.sums + rows;
  s.values = s.keys + kChunk * kKeyStride;
  s.scores = s.values + kChunk * kKeyStride;
  return s;
}

/// Keys [lo, hi) of the sample.
struct KeyRange {
  std::uint64_t lo, hi;
};

/// What the query at `position` sees; both ends grow with the position.
inline KeyRange visible_keys(const AttentionTile& tile, std::uint64_t position) {
  KeyRange see{0, tile.causal || tile.window != 0 ? position + 1 : tile.rows};
  if (tile.window != 0 && position + 1 > tile.window) {
    see.lo = position + 1 - tile.window;
  }
  if (tile.chunk != 0) {
    const std::uint64_t begin = position / tile.chunk * tile.chunk;
    see = {larger(see.lo, begin), smaller(see.hi, begin + tile.chunk)};
  }
  return see;
}

/// The part of a range in the chunk at `begin`, relative to it.
inline KeyRange in_chunk(KeyRange see, std::uint64_t begin) {
  const auto clip = [&](std::uint64_t key) {
    return key < begin ? 0 : smaller(key - begin, kChunk);
  };
  return {clip(see.lo), clip(see.hi)};
}

/// Rows of `a` times a panel `b` [depth][kQueries] into rows of `c`.
/// kValues false: c = a * b, a[r] at r * kKeyStride. True: c = c * shrink + a^T * b, where a[r]
/// is column r.
template <int R, bool kValues>
void panel_kernel(const float* a, const float* b, std::uint64_t depth, const Vec* shrink,
                  float* c) {
  constexpr std::uint64_t kRow = kValues ? 1 : kKeyStride;
  constexpr std::uint64_t kStep = kValues ? kKeyStride : 1;
  Vec sum[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    sum[r][0] = Vec(0.0F);
    sum[r][1] = Vec(0.0F);
  }
  for (std::uint64_t k = 0; k < depth; ++k) {
    const Vec b0 = load_f32(b);
    const Vec b1 = load_f32(b + kLanes);
    b += kQueries;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec x = Vec(a[static_cast<std::uint64_t>(r) * kRow]);
      sum[r][0] = multiply_add(x, b0, sum[r][0]);
      sum[r][1] = multiply_add(x, b1, sum[r][1]);
    }
    a += kStep;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    float* row = c + static_cast<std::uint64_t>(r) * kQueries;
    if constexpr (kValues) {
      sum[r][0] = multiply_add(load_f32(row), shrink[0], sum[r][0]);
      sum[r][1] = multiply_add(load_f32(row + kLanes), shrink[1], sum[r][1]);
    }
    store_f32(sum[r][0], row);
    store_f32(sum[r][1], row + kLanes);
  }
}

template <int R, bool kValues>
inline void panel_kernel_of(std::uint64_t rows, const float* a, const float* b, std::uint64_t depth,
                            const Vec* shrink, float* c) {
  if (rows == R) {
    return panel_kernel<R, kValues>(a, b, depth, shrink, c);
  }
  if constexpr (R > 1) {
    panel_kernel_of<R - 1, kValues>(rows, a, b, depth, shrink, c);
  }
}

/// The same for any number of rows, in blocks of nearly equal size: a small last one is slow.
template <bool kValues>
inline void multiply_panel(std::uint64_t rows, const float* a, const float* b, std::uint64_t depth,
                           const Vec* shrink, float* c) {
  std::uint64_t left = divide_up(rows, kMicroRows);
  while (rows > 0) {
    const std::uint64_t block = divide_up(rows, left);
    panel_kernel_of<kMicroRows, kValues>(block, a, b, depth, shrink, c);
    a += block * (kValues ? 1 : kKeyStride);
    c += block * kQueries;
    rows -= block;
    --left;
  }
}

/// The rows of one panel of a tile.
struct Panel {
  std::uint64_t row_begin, row_end;  // Rows: position, then head of the group.
  float* q;                          // [depth][kQueries], as `out`
  float* out;
  float* maxima;  // [kQueries], in units of log2
  float* sums;
};

inline Panel panel_at(const AttentionTile& tile, const AttentionScratch& s, std::uint64_t begin) {
  const std::uint64_t rows = (tile.position_end - tile.position_begin) * tile.group;
  return {begin,
          smaller(begin + kQueries, rows),
          s.q + begin * round_up(tile.head_dim, kLanes),
          s.out + begin * round_up(tile.value_dim, kLanes),
          s.maxima + begin,
          s.sums + begin};
}

/// Calls function(lane, position, head of the group) for the rows of a panel.
template <typename Function>
inline void for_each_row(const AttentionTile& tile, const Panel& panel, Function function) {
  std::uint64_t position = tile.position_begin + panel.row_begin / tile.group;
  std::uint64_t head = panel.row_begin % tile.group;
  for (std::uint64_t row = panel.row_begin; row < panel.row_end; ++row) {
    function(row - panel.row_begin, position, head);
    if (++head == tile.group) {
      head = 0;
      ++position;
    }
  }
}

/// Queries into lanes, times what makes scores of them; lanes without a row are zero.
template <typename Storage>
inline void load_panel(const AttentionTile& tile, const Panel& panel) {
  const std::byte* rows[kQueries] = {};
  for (std::uint64_t i = 0; i < kQueries; ++i) {
    panel.maxima[i] = kLowest;
    panel.sums[i] = 0;
  }
  for_each_row(tile, panel, [&](std::uint64_t lane, std::uint64_t position, std::uint64_t head) {
    rows[lane] =
        tile.q +
        ((position - tile.position_begin) * tile.q_stride + head * tile.head_dim) * Storage::kBytes;
    if (tile.sinks != nullptr) {
      // Relative to the row's own position, as the slopes' distances are.
      const double shift = tile.slopes == nullptr ? 0.0
                                                  : static_cast<double>(tile.slopes[head]) *
                                                        static_cast<double>(position);
      const auto sink = static_cast<float>((tile.sinks[head] - shift) * kLog2E);
      panel.maxima[lane] = sink < kLowest ? kLowest : sink;  // Any score makes that nothing.
      panel.sums[lane] = 1;
    }
  });
  const Vec factor(static_cast<float>(
      tile.softcap != 0 ? static_cast<double>(tile.scale) / static_cast<double>(tile.softcap)
                        : static_cast<double>(tile.scale) * kLog2E));
  for (std::uint64_t d = 0; d < tile.head_dim; d += kLanes) {
    for (std::uint64_t half = 0; half < kQueries; half += kLanes) {
      Vec block[kLanes];
      for (std::uint64_t i = 0; i < kLanes; ++i) {
        const std::byte* row = rows[half + i];
        if (row == nullptr) {
          block[i] = Vec(0.0F);
        } else if (d + kLanes <= tile.head_dim) {
          block[i] = Storage::load(row + d * Storage::kBytes);
        } else {
          block[i] = load_part<Storage>(row + d * Storage::kBytes, tile.head_dim - d);
        }
      }
      transpose(block);
      for (std::uint64_t i = 0; i < kLanes; ++i) {
        store_f32(block[i] * factor, panel.q + (d + i) * kQueries + half);
      }
    }
  }
  const std::uint64_t out_floats = round_up(tile.value_dim, kLanes) * kQueries;
  for (std::uint64_t i = 0; i < out_floats; i += kLanes) {
    store_f32(Vec(0.0F), panel.out + i);
  }
}

/// Output = sum of probabilities times values / sum of probabilities, back into rows.
template <typename Storage>
inline void store_panel(const AttentionTile& tile, const Panel& panel) {
  std::byte* rows[kQueries] = {};
  for_each_row(tile, panel, [&](std::uint64_t lane, std::uint64_t position, std::uint64_t head) {
    rows[lane] =
        tile.y + ((position - tile.position_begin) * tile.y_stride + head * tile.value_dim) *
                     Storage::kBytes;
  });
  const Vec infinity(__builtin_inff());
  for (std::uint64_t half = 0; half < kQueries; half += kLanes) {
    const Vec inverse = Vec(1.0F) / load_f32(panel.sums + half);
    for (std::uint64_t d = 0; d < tile.value_dim; d += kLanes) {
      Vec block[kLanes];
      for (std::uint64_t i = 0; i < kLanes; ++i) {
        // Adding zero makes -0 into +0, and there is one NaN: a zero's sign, or which of several
        // NaNs survived, could come from keys that the row does not see.
        const Vec x =
            multiply_add(load_f32(panel.out + (d + i) * kQueries + half), inverse, Vec(0.0F));
        const Vec top = choose_less(Vec(-kLowest), x, infinity, Vec(__builtin_nanf("")));
        block[i] = choose_less(x, infinity, x, top);
      }
      transpose(block);
      for (std::uint64_t i = 0; i < kLanes && rows[half + i] != nullptr; ++i) {
        std::byte* to = rows[half + i] + d * Storage::kBytes;
        if (d + kLanes <= tile.value_dim) {
          Storage::store(block[i], to);
        } else {
          store_part<Storage>(block[i], to, tile.value_dim - d);
        }
      }
    }
  }
}

/// Widens `count` elements as widen_row does.
/// @return  Zero in every lane if all are finite, else NaN somewhere.
template <typename Storage>
inline Vec widen_and_check(const std::byte* from, std::uint64_t count, float* to) {
  Vec poison(0.0F);  // x - x is zero for finite x and NaN otherwise; NaN stays in a sum.
  std::uint64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vec x = Storage::load(from + i * Storage::kBytes);
    poison = poison + (x - x);
    store_f32(x, to + i);
  }
  if (i < count) {
    const Vec x = load_part<Storage>(from + i * Storage::kBytes, count - i);
    poison = poison + (x - x);
    store_f32(x, to + i);
  }
  return poison;
}

/// The last part of keys [begin, end), which heads share. Apart from load_chunk, which is faster
/// with one kind of row for keys.
template <typename Storage>
__attribute__((noinline)) void load_shared(const AttentionTile& tile, const AttentionScratch& s,
                                           std::uint64_t chunk, std::uint64_t begin,
                                           std::uint64_t end) {
  for (std::uint64_t j = begin; j < end; ++j) {
    widen_row<Storage>(tile.k_shared + j * tile.shared_dim * Storage::kBytes, tile.shared_dim,
                       s.keys + (j - chunk) * kKeyStride + tile.head_dim - tile.shared_dim);
  }
}

/// Widens keys and values [begin, end) to rows `begin - chunk` and on.
/// @return  Whether all values are finite: then a probability of zero cancels any of them.
template <typename Storage>
inline bool load_chunk(const AttentionTile& tile, const AttentionScratch& s, std::uint64_t chunk,
                       std::uint64_t begin, std::uint64_t end) {
  Vec poison(0.0F);
  const std::uint64_t own_dim = tile.head_dim - tile.shared_dim;
  for (std::uint64_t j = begin; j < end; ++j) {
    widen_row<Storage>(tile.k + j * tile.k_stride * Storage::kBytes, own_dim,
                       s.keys + (j - chunk) * kKeyStride);
    poison = poison + widen_and_check<Storage>(tile.v + j * tile.v_stride * Storage::kBytes,
                                               tile.value_dim, s.values + (j - chunk) * kKeyStride);
  }
  if (tile.shared_dim != 0) {
    load_shared<Storage>(tile, s, chunk, begin, end);
  }
  return lane_sum(poison) == 0.0F;
}

/// Asks for the keys and values [begin, end) that load_chunk will want, some time before; not for
/// what heads share, which stays in a near cache.
inline void prefetch_chunk(const AttentionTile& tile, std::uint64_t element_bytes,
                           std::uint64_t begin, std::uint64_t end) {
  constexpr std::uint64_t kLineBytes = 64;
  const std::uint64_t k_bytes = (tile.head_dim - tile.shared_dim) * element_bytes;
  const std::uint64_t v_bytes = tile.value_dim * element_bytes;
  for (std::uint64_t j = begin; j < end; ++j) {
    const std::byte* const key = tile.k + j * tile.k_stride * element_bytes;
    const std::byte* const value = tile.v + j * tile.v_stride * element_bytes;
    std::uint64_t at = 0;
    for (; at < k_bytes && at < v_bytes; at += kLineBytes) {
      __builtin_prefetch(key + at, 0, 2);
      __builtin_prefetch(value + at, 0, 2);
    }
    for (; at < larger(k_bytes, v_bytes); at += kLineBytes) {
      __builtin_prefetch((k_bytes > v_bytes ? key : value) + at, 0, 2);
    }
  }
}

/// Caps scores and adds the slopes' part, for keys [begin, end) of the chunk.
inline void adjust_scores(const AttentionTile& tile, const Panel& panel, float* scores,
                          std::uint64_t chunk, std::uint64_t begin, std::uint64_t end) {
  alignas(64) float slope[kQueries] = {};
  alignas(64) float distance[kQueries] = {};  // From the row's position to the chunk's begin.
  if (tile.slopes != nullptr) {
    for_each_row(tile, panel, [&](std::uint64_t lane, std::uint64_t position, std::uint64_t head) {
      slope[lane] = static_cast<float>(static_cast<double>(tile.slopes[head]) * kLog2E);
      distance[lane] =
          static_cast<float>(static_cast<double>(chunk) - static_cast<double>(position));
    });
  }
  const Vec cap(static_cast<float>(static_cast<double>(tile.softcap) * kLog2E));
  for (std::uint64_t j = begin; j < end; ++j) {
    for (std::uint64_t half = 0; half < kQueries; half += kLanes) {
      float* at = scores + j * kQueries + half;
      Vec x = load_f32(at);
      if (tile.softcap != 0) {
        x = tanh_of(x) * cap;
      }
      if (tile.slopes != nullptr) {
        const Vec away = load_f32(distance + half) + Vec(static_cast<float>(j));
        x = multiply_add(load_f32(slope + half), away, x);
      }
      store_f32(x, at);
    }
  }
}

/// The keys of the chunk that each lane sees, as numbers to compare with.
struct LaneRanges {
  alignas(64) float lo[kQueries];
  alignas(64) float hi[kQueries];
};
inline LaneRanges lane_ranges(const AttentionTile& tile, const Panel& panel, std::uint64_t chunk) {
  LaneRanges ranges{};
  for_each_row(tile, panel, [&](std::uint64_t lane, std::uint64_t position, std::uint64_t) {
    const KeyRange see = in_chunk(visible_keys(tile, position), chunk);
    ranges.lo[lane] = static_cast<float>(see.lo);
    ranges.hi[lane] = static_cast<float>(see.hi);
  });
  return ranges;
}

/// `yes` in lanes that see key j, `no` in the others.
inline Vec choose_seen(const LaneRanges& ranges, std::uint64_t half, std::uint64_t j, Vec yes,
                       Vec no) {
  const Vec key(static_cast<float>(j));
  return choose_less(key, load_f32(ranges.lo + half), no,
                     choose_less(key, load_f32(ranges.hi + half), yes, no));
}

inline void hide_scores(const LaneRanges& ranges, float* scores, std::uint64_t begin,
                        std::uint64_t end) {
  for (std::uint64_t j = begin; j < end; ++j) {
    for (std::uint64_t half = 0; half < kQueries; half += kLanes) {
      float* at = scores + j * kQueries + half;
      store_f32(choose_seen(ranges, half, j, load_f32(at), Vec(-__builtin_inff())), at);
    }
  }
}

/// Scores of keys [begin, end) into probabilities relative to the new maximum.
/// @param shrink  What the sums so far are worth relative to it.
inline void softmax_panel(const Panel& panel, float* scores, std::uint64_t begin, std::uint64_t end,
                          Vec (&shrink)[2]) {
  const Vec before[2] = {load_f32(panel.maxima), load_f32(panel.maxima + kLanes)};
  Vec top[2] = {before[0], before[1]};
  for (std::uint64_t j = begin; j < end; ++j) {
    const float* at = scores + j * kQueries;
    top[0] = maximum(top[0], load_f32(at));
    top[1] = maximum(top[1], load_f32(at + kLanes));
  }
  Vec total[2] = {Vec(0.0F), Vec(0.0F)};
  for (std::uint64_t j = begin; j < end; ++j) {
    float* at = scores + j * kQueries;
    const Vec p0 = exp2_of(load_f32(at) - top[0]);
    const Vec p1 = exp2_of(load_f32(at + kLanes) - top[1]);
    total[0] = total[0] + p0;
    total[1] = total[1] + p1;
    store_f32(p0, at);
    store_f32(p1, at + kLanes);
  }
  for (std::uint64_t i = 0; i < 2; ++i) {
    shrink[i] = exp2_of(before[i] - top[i]);
    float* sum = panel.sums + i * kLanes;
    store_f32(multiply_add(load_f32(sum), shrink[i], total[i]), sum);
    store_f32(top[i], panel.maxima + i * kLanes);
  }
}

/// As multiply_panel<true>, with no product of a value that a lane does not see: zero times
/// infinity is NaN.
inline void multiply_seen(const AttentionTile& tile, const Panel& panel, const AttentionScratch& s,
                          const LaneRanges& ranges, std::uint64_t begin, std::uint64_t end,
                          const Vec* shrink) {
  for (std::uint64_t d = 0; d < tile.value_dim; ++d) {
    for (std::uint64_t half = 0; half < kQueries; half += kLanes) {
      Vec sum(0.0F);
      for (std::uint64_t j = begin; j < end; ++j) {
        const Vec added = multiply_add(Vec(s.values[j * kKeyStride + d]),
                                       load_f32(s.scores + j * kQueries + half), sum);
        sum = choose_seen(ranges, half, j, added, sum);
      }
      float* out = panel.out + d * kQueries + half;
      store_f32(multiply_add(load_f32(out), shrink[half / kLanes], sum), out);
    }
  }
}

/// One panel against the loaded chunk.
inline void attend_panel(const AttentionTile& tile, const AttentionScratch& s, const Panel& panel,
                         std::uint64_t chunk, bool finite) {
  const KeyRange first =
      in_chunk(visible_keys(tile, tile.position_begin + panel.row_begin / tile.group), chunk);
  const KeyRange last =
      in_chunk(visible_keys(tile, tile.position_begin + (panel.row_end - 1) / tile.group), chunk);
  // Some row sees keys [first.lo, last.hi), and every row [last.lo, first.hi).
  const std::uint64_t begin = first.lo;
  const std::uint64_t end = last.hi;
  if (begin >= end) {
    return;
  }
  multiply_panel<false>(end - begin, s.keys + begin * kKeyStride, panel.q, tile.head_dim, nullptr,
                        s.scores + begin * kQueries);
  if (tile.softcap != 0 || tile.slopes != nullptr) {
    adjust_scores(tile, panel, s.scores, chunk, begin, end);
  }
  const bool all_seen = last.lo <= begin && first.hi >= end;
  LaneRanges ranges;
  if (!all_seen) {
    ranges = lane_ranges(tile, panel, chunk);
    const std::uint64_t middle = smaller(last.lo, end);
    hide_scores(ranges, s.scores, begin, middle);
    hide_scores(ranges, s.scores, larger(middle, first.hi), end);
  }
  Vec shrink[2];
  softmax_panel(panel, s.scores, begin, end, shrink);
  if (finite || all_seen) {
    multiply_panel<true>(tile.value_dim, s.values + begin * kKeyStride, s.scores + begin * kQueries,
                         end - begin, shrink, panel.out);
  } else {
    multiply_seen(tile, panel, s, ranges, begin, end, shrink);
  }
}

template <typename Storage>
void attend(const AttentionTile& tile) {
  const AttentionScratch s = split_attention_scratch(tile);
  const std::uint64_t rows = (tile.position_end - tile.position_begin) * tile.group;
  const std::uint64_t key_begin = visible_keys(tile, tile.position_begin).lo;
  const std::uint64_t key_end = visible_keys(tile, tile.position_end - 1).hi;
  prefetch_chunk(tile, Storage::kBytes, key_begin, smaller(key_end, key_begin + kChunk));
  for (std::uint64_t row = 0; row < rows; row += kQueries) {
    load_panel<Storage>(tile, panel_at(tile, s, row));
  }
  for (std::uint64_t chunk = key_begin / kChunk * kChunk; chunk < key_end; chunk += kChunk) {
    const bool finite = load_chunk<Storage>(tile, s, chunk, larger(chunk, key_begin),
                                            smaller(chunk + kChunk, key_end));
    // Rows are far apart, where the processor does not foresee them: ask for some with each panel.
    const std::uint64_t step = divide_up(kChunk * kQueries, rows);
    std::uint64_t ahead = chunk + kChunk;
    for (std::uint64_t row = 0; row < rows; row += kQueries) {
      prefetch_chunk(tile, Storage::kBytes, ahead, smaller(ahead + step, key_end));
      ahead += step;
      attend_panel(tile, s, panel_at(tile, s, row), chunk, finite);
    }
  }
  for (std::uint64_t row = 0; row < rows; row += kQueries) {
    store_panel<Storage>(tile, panel_at(tile, s, row));
  }
}

void attention_tile(const AttentionTile& tile) {
  with_storage(tile.dtype, [&](auto storage) { attend<decltype(storage)>(tile); });
}

}  // namespace
}  // namespace librarian::gpu_exec
