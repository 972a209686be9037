// The vector of the AVX-512 paths and its primitives; see cpu_kernels.h. Part of kernels_avx512.cc
// and kernels_amx.cc, which alone are compiled for it. No include guard on purpose.
#include <immintrin.h>

#include "gpu_exec/cpu_kernels.h"
#include "gpu_exec/row_functors.h"

namespace librarian::gpu_exec {
namespace {

constexpr std::uint64_t kLanes = 16;

struct Vec {
  __m512 v;
  Vec() = default;
  explicit Vec(float value) : v(_mm512_set1_ps(value)) {}
  explicit Vec(__m512 value) : v(value) {}
};

inline Vec operator+(Vec a, Vec b) { return Vec(_mm512_add_ps(a.v, b.v)); }
inline Vec operator-(Vec a, Vec b) { return Vec(_mm512_sub_ps(a.v, b.v)); }
inline Vec operator*(Vec a, Vec b) { return Vec(_mm512_mul_ps(a.v, b.v)); }
inline Vec operator/(Vec a, Vec b) { return Vec(_mm512_div_ps(a.v, b.v)); }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return Vec(_mm512_fmadd_ps(a.v, b.v, c.v)); }
inline Vec maximum(Vec a, Vec b) { return Vec(_mm512_max_ps(a.v, b.v)); }
inline Vec minimum(Vec a, Vec b) { return Vec(_mm512_min_ps(a.v, b.v)); }
inline Vec choose_less(Vec a, Vec b, Vec yes, Vec no) {
  return Vec(_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v));
}
inline Vec power_of_two(Vec shifted) {
  return Vec(_mm512_castsi512_ps(_mm512_add_epi32(
      _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23), _mm512_set1_epi32(0x3F800000))));
}
inline Vec scale_by_power_of_two(Vec value, Vec n) { return Vec(_mm512_scalef_ps(value.v, n.v)); }

/// Even and odd inputs of a paired matrix.
struct Pair {
  Vec even, odd;
};

struct F32 {
  static constexpr std::uint64_t kBytes = 4;
  static constexpr bool kPaired = false;
  static Vec load(const std::byte* from) { return Vec(_mm512_loadu_ps(from)); }
  static void store(Vec value, std::byte* to) { _mm512_storeu_ps(to, value.v); }
};

struct Bf16 {
  static constexpr std::uint64_t kBytes = 2;
  static constexpr bool kPaired = true;
  static Vec load(const std::byte* from) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return Vec(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)));
  }
  static Pair load_pairs(const std::byte* from) {
    const __m512i both = _mm512_loadu_si512(from);
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xFFFF0000U));
    return {Vec(_mm512_castsi512_ps(_mm512_slli_epi32(both, 16))),
            Vec(_mm512_castsi512_ps(_mm512_and_si512(both, high)))};
  }
  // Not the bf16 instruction: it flushes subnormal numbers to zero.
  static void store(Vec value, std::byte* to) {
    const __m512i bits = _mm512_castps_si512(value.v);
    const __m512i high = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_srli_epi32(
        _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(value.v, value.v, _CMP_UNORD_Q);
    const __m512i out = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(out));
  }
};

struct F16 {
  static constexpr std::uint64_t kBytes = 2;
  static constexpr bool kPaired = false;
  static Vec load(const std::byte* from) {
    return Vec(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
  }
  static void store(Vec value, std::byte* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm512_cvtps_ph(value.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};

}  // namespace
}  // namespace librarian::gpu_exec
