#pragma once
/// Arithmetic of single elements and rows, written once for every backend. Templates take V = float
/// (host or device code) or a backend's vector of floats with the same operators and primitives.
/// Everything has internal linkage: translation units compiled for different instruction sets must
/// not share one instance. No libm and no standard containers.

#include <cstdint>

#ifdef __CUDACC__
#define LIBRARIAN_HOST_DEVICE __host__ __device__
#else
#define LIBRARIAN_HOST_DEVICE
#endif
#define LIBRARIAN_ROW_FUNCTION LIBRARIAN_HOST_DEVICE static inline

namespace librarian::gpu_exec {

LIBRARIAN_ROW_FUNCTION std::uint32_t bits_of(float value) {
  std::uint32_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

LIBRARIAN_ROW_FUNCTION float float_of(std::uint32_t bits) {
  float value = 0;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

LIBRARIAN_ROW_FUNCTION float bf16_to_f32(std::uint16_t value) {
  return float_of(static_cast<std::uint32_t>(value) << 16U);
}

/// Rounds to nearest even; NaN stays NaN (made quiet), overflow becomes infinity.
LIBRARIAN_ROW_FUNCTION std::uint16_t f32_to_bf16(float value) {
  const std::uint32_t bits = bits_of(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) {
    return static_cast<std::uint16_t>((bits >> 16U) | 0x40U);
  }
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16U) & 1U)) >> 16U);
}

LIBRARIAN_ROW_FUNCTION float f16_to_f32(std::uint16_t value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value & 0x8000U) << 16U;
  const std::uint32_t magnitude = value & 0x7FFFU;
  if (magnitude >= 0x7C00U) {  // Infinity or NaN; NaN is made quiet, as the hardware does.
    const std::uint32_t quiet = magnitude > 0x7C00U ? 0x400000U : 0U;
    return float_of(sign | 0x7F800000U | ((magnitude & 0x3FFU) << 13U) | quiet);
  }
  if (magnitude >= 0x400U) {
    return float_of(sign | ((magnitude << 13U) + 0x38000000U));
  }
  // Subnormal: magnitude * 2^-24, exact in f32.
  const float tiny = static_cast<float>(magnitude) * 5.9604644775390625e-8F;
  return float_of(sign | bits_of(tiny));
}

/// Rounds to nearest even; NaN stays NaN (made quiet), overflow becomes infinity.
LIBRARIAN_ROW_FUNCTION std::uint16_t f32_to_f16(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t sign = (bits >> 16U) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) {
    return static_cast<std::uint16_t>(sign | 0x7E00U | ((magnitude >> 13U) & 0x3FFU));
  }
  if (magnitude >= 0x477FF000U) {  // 65520 and more round to infinity.
    return static_cast<std::uint16_t>(sign | 0x7C00U);
  }
  if (magnitude >= 0x38800000U) {  // 2^-14: a normal f16.
    const std::uint32_t rounded = magnitude + 0xFFFU + ((magnitude >> 13U) & 1U);
    return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000U) >> 13U));
  }
  // Subnormal: adding 0.5 leaves value / 2^-24 in the low bits, rounded by the addition itself.
  const float shifted = float_of(magnitude) + 0.5F;
  return static_cast<std::uint16_t>(sign | (bits_of(shifted) - 0x3F000000U));
}

// The primitives that a vector type must offer too, besides + - * / and V(float).

/// a * b + c: fused or not as the backend's vector defines it; for float on the host it is not.
LIBRARIAN_ROW_FUNCTION float multiply_add(float a, float b, float c) { return a * b + c; }
/// The larger; `b` if either is NaN.
LIBRARIAN_ROW_FUNCTION float maximum(float a, float b) { return a > b ? a : b; }
/// The smaller; `b` if either is NaN.
LIBRARIAN_ROW_FUNCTION float minimum(float a, float b) { return a < b ? a : b; }
/// value * 2^n for integral n in [-252, 254], with one rounding if it becomes subnormal.
LIBRARIAN_ROW_FUNCTION float scale_by_power_of_two(float value, float n) {
  const std::uint32_t exponent = bits_of(n + 12582912.0F) - 0x4B400000U;
  const auto half = static_cast<std::uint32_t>(static_cast<std::int32_t>(exponent) >> 1);
  const float first = float_of((half + 127U) << 23U);
  const float second = float_of((exponent - half + 127U) << 23U);
  return value * first * second;
}

/// 2^n for n + 1.5 * 2^23, n integral in [-126, 127]; 0 for n = -127.
LIBRARIAN_ROW_FUNCTION float power_of_two(float shifted) {
  return float_of((bits_of(shifted) << 23U) + 0x3F800000U);
}

/// e^x: within 2 ulp where the result is normal; 0 below -104, infinity above 88.73, NaN for NaN.
/// @source Cephes expf (Moshier): range reduction by ln 2 in two parts, polynomial of degree 7.
template <typename V>
LIBRARIAN_ROW_FUNCTION V exp_of(V x) {
  x = maximum(V(-104.0F), minimum(V(89.0F), x));  // NaN passes: it is the second operand.
  const V magic(12582912.0F);                     // 1.5 * 2^23: adding it rounds to an integer.
  const V n = multiply_add(x, V(1.44269504088896341F), magic) - magic;
  V r = multiply_add(n, V(-0.693359375F), x);
  r = multiply_add(n, V(2.12194440e-4F), r);
  V p(1.9875691500e-4F);
  p = multiply_add(p, r, V(1.3981999507e-3F));
  p = multiply_add(p, r, V(8.3334519073e-3F));
  p = multiply_add(p, r, V(4.1665795894e-2F));
  p = multiply_add(p, r, V(1.6666665459e-1F));
  p = multiply_add(p, r, V(5.0000001201e-1F));
  return scale_by_power_of_two(multiply_add(p, r * r, r) + V(1.0F), n);
}

/// 2^x for x <= 127: within 1.5 ulp, exact for integral x; 0 below the normal numbers, NaN for NaN.
/// Without subnormal results, which cost processors a hundred cycles each.
/// @source polynomial of degree 6 for 2^r / r on [-1/2, 1/2] by Remez's exchange, error 2.6e-9
template <typename V>
LIBRARIAN_ROW_FUNCTION V exp2_of(V x) {
  x = maximum(V(-127.0F), x);  // NaN passes: it is the second operand.
  const V magic(12582912.0F);  // 1.5 * 2^23: adding it rounds to an integer.
  const V shifted = x + magic;
  const V r = x - (shifted - magic);
  V p(1.5594677550931658e-4F);
  p = multiply_add(p, r, V(1.3406643905038548e-3F));
  p = multiply_add(p, r, V(9.617692974883579e-3F));
  p = multiply_add(p, r, V(5.550310550995771e-2F));
  p = multiply_add(p, r, V(2.4022652782876183e-1F));
  p = multiply_add(p, r, V(6.931472149680398e-1F));
  return multiply_add(p, r, V(1.0F)) * power_of_two(shifted);
}

/// tanh(x), within 4 ulp; NaN for NaN.
/// @source rational minimax approximation of degree 13 / 6 on [-7.9, 7.9] as in Eigen's
/// MathFunctionsImpl.h
template <typename V>
LIBRARIAN_ROW_FUNCTION V tanh_of(V x) {
  x = maximum(V(-7.90531110763549805F), minimum(V(7.90531110763549805F), x));
  const V z = x * x;
  V p(-2.76076847742355e-16F);
  p = multiply_add(p, z, V(2.00018790482477e-13F));
  p = multiply_add(p, z, V(-8.60467152213735e-11F));
  p = multiply_add(p, z, V(5.12229709037114e-08F));
  p = multiply_add(p, z, V(1.48572235717979e-05F));
  p = multiply_add(p, z, V(6.37261928875436e-04F));
  p = multiply_add(p, z, V(4.89352455891786e-03F));
  V q(1.19825839466702e-06F);
  q = multiply_add(q, z, V(1.18534705686654e-04F));
  q = multiply_add(q, z, V(2.26843463243900e-03F));
  q = multiply_add(q, z, V(4.89352518554385e-03F));
  return x * p / q;
}

/// erf(x), within 4e-7 absolute; NaN for NaN.
/// @source rational minimax approximation of degree 13 / 8 on [-4, 4] as in Eigen's
/// SpecialFunctions
template <typename V>
LIBRARIAN_ROW_FUNCTION V erf_of(V x) {
  x = maximum(V(-4.0F), minimum(V(4.0F), x));
  const V z = x * x;
  V p(-2.72614225801306e-10F);
  p = multiply_add(p, z, V(2.77068142495902e-08F));
  p = multiply_add(p, z, V(-2.10102402082508e-06F));
  p = multiply_add(p, z, V(-5.69250639462346e-05F));
  p = multiply_add(p, z, V(-7.34990630326855e-04F));
  p = multiply_add(p, z, V(-2.95459980854025e-03F));
  p = multiply_add(p, z, V(-1.60960333262415e-02F));
  V q(-1.45660718464996e-05F);
  q = multiply_add(q, z, V(-2.13374055278905e-04F));
  q = multiply_add(q, z, V(-1.68282697438203e-03F));
  q = multiply_add(q, z, V(-7.37332916720468e-03F));
  q = multiply_add(q, z, V(-1.42647390514189e-02F));
  return x * p / q;
}

template <typename V>
LIBRARIAN_ROW_FUNCTION V silu(V x) {
  return x / (V(1.0F) + exp_of(V(0.0F) - x));
}
template <typename V>
LIBRARIAN_ROW_FUNCTION V gelu(V x) {
  return x * (V(0.5F) + V(0.5F) * erf_of(x * V(0.70710678118654752F)));
}
/// x * (1 + tanh(u)) / 2 = x / (1 + e^-2u), which loses nothing where tanh is near -1.
template <typename V>
LIBRARIAN_ROW_FUNCTION V gelu_tanh(V x) {
  const V u = V(1.5957691216057308F) * (x + V(0.044715F) * x * x * x);
  return x / (V(1.0F) + exp_of(V(0.0F) - u));
}
template <typename V>
LIBRARIAN_ROW_FUNCTION V relu(V x) {
  return maximum(V(0.0F), x);
}

/// gpt-oss' gate and up: see Activation::clamped_swish.
template <typename V>
LIBRARIAN_ROW_FUNCTION V clamped_swish(V x) {
  x = minimum(V(7.0F), x);
  return x / (V(1.0F) + exp_of(V(-1.702F) * x));
}
template <typename V>
LIBRARIAN_ROW_FUNCTION V clamped_up(V x) {
  return maximum(V(-7.0F), minimum(V(7.0F), x)) + V(1.0F);
}

/// Turns the pair (low, high) by the angle whose cosine and sine are given.
template <typename V>
LIBRARIAN_ROW_FUNCTION V rope_low(V low, V high, V cosine, V sine) {
  return low * cosine - high * sine;
}
template <typename V>
LIBRARIAN_ROW_FUNCTION V rope_high(V low, V high, V cosine, V sine) {
  return high * cosine + low * sine;
}

/// 1 / sqrt(mean square + epsilon) of a row.
LIBRARIAN_ROW_FUNCTION float inverse_rms(float sum_of_squares, std::uint64_t width, float epsilon) {
  return 1.0F / __builtin_sqrtf(sum_of_squares / static_cast<float>(width) + epsilon);
}

/// One element of a normalised row; `mean` is 0 for RMS norms.
template <typename V>
LIBRARIAN_ROW_FUNCTION V normalised(V x, V mean, V inverse, V weight) {
  return (x - mean) * inverse * weight;
}

}  // namespace librarian::gpu_exec
