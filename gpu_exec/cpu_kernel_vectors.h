// What all kernels share on top of a path's vector type; part of cpu_kernel_bodies.h, which
// kernels_<path>.cc includes after it has defined kLanes, kMicroRows, Vec with its primitives, and
// load and store per storage type; see cpu_kernels.h. Like every cpu_kernel_*.h body it has no
// include guard on purpose: one inclusion per file.

#include <utility>

namespace librarian::gpu_exec {
namespace {

constexpr std::uint64_t smaller(std::uint64_t a, std::uint64_t b) { return a < b ? a : b; }
constexpr std::uint64_t larger(std::uint64_t a, std::uint64_t b) { return a > b ? a : b; }
constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

/// Reads `count` < kLanes elements, the rest as zeros.
template <typename Storage>
inline Vec load_part(const std::byte* from, std::uint64_t count) {
  alignas(64) std::byte buffer[kLanes * sizeof(float)] = {};
  __builtin_memcpy(buffer, from, count * Storage::kBytes);
  return Storage::load(buffer);
}
template <typename Storage>
inline void store_part(Vec value, std::byte* to, std::uint64_t count) {
  alignas(64) std::byte buffer[kLanes * sizeof(float)];
  Storage::store(value, buffer);
  __builtin_memcpy(to, buffer, count * Storage::kBytes);
}
inline Vec load_f32(const float* from) {
  return F32::load(reinterpret_cast<const std::byte*>(from));
}
inline void store_f32(Vec value, float* to) { F32::store(value, reinterpret_cast<std::byte*>(to)); }

/// Calls function(storage tag) for `type`.
template <typename Function>
inline void with_storage(DType type, Function function) {
  switch (type) {
    case DType::bf16:
      return function(Bf16());
    case DType::f16:
      return function(F16());
    case DType::f32:
      return function(F32());
  }
}

/// Widens `count` elements into `to`, and zeros up to the next multiple of kLanes.
template <typename Storage>
inline void widen_row(const std::byte* from, std::uint64_t count, float* to) {
  std::uint64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store_f32(Storage::load(from + i * Storage::kBytes), to + i);
  }
  if (i < count) {
    store_f32(load_part<Storage>(from + i * Storage::kBytes, count - i), to + i);
  }
}
template <typename Storage>
inline void narrow_row(const float* from, std::uint64_t count, std::byte* to) {
  std::uint64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Storage::store(load_f32(from + i), to + i * Storage::kBytes);
  }
  if (i < count) {
    store_part<Storage>(load_f32(from + i), to + i * Storage::kBytes, count - i);
  }
}

/// Half the lanes of a, then of b, alternating.
template <std::size_t... I>
inline Vec interleave_low(Vec a, Vec b, std::index_sequence<I...> /*lanes*/) {
  return Vec(__builtin_shufflevector(a.v, b.v, (I % 2 * kLanes + I / 2)...));
}
template <std::size_t... I>
inline Vec interleave_high(Vec a, Vec b, std::index_sequence<I...> /*lanes*/) {
  return Vec(__builtin_shufflevector(a.v, b.v, (I % 2 * kLanes + I / 2 + kLanes / 2)...));
}

/// Rows become columns. Each step moves one bit of the row's number into the lane's number.
inline void transpose(Vec (&rows)[kLanes]) {
  constexpr std::make_index_sequence<kLanes> kAll;
#pragma GCC unroll 4
  for (std::uint64_t step = 1; step < kLanes; step *= 2) {
    Vec next[kLanes];
#pragma GCC unroll 8
    for (std::uint64_t i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = interleave_low(rows[i], rows[i + kLanes / 2], kAll);
      next[2 * i + 1] = interleave_high(rows[i], rows[i + kLanes / 2], kAll);
    }
#pragma GCC unroll 16
    for (std::uint64_t i = 0; i < kLanes; ++i) {
      rows[i] = next[i];
    }
  }
}

}  // namespace
}  // namespace librarian::gpu_exec
