// Goal: NaN and infinity are found wherever they are, and nothing else is taken for them.
// Method: every 16-bit pattern; f32 at the borders; every position around the search's runs.
#include "ingest/nonfinite.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

namespace librarian::ingest {
namespace {

using gpu_exec::DType;

template <typename T>
std::optional<std::uint64_t> search(const std::vector<T>& values, DType type) {
  return first_nonfinite(std::as_bytes(std::span(values)), type);
}

TEST(Nonfinite, IsTheExponentOfOnesForEvery16BitPattern) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const std::vector<std::uint16_t> one{static_cast<std::uint16_t>(bits)};
    const std::uint32_t wide = bits << 16U;
    float bf16 = 0;
    std::memcpy(&bf16, &wide, 4);
    EXPECT_EQ(search(one, DType::bf16).has_value(), !std::isfinite(bf16)) << bits;
    EXPECT_EQ(search(one, DType::f16).has_value(), (bits >> 10U) % 32 == 31) << bits;
  }
}

TEST(Nonfinite, IsWhatIsfiniteSaysForF32) {
  for (const std::uint32_t bits :
       {0U, 1U, 0x007FFFFFU, 0x00800000U, 0x3F800000U, 0x7F7FFFFFU, 0x7F800000U, 0x7F800001U,
        0x7FC00000U, 0x7FFFFFFFU, 0x80000000U, 0xFF7FFFFFU, 0xFF800000U, 0xFFFFFFFFU}) {
    float value = 0;
    std::memcpy(&value, &bits, 4);
    EXPECT_EQ(search(std::vector<std::uint32_t>{bits}, DType::f32).has_value(),
              !std::isfinite(value))
        << bits;
  }
}

// Catches: an element missed at the border of two runs, or a wrong index.
TEST(Nonfinite, IsFoundAtEveryPositionAndTheFirstCounts) {
  for (const std::size_t count : {1U, 2U, 4095U, 4096U, 4097U, 8192U, 8193U}) {
    std::vector<std::uint16_t> values(count, 0x3F80);
    EXPECT_FALSE(search(values, DType::bf16));
    for (std::size_t at = 0; at < count; at += at + 3 < count && at > 2 && at < 4090 ? 97 : 1) {
      values[at] = 0x7FC0;
      EXPECT_EQ(search(values, DType::bf16), at);
      values.back() = 0x7F80;
      EXPECT_EQ(search(values, DType::bf16), at);
      values.back() = values[at] = 0x3F80;
    }
  }
  EXPECT_FALSE(search(std::vector<std::uint16_t>{}, DType::f16));
}

}  // namespace
}  // namespace librarian::ingest
