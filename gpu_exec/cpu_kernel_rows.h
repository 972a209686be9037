// Norm, rotation and residual addition; part of cpu_kernel_bodies.h.
#include "gpu_exec/cpu_kernel_gemm.h"

namespace librarian::gpu_exec {
namespace {

/// Sum of the lanes by halves: a fixed order.
inline float lane_sum(Vec value) {
  alignas(64) float lane[kLanes];
  store_f32(value, lane);
  for (std::uint64_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::uint64_t i = 0; i < half; ++i) {
      lane[i] += lane[i + half];
    }
  }
  return lane[0];
}

/// Rows that norms read: x, or x + addend.
template <typename Storage>
struct NormInput {
  const std::byte* x;
  const std::byte* addend;  // Or null.
  std::uint64_t width;

  /// Elements from `i` on; lanes beyond the row are `fill`.
  Vec load(std::uint64_t i, float fill) const {
    const std::uint64_t at = i * Storage::kBytes;
    if (i + kLanes <= width) {
      const Vec value = Storage::load(x + at);
      return addend == nullptr ? value : value + Storage::load(addend + at);
    }
    Vec value = load_part<Storage>(x + at, width - i);
    if (addend != nullptr) {
      value = value + load_part<Storage>(addend + at, width - i);
    }
    alignas(64) float lane[kLanes];
    store_f32(value, lane);
    for (std::uint64_t j = width - i; j < kLanes; ++j) {
      lane[j] = fill;
    }
    return load_f32(lane);
  }
};

/// Adds up term(value, sum) over the row in an order that depends on its width only. Lanes beyond
/// the row are `fill`, for which term() must add nothing.
template <typename Storage, typename Term>
inline float sum_over_row(const NormInput<Storage>& in, float fill, const Term& term) {
  Vec sum[4] = {Vec(0.0F), Vec(0.0F), Vec(0.0F), Vec(0.0F)};
  std::uint64_t i = 0;
  for (; i + 4 * kLanes <= in.width; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (std::uint64_t j = 0; j < 4; ++j) {
      sum[j] = term(in.load(i + j * kLanes, fill), sum[j]);
    }
  }
  for (; i < in.width; i += kLanes) {
    sum[0] = term(in.load(i, fill), sum[0]);
  }
  return lane_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <typename Storage>
inline float mean_of_row(const NormInput<Storage>& in) {
  const float sum = sum_over_row(in, 0.0F, [](Vec x, Vec total) { return total + x; });
  return sum / static_cast<float>(in.width);
}

/// `in` may lie where `y` does: each vector is read before it is written, and the last, partial
/// one is written alone.
template <typename Storage>
inline void norm_row(const NormInput<Storage>& in, NormKind kind, const float* weight,
                     const float* bias, float epsilon, std::byte* y) {
  const float mean = kind == NormKind::layer ? mean_of_row(in) : 0.0F;
  const Vec centre(mean);
  const float squares = sum_over_row(
      in, mean, [centre](Vec x, Vec total) { return multiply_add(x - centre, x - centre, total); });
  const Vec inverse(inverse_rms(squares, in.width, epsilon));
  for (std::uint64_t i = 0; i < in.width; i += kLanes) {
    const std::uint64_t count = smaller(kLanes, in.width - i);
    const auto vector_at = [&](const float* from) {
      return count == kLanes ? load_f32(from + i)
                             : load_part<F32>(reinterpret_cast<const std::byte*>(from + i), count);
    };
    Vec value = normalised(in.load(i, 0.0F), centre, inverse, vector_at(weight));
    if (bias != nullptr) {
      value = value + vector_at(bias);
    }
    if (count == kLanes) {
      Storage::store(value, y + i * Storage::kBytes);
    } else {
      store_part<Storage>(value, y + i * Storage::kBytes, count);
    }
  }
}

void norm_tile(const NormTile& tile) {
  with_storage(tile.dtype, [&](auto storage) {
    using Storage = decltype(storage);
    for (std::uint64_t r = 0; r < tile.rows; ++r) {
      const std::uint64_t at = r * tile.width * Storage::kBytes;
      const NormInput<Storage> in{tile.x + at, tile.addend == nullptr ? nullptr : tile.addend + at,
                                  tile.width};
      norm_row(in, tile.kind, tile.weight, tile.bias, tile.epsilon, tile.y + at);
    }
  });
}

constexpr std::uint64_t kHeadFloats = 256 + 2 * kLanes;  // kHeadDimMax and room to overrun.

/// out = the head `in` (from where it turns) turned. Whole vectors are written, so each part runs
/// over into the next, which is written after it; both arrays have kHeadFloats.
inline void turn_head(const float* in, std::uint64_t head_dim, std::uint64_t rotary_dim,
                      const float* table, float* out) {
  const std::uint64_t half = rotary_dim / 2;
  for (std::uint64_t i = 0; i < half; i += kLanes) {
    store_f32(rope_low(load_f32(in + i), load_f32(in + half + i), load_f32(table + i),
                       load_f32(table + half + i)),
              out + i);
  }
  for (std::uint64_t i = 0; i < half; i += kLanes) {
    store_f32(rope_high(load_f32(in + i), load_f32(in + half + i), load_f32(table + i),
                        load_f32(table + half + i)),
              out + half + i);
  }
  for (std::uint64_t i = rotary_dim; i < head_dim; i += kLanes) {
    store_f32(load_f32(in + i), out + i);
  }
}

/// The same for pairs: neighbours turn together.
inline void turn_pairs(const float* in, std::uint64_t head_dim, std::uint64_t rotary_dim,
                       const float* table, float* out) {
  const std::uint64_t half = rotary_dim / 2;
  for (std::uint64_t i = 0; i < half; ++i) {
    const float even = in[2 * i];
    const float odd = in[2 * i + 1];
    out[2 * i] = rope_low(even, odd, table[i], table[half + i]);
    out[2 * i + 1] = rope_high(even, odd, table[i], table[half + i]);
  }
  for (std::uint64_t i = rotary_dim; i < head_dim; ++i) {
    out[i] = in[i];
  }
}

/// out = the head `in` with the dimensions that turn turned.
inline void turn(const RotateTile& tile, const float* in, const float* table, float* out) {
  for (std::uint64_t i = 0; i < tile.rotary_begin; i += kLanes) {
    store_f32(load_f32(in + i), out + i);
  }
  const std::uint64_t rest = tile.head_dim - tile.rotary_begin;
  in += tile.rotary_begin;
  out += tile.rotary_begin;
  if (tile.style == RopeStyle::halves) {
    turn_head(in, rest, tile.rotary_dim, table, out);
  } else {
    turn_pairs(in, rest, tile.rotary_dim, table, out);
  }
}

/// out = the head `in` normalised.
inline void norm_head(const RotateTile& tile, std::uint64_t head, const float* in, float* out) {
  norm_row(NormInput<F32>{reinterpret_cast<const std::byte*>(in), nullptr, tile.head_dim},
           tile.norm, tile.norm_weight + head * tile.norm_weight_stride, nullptr, tile.epsilon,
           reinterpret_cast<std::byte*>(out));
}

template <typename Storage>
void rotate_rows(const RotateTile& tile) {
  const bool before = tile.norm_weight != nullptr && !tile.norm_after;
  const bool after = tile.norm_weight != nullptr && tile.norm_after;
  alignas(64) float head[kHeadFloats] = {};
  alignas(64) float normed[kHeadFloats] = {};
  alignas(64) float turned[kHeadFloats];
  for (std::uint64_t r = 0; r < tile.rows; ++r) {
    const float* table = tile.table + r * tile.rotary_dim;
    for (std::uint64_t h = 0; h < tile.heads; ++h) {
      std::byte* x = tile.x + (r * tile.heads + h) * tile.head_dim * Storage::kBytes;
      widen_row<Storage>(x, tile.head_dim, head);
      if (before) {
        norm_head(tile, h, head, normed);
      }
      turn(tile, before ? normed : head, table, turned);
      if (after) {
        norm_head(tile, h, turned, turned);
      }
      if (tile.temperatures != nullptr) {
        for (std::uint64_t i = 0; i < tile.head_dim; i += kLanes) {
          store_f32(load_f32(turned + i) * Vec(tile.temperatures[r]), turned + i);
        }
      }
      narrow_row<Storage>(turned, tile.head_dim, x);
    }
  }
}

void rotate_tile(const RotateTile& tile) {
  with_storage(tile.dtype, [&](auto storage) { rotate_rows<decltype(storage)>(tile); });
}

template <typename Storage>
void add_rows(const AddTile& tile) {
  const Vec scale(tile.scale);
  for (std::uint64_t i = 0; i < tile.count; i += kLanes) {
    const std::uint64_t count = smaller(kLanes, tile.count - i);
    const std::uint64_t at = i * Storage::kBytes;
    const auto load = [&](const std::byte* from) {
      return count == kLanes ? Storage::load(from + at) : load_part<Storage>(from + at, count);
    };
    Vec change = load(tile.y);
    if (tile.z != nullptr) {
      change = change + load(tile.z);
    }
    const Vec sum = load(tile.x) + change * scale;
    if (count == kLanes) {
      Storage::store(sum, tile.x + at);
    } else {
      store_part<Storage>(sum, tile.x + at, count);
    }
  }
}

void add_tile(const AddTile& tile) {
  with_storage(tile.dtype, [&](auto storage) { add_rows<decltype(storage)>(tile); });
}

}  // namespace
}  // namespace librarian::gpu_exec
