// Goal: lossy values are exactly those of the format, for every input.
// Method: a slow reference that tries every code and takes the nearest; all 65536 patterns.
#include "activation_store/lossy.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "activation_store/compare_rows.h"

namespace librarian::activation_store {
namespace {

float value_of(StoredType type, std::uint32_t bits) {
  return element_value(type, reinterpret_cast<const std::byte*>(&bits));
}

std::vector<std::uint16_t> rounded(StoredType type, std::uint32_t bits) {
  std::vector<std::uint16_t> all(65536);
  for (std::uint32_t i = 0; i < all.size(); ++i) {
    all[i] = static_cast<std::uint16_t>(i);
  }
  round_mantissas(type, bits, std::as_writable_bytes(std::span(all)));
  return all;
}

/// The nearest of two neighbours among values whose low `dropped` bits are 0; halves to the even.
std::uint16_t nearest(StoredType type, std::uint32_t bits, unsigned dropped, std::uint32_t inf) {
  const std::uint32_t sign = bits & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7FFFU;
  if (magnitude >= inf) {
    return static_cast<std::uint16_t>(bits);
  }
  const std::uint32_t below = magnitude >> dropped << dropped;
  const std::uint32_t above = below + (1U << dropped);
  if (above >= inf) {
    return static_cast<std::uint16_t>(sign | below);
  }
  const double x = value_of(type, magnitude);
  const double down = x - value_of(type, below);
  const double up = value_of(type, above) - x;
  const bool take_below = down < up || (down == up && ((below >> dropped) & 1U) == 0);
  return static_cast<std::uint16_t>(sign | (take_below ? below : above));
}

TEST(RoundedMantissas, AreTheNearestForAllBitPatterns) {
  for (const auto& [type, own, inf] :
       {std::tuple{StoredType::bf16, 7U, 0x7F80U}, std::tuple{StoredType::f16, 10U, 0x7C00U}}) {
    for (std::uint32_t bits = 3; bits <= 6; ++bits) {
      const auto all = rounded(type, bits);
      for (std::uint32_t i = 0; i < all.size(); ++i) {
        ASSERT_EQ(all[i], nearest(type, i, own - bits, inf))
            << stored_type_name(type) << " " << i << " to " << bits;
      }
    }
  }
}

TEST(RoundedMantissas, OfFloatsRoundHalvesToEvenAndNeverBecomeInfinite) {
  const float max = std::numeric_limits<float>::max();
  std::vector<float> values{
      1.0F, 1.0625F, 1.1875F, -1.0625F, 1.06250012F,
      max,  -max,    0.0F,    -0.0F,    std::numeric_limits<float>::infinity()};
  round_mantissas(StoredType::f32, 3, std::as_writable_bytes(std::span(values)));
  const float largest = 0x1.Ep127F;
  EXPECT_EQ(values, (std::vector<float>{1.0F, 1.0F, 1.25F, -1.0F, 1.125F, largest, -largest, 0.0F,
                                        -0.0F, std::numeric_limits<float>::infinity()}));
  EXPECT_TRUE(std::signbit(values[8]));
}

/// The nearest e4m3fn by trying them all; halves to the even code.
std::uint8_t nearest_fp8(float x) {
  if (!std::isfinite(x)) {
    return 0x7F;
  }
  std::uint32_t best = 0;
  double distance = std::numeric_limits<double>::infinity();
  for (std::uint32_t code = 0; code < 0x7F; ++code) {
    const double d = std::fabs(std::fabs(static_cast<double>(x)) -
                               static_cast<double>(value_of(StoredType::f8_e4m3, code)));
    if (d < distance || (d == distance && code % 2 == 0)) {
      best = code;
      distance = d;
    }
  }
  return static_cast<std::uint8_t>(best | (std::signbit(x) ? 0x80U : 0U));
}

TEST(Fp8Rows, AreTheNearestForAllValuesOfBf16) {
  // Rows of two: the value, and one that is as large or larger and so sets the scale.
  for (const float largest : {448.0F, 1.0F, 3.7F}) {
    for (std::uint32_t i = 0; i < 65536; ++i) {
      const float value = value_of(StoredType::bf16, i);
      const float row[2] = {value, largest};
      std::byte q[2];
      float scale = 0;
      encode_fp8_rows(row, 2, q, {&scale, 1});
      const float amax = std::isfinite(value) ? std::max(std::fabs(value), largest) : largest;
      ASSERT_EQ(scale, amax / 448.0F) << i;
      ASSERT_EQ(static_cast<std::uint8_t>(q[0]),
                std::isfinite(value) ? nearest_fp8(value / scale) : 0x7F)
          << i << " of " << largest;
    }
  }
}

TEST(Fp8Rows, OfNothingHaveScaleOneAndTinyOnesStayFinite) {
  const float zeros[3] = {0.0F, -0.0F, 0.0F};
  std::byte q[3];
  float scale = 0;
  encode_fp8_rows(zeros, 3, q, {&scale, 1});
  EXPECT_EQ(scale, 1.0F);
  EXPECT_EQ(static_cast<int>(q[0]), 0x00);
  EXPECT_EQ(static_cast<int>(q[1]), 0x80);
  // The scale is no longer exact, or even 0, where the values are hardly more than it.
  for (float tiny = 0x1p-120F; tiny > 0; tiny /= 2) {
    const float row[3] = {tiny, -tiny / 3, std::numeric_limits<float>::quiet_NaN()};
    encode_fp8_rows(row, 3, q, {&scale, 1});
    EXPECT_GT(scale, 0.0F);
    EXPECT_LE(static_cast<int>(q[0]), 0x7E);
    EXPECT_EQ(static_cast<int>(q[2]), 0x7F);
  }
}

}  // namespace
}  // namespace librarian::activation_store
