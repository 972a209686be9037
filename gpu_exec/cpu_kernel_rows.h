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

/// Sum of squares in an order that depends on `width` only.
template <typename Storage>
inline float sum_of_squares(const std::byte* x, std::uint64_t width) {
  Vec sum[4] = {Vec(0.0F), Vec(0.0F), Vec(0.0F), Vec(0.0F)};
  std::uint64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (std::uint64_t j = 0; j < 4; ++j) {
      const Vec value = Storage::load(x + (i + j * kLanes) * Storage::kBytes);
      sum[j] = multiply_add(value, value, sum[j]);
    }
  }
  for (; i < width; i += kLanes) {
    const std::byte* from = x + i * Storage::kBytes;
    const Vec value =
        i + kLanes <= width ? Storage::load(from) : load_part<Storage>(from, width - i);
    sum[0] = multiply_add(value, value, sum[0]);
  }
  return lane_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <typename Storage>
inline void norm_row(const std::byte* x, const float* weight, std::uint64_t width, float epsilon,
                     std::byte* y) {
  const Vec inverse(inverse_rms(sum_of_squares<Storage>(x, width), width, epsilon));
  std::uint64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const Vec value = Storage::load(x + i * Storage::kBytes);
    Storage::store(normalised(value, inverse, load_f32(weight + i)), y + i * Storage::kBytes);
  }
  if (i < width) {
    const Vec value = load_part<Storage>(x + i * Storage::kBytes, width - i);
    const Vec factor = load_part<F32>(reinterpret_cast<const std::byte*>(weight + i), width - i);
    store_part<Storage>(normalised(value, inverse, factor), y + i * Storage::kBytes, width - i);
  }
}

void rms_norm_tile(const NormTile& tile) {
  with_storage(tile.dtype, [&](auto storage) {
    using Storage = decltype(storage);
    for (std::uint64_t r = 0; r < tile.rows; ++r) {
      const std::uint64_t at = r * tile.width * Storage::kBytes;
      norm_row<Storage>(tile.x + at, tile.weight, tile.width, tile.epsilon, tile.y + at);
    }
  });
}

constexpr std::uint64_t kHeadFloats = 256 + 2 * kLanes;  // kHeadDimMax and room to overrun.

/// out = the head `in` turned. Whole vectors are written, so each part runs over into the next,
/// which is written after it; both arrays have kHeadFloats.
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

template <typename Storage>
void rotate_rows(const RotateTile& tile) {
  alignas(64) float head[kHeadFloats] = {};
  alignas(64) float normed[kHeadFloats] = {};
  alignas(64) float turned[kHeadFloats];
  for (std::uint64_t r = 0; r < tile.rows; ++r) {
    for (std::uint64_t h = 0; h < tile.heads; ++h) {
      std::byte* x = tile.x + (r * tile.heads + h) * tile.head_dim * Storage::kBytes;
      widen_row<Storage>(x, tile.head_dim, head);
      const float* values = head;
      if (tile.norm_weight != nullptr) {
        norm_row<F32>(reinterpret_cast<const std::byte*>(head), tile.norm_weight, tile.head_dim,
                      tile.epsilon, reinterpret_cast<std::byte*>(normed));
        values = normed;
      }
      turn_head(values, tile.head_dim, tile.rotary_dim, tile.table + r * tile.rotary_dim, turned);
      narrow_row<Storage>(turned, tile.head_dim, x);
    }
  }
}

void rotate_tile(const RotateTile& tile) {
  with_storage(tile.dtype, [&](auto storage) { rotate_rows<decltype(storage)>(tile); });
}

void add_elements(std::byte* x, const std::byte* y, DType dtype, std::uint64_t count) {
  with_storage(dtype, [&](auto storage) {
    using Storage = decltype(storage);
    std::uint64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      std::byte* at = x + i * Storage::kBytes;
      Storage::store(Storage::load(at) + Storage::load(y + i * Storage::kBytes), at);
    }
    if (i < count) {
      std::byte* at = x + i * Storage::kBytes;
      store_part<Storage>(load_part<Storage>(at, count - i) +
                              load_part<Storage>(y + i * Storage::kBytes, count - i),
                          at, count - i);
    }
  });
}

}  // namespace
}  // namespace librarian::gpu_exec
