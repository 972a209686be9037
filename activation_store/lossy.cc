#include "activation_store/lossy.h"

#include <bit>
#include <cmath>

#include "activation_store/little_endian.h"

namespace librarian::activation_store {
namespace {

constexpr std::byte kFp8Nan{0x7F};

/// No branches, so that the loop stays in vector registers.
template <typename Bits>
void round_all(std::span<std::byte> elements, Bits exponent_mask, unsigned dropped) {
  constexpr Bits kSign = static_cast<Bits>(Bits{1} << (sizeof(Bits) * 8 - 1));
  const auto low = static_cast<Bits>((Bits{1} << dropped) - 1);
  const auto half = static_cast<Bits>(low >> 1U);
  // The largest exponent of a finite value with every kept bit of the mantissa.
  const auto largest = static_cast<Bits>(exponent_mask - (Bits{1} << dropped));
  for (std::size_t at = 0; at < elements.size(); at += sizeof(Bits)) {
    const Bits bits = load_le<Bits>(elements.data() + at);
    const auto sign = static_cast<Bits>(bits & kSign);
    const auto magnitude = static_cast<Bits>(bits & ~kSign);
    const auto odd = static_cast<Bits>((magnitude >> dropped) & 1U);
    // A finite magnitude is below the mask and carries at most into it: nothing wraps.
    auto rounded = static_cast<Bits>((magnitude + half + odd) & ~low);
    rounded = rounded >= exponent_mask ? largest : rounded;
    rounded = magnitude >= exponent_mask ? magnitude : rounded;
    store_le(elements.data() + at, static_cast<Bits>(sign | rounded));
  }
}

/// e4m3fn of |x| <= 448 and a bit, without branches; both ways are computed and one is taken.
std::uint32_t to_e4m3(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  // Normal: 20 bits of mantissa go, and the exponent's bias of 127 becomes 7.
  const std::uint32_t rounded = magnitude + 0x7FFFFU + ((magnitude >> 20U) & 1U);
  const std::uint32_t normal = (rounded >> 20U) - (120U << 3U);
  // Below 2^-6 the step is 2^-9: adding 1.5 * 2^23 leaves the rounded multiple in the low bits.
  const float steps = std::bit_cast<float>(magnitude) * 0x1p9F + 0x1.8p23F;
  const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(steps) & 0xFU;
  const std::uint32_t code = magnitude < 0x3C800000U ? subnormal : normal;
  return (code < 0x7EU ? code : 0x7EU) | ((bits >> 24U) & 0x80U);
}

float largest_finite(const float* row, std::uint64_t width) {
  std::uint32_t largest = 0;  // order of the bits is order of the magnitudes
  for (std::uint64_t i = 0; i < width; ++i) {
    const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(row[i]) & 0x7FFFFFFFU;
    const std::uint32_t finite = magnitude < 0x7F800000U ? magnitude : 0U;
    largest = largest > finite ? largest : finite;
  }
  return std::bit_cast<float>(largest);
}

}  // namespace

void round_mantissas(StoredType type, std::uint32_t bits, std::span<std::byte> elements) {
  LIB_CHECK(bits > 0 && elements.size() % element_bytes(type) == 0);
  switch (type) {
    case StoredType::bf16:
      LIB_CHECK(bits < 7);
      return round_all<std::uint16_t>(elements, 0x7F80, 7 - bits);
    case StoredType::f16:
      LIB_CHECK(bits < 10);
      return round_all<std::uint16_t>(elements, 0x7C00, 10 - bits);
    case StoredType::f32:
      LIB_CHECK(bits < 23);
      return round_all<std::uint32_t>(elements, 0x7F800000, 23 - bits);
    case StoredType::f8_e4m3:
    case StoredType::i32:
      break;
  }
  LIB_CHECK(false);
}

void encode_fp8_rows(std::span<const float> rows, std::uint64_t width, std::span<std::byte> q,
                     std::span<float> scales) {
  LIB_CHECK(rows.size() == scales.size() * width && q.size() == rows.size());
  for (std::size_t r = 0; r < scales.size(); ++r) {
    const float* const row = rows.data() + r * width;
    std::byte* const out = q.data() + r * width;
    const float scale = largest_finite(row, width) / kFp8Max;
    scales[r] = scale == 0.0F ? 1.0F : scale;
    for (std::uint64_t i = 0; i < width; ++i) {
      const bool finite = (std::bit_cast<std::uint32_t>(row[i]) & 0x7FFFFFFFU) < 0x7F800000U;
      const auto code = static_cast<std::byte>(to_e4m3(row[i] / scales[r]));
      out[i] = finite ? code : kFp8Nan;
    }
  }
}

}  // namespace librarian::activation_store
