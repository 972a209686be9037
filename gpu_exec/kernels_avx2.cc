// Compiled with -mavx2 -mfma -mf16c: nothing here may run before the CPU was asked.
#include <immintrin.h>

#include "gpu_exec/cpu_kernels.h"
#include "gpu_exec/row_functors.h"

namespace librarian::gpu_exec {
namespace {

constexpr std::uint64_t kLanes = 8;
constexpr int kMicroRows = 6;  // 12 sums, two weights and a broadcast of 16 registers.
constexpr int kRowsReadTwice = 0;

struct Vec {
  __m256 v;
  Vec() = default;
  explicit Vec(float value) : v(_mm256_set1_ps(value)) {}
  explicit Vec(__m256 value) : v(value) {}
};

inline Vec operator+(Vec a, Vec b) { return Vec(_mm256_add_ps(a.v, b.v)); }
inline Vec operator-(Vec a, Vec b) { return Vec(_mm256_sub_ps(a.v, b.v)); }
inline Vec operator*(Vec a, Vec b) { return Vec(_mm256_mul_ps(a.v, b.v)); }
inline Vec operator/(Vec a, Vec b) { return Vec(_mm256_div_ps(a.v, b.v)); }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return Vec(_mm256_fmadd_ps(a.v, b.v, c.v)); }
inline Vec maximum(Vec a, Vec b) { return Vec(_mm256_max_ps(a.v, b.v)); }
inline Vec minimum(Vec a, Vec b) { return Vec(_mm256_min_ps(a.v, b.v)); }
inline Vec choose_less(Vec a, Vec b, Vec yes, Vec no) {
  return Vec(_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)));
}

inline Vec power_of_two(Vec shifted) {
  return Vec(_mm256_castsi256_ps(_mm256_add_epi32(
      _mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23), _mm256_set1_epi32(0x3F800000))));
}

inline Vec scale_by_power_of_two(Vec value, Vec n) {
  const __m256i exponent = _mm256_cvtps_epi32(n.v);
  const __m256i half = _mm256_srai_epi32(exponent, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const auto power = [&](__m256i e) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, bias), 23));
  };
  return Vec(
      _mm256_mul_ps(_mm256_mul_ps(value.v, power(half)), power(_mm256_sub_epi32(exponent, half))));
}

struct F32 {
  static constexpr std::uint64_t kBytes = 4;
  [[maybe_unused]] static constexpr bool kPaired = false;
  static Vec load(const std::byte* from) {
    return Vec(_mm256_loadu_ps(reinterpret_cast<const float*>(from)));
  }
  static void store(Vec value, std::byte* to) {
    _mm256_storeu_ps(reinterpret_cast<float*>(to), value.v);
  }
};

struct Bf16 {
  static constexpr std::uint64_t kBytes = 2;
  static constexpr bool kPaired = false;
  static Vec load(const std::byte* from) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return Vec(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16)));
  }
  static void store(Vec value, std::byte* to) {
    const __m256i bits = _mm256_castps_si256(value.v);
    const __m256i high = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(
        _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd), 16);
    const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value.v, value.v, _CMP_UNORD_Q));
    const __m256i out = _mm256_blendv_epi8(rounded, quiet, nan);
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(to),
        _mm_packus_epi32(_mm256_castsi256_si128(out), _mm256_extracti128_si256(out, 1)));
  }
};

struct F16 {
  static constexpr std::uint64_t kBytes = 2;
  static constexpr bool kPaired = false;
  static Vec load(const std::byte* from) {
    return Vec(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }
  static void store(Vec value, std::byte* to) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm256_cvtps_ph(value.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};

}  // namespace
}  // namespace librarian::gpu_exec

#include "gpu_exec/cpu_kernel_bodies.h"

namespace librarian::gpu_exec {

const CpuKernels& avx2_kernels() { return kKernels; }

}  // namespace librarian::gpu_exec
