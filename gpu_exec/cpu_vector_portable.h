// Vectors of kLanes floats, a power of two, through the compiler's extension, and their primitives;
// see cpu_kernels.h. Whoever includes it defines kLanes and kBf16InPairs before. No include guard
// on purpose.
#include "gpu_exec/cpu_kernels.h"
#include "gpu_exec/row_functors.h"

namespace librarian::gpu_exec {
namespace {

using Floats = float __attribute__((vector_size(4 * kLanes)));
using Ints = std::uint32_t __attribute__((vector_size(4 * kLanes)));
using Halves = std::uint16_t __attribute__((vector_size(2 * kLanes)));

struct Vec {
  Floats v;
  Vec() = default;
  explicit Vec(float value) : v(value - Floats{}) {}
  explicit Vec(Floats value) : v(value) {}
};

inline Vec operator+(Vec a, Vec b) { return Vec(a.v + b.v); }
inline Vec operator-(Vec a, Vec b) { return Vec(a.v - b.v); }
inline Vec operator*(Vec a, Vec b) { return Vec(a.v * b.v); }
inline Vec operator/(Vec a, Vec b) { return Vec(a.v / b.v); }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return Vec(a.v * b.v + c.v); }
inline Vec maximum(Vec a, Vec b) { return Vec(a.v > b.v ? a.v : b.v); }
inline Vec minimum(Vec a, Vec b) { return Vec(a.v < b.v ? a.v : b.v); }
inline Vec choose_less(Vec a, Vec b, Vec yes, Vec no) { return Vec(a.v < b.v ? yes.v : no.v); }

inline Ints as_bits(Floats value) { return reinterpret_cast<Ints>(value); }
inline Floats as_floats(Ints bits) { return reinterpret_cast<Floats>(bits); }

inline Vec power_of_two(Vec shifted) {
  return Vec(as_floats((as_bits(shifted.v) << 23U) + 0x3F800000U));
}

inline Vec scale_by_power_of_two(Vec value, Vec n) {
  using Signed = std::int32_t __attribute__((vector_size(4 * kLanes)));
  const Ints exponent = as_bits(n.v + 12582912.0F) - 0x4B400000U;
  const Ints half = reinterpret_cast<Ints>(reinterpret_cast<Signed>(exponent) >> 1);
  const Floats first = as_floats((half + 127U) << 23U);
  const Floats second = as_floats((exponent - half + 127U) << 23U);
  return Vec(value.v * first * second);
}

/// Even and odd inputs of a paired matrix.
struct Pair {
  Vec even, odd;
};

struct F32 {
  static constexpr std::uint64_t kBytes = 4;
  static constexpr bool kPaired = false;
  static Vec load(const std::byte* from) {
    Vec value;
    __builtin_memcpy(&value.v, from, sizeof value.v);
    return value;
  }
  static void store(Vec value, std::byte* to) { __builtin_memcpy(to, &value.v, sizeof value.v); }
};

struct Bf16 {
  static constexpr std::uint64_t kBytes = 2;
  static constexpr bool kPaired = kBf16InPairs;
  static Vec load(const std::byte* from) {
    Halves in;
    __builtin_memcpy(&in, from, sizeof in);
    return Vec(as_floats(__builtin_convertvector(in, Ints) << 16U));
  }
  static Pair load_pairs(const std::byte* from) {
    Ints both;
    __builtin_memcpy(&both, from, sizeof both);
    return {Vec(as_floats(both << 16U)), Vec(as_floats(both & 0xFFFF0000U))};
  }
  static void store(Vec value, std::byte* to) {
    const Ints bits = as_bits(value.v);
    const Ints rounded = (bits + 0x7FFFU + ((bits >> 16U) & 1U)) >> 16U;
    const Ints quiet = (bits >> 16U) | 0x40U;
    const Ints chosen = (bits & 0x7FFFFFFFU) > 0x7F800000U ? quiet : rounded;
    const Halves out = __builtin_convertvector(chosen, Halves);
    __builtin_memcpy(to, &out, sizeof out);
  }
};

struct F16 {
  static constexpr std::uint64_t kBytes = 2;
  static constexpr bool kPaired = false;
  static Vec load(const std::byte* from) {
    std::uint16_t in[kLanes];
    __builtin_memcpy(in, from, sizeof in);
    Vec value;
    for (std::uint64_t i = 0; i < kLanes; ++i) {
      value.v[i] = f16_to_f32(in[i]);
    }
    return value;
  }
  static void store(Vec value, std::byte* to) {
    for (std::uint64_t i = 0; i < kLanes; ++i) {
      const std::uint16_t half = f32_to_f16(value.v[i]);
      __builtin_memcpy(to + 2 * i, &half, sizeof half);
    }
  }
};

}  // namespace
}  // namespace librarian::gpu_exec
