#include "activation_store/python/decoder/fp8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

namespace librarian::activation_store::python {
namespace {

/// Value of a number with these bits of exponent and mantissa, IEEE 754 below infinity.
double value_of(std::uint32_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(bits >> static_cast<unsigned>(mantissa_bits));
  const double mantissa = bits & ((1U << static_cast<unsigned>(mantissa_bits)) - 1);
  const double one = std::ldexp(1.0, mantissa_bits);
  return exponent == 0 ? std::ldexp(mantissa / one, 1 - bias)
                       : std::ldexp(1 + mantissa / one, exponent - bias);
}

/// The bits whose value lies nearest, the even ones of two; those of infinity beyond half a step
/// after the largest.
std::uint32_t nearest_bits(double value, int exponent_bits, int mantissa_bits) {
  const std::uint32_t infinity = ((1U << static_cast<unsigned>(exponent_bits)) - 1)
                                 << static_cast<unsigned>(mantissa_bits);
  std::uint32_t low = 0;
  std::uint32_t high = infinity;  // As a number: one step after the largest.
  while (high - low > 1) {
    const std::uint32_t middle = low + (high - low) / 2;
    (value_of(middle, exponent_bits, mantissa_bits) <= value ? low : high) = middle;
  }
  const double below = value - value_of(low, exponent_bits, mantissa_bits);
  const double above = value_of(high, exponent_bits, mantissa_bits) - value;
  return below < above || (below == above && low % 2 == 0) ? low : high;
}

// Goal: every fp8 value comes out as the nearest bf16 or f16 of value * scale, exactly in f32.
// Method: all 256 values with scales that reach subnormal results, ties and overflow, against a
// search among all results.
TEST(Fp8, BecomesTheNearestValueOfEachType) {
  std::vector<std::byte> values(256);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<std::byte>(i);
  }
  for (const float scale : {1.0F, 0.1F, 3.0e-5F, 2.7e-7F, 146.2F, 1.00390625F, 1.001953125F}) {
    std::vector<std::byte> bf16(512);
    std::vector<std::byte> f16(512);
    std::vector<float> f32(256);
    ASSERT_TRUE(dequantise_fp8(values, std::vector{scale}, StoredType::bf16, bf16));
    ASSERT_TRUE(dequantise_fp8(values, std::vector{scale}, StoredType::f16, f16));
    ASSERT_TRUE(dequantise_fp8(values, std::vector{scale}, StoredType::f32,
                               std::as_writable_bytes(std::span(f32))));
    for (unsigned i = 0; i < 256; ++i) {
      std::uint16_t got_bf16 = 0;
      std::uint16_t got_f16 = 0;
      std::memcpy(&got_bf16, bf16.data() + std::size_t{2} * i, 2);
      std::memcpy(&got_f16, f16.data() + std::size_t{2} * i, 2);
      if ((i & 0x7FU) == 0x7FU) {
        EXPECT_TRUE(std::isnan(f32[i]) && got_bf16 == 0x7FC0 && got_f16 == 0x7E00) << i;
        continue;
      }
      const auto product = static_cast<float>(value_of(i & 0x7FU, 4, 3)) * scale;
      const std::uint32_t sign = (i & 0x80U) << 8U;
      EXPECT_EQ(f32[i], sign != 0 ? -product : product) << i;
      EXPECT_EQ(got_bf16, sign | nearest_bits(product, 8, 7)) << i << " times " << scale;
      EXPECT_EQ(got_f16, sign | nearest_bits(product, 5, 10)) << i << " times " << scale;
    }
  }
}

TEST(Fp8, RefusesSizesThatDoNotBelongTogether) {
  std::vector<std::byte> into(4);
  EXPECT_FALSE(
      dequantise_fp8(std::vector<std::byte>(3), std::vector{1.0F, 2.0F}, StoredType::bf16, into));
  EXPECT_FALSE(dequantise_fp8(std::vector<std::byte>(2), std::vector{1.0F}, StoredType::f32, into));
  EXPECT_FALSE(dequantise_fp8(std::vector<std::byte>(1), std::vector{1.0F}, StoredType::i32, into));
}

}  // namespace
}  // namespace librarian::activation_store::python
