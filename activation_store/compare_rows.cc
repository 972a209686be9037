#include "activation_store/compare_rows.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "activation_store/little_endian.h"

namespace librarian::activation_store {
namespace {

float from_f16(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16U;
  const std::uint32_t exponent = (bits >> 10U) & 0x1FU;
  const std::uint32_t mantissa = bits & 0x3FFU;
  if (exponent == 0x1F) {
    return std::bit_cast<float>(sign | 0x7F800000U | (mantissa << 13U));
  }
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact
    const float value = static_cast<float>(mantissa) * 0x1p-24F;
    return sign != 0 ? -value : value;
  }
  return std::bit_cast<float>(sign | ((exponent + 112U) << 23U) | (mantissa << 13U));
}

float from_f8_e4m3(std::uint8_t bits) {
  const std::uint32_t exponent = (bits >> 3U) & 0xFU;
  const std::uint32_t mantissa = bits & 7U;
  const float magnitude =
      (bits & 0x7FU) == 0x7F ? std::numeric_limits<float>::quiet_NaN()
      : exponent == 0        ? static_cast<float>(mantissa) * 0x1p-9F
                             : std::bit_cast<float>(((exponent + 120U) << 23U) | (mantissa << 20U));
  return (bits & 0x80U) != 0 ? -magnitude : magnitude;
}

bool same_element(const std::byte* a, StoredType type_a, const std::byte* b, StoredType type_b) {
  if (type_a == type_b) {
    return std::memcmp(a, b, element_bytes(type_a)) == 0;
  }
  const float x = element_value(type_a, a);
  const float y = element_value(type_b, b);
  return x == y || (std::isnan(x) && std::isnan(y));
}

}  // namespace

float element_value(StoredType type, const std::byte* at) {
  switch (type) {
    case StoredType::bf16:
      return std::bit_cast<float>(static_cast<std::uint32_t>(load_le<std::uint16_t>(at)) << 16U);
    case StoredType::f16:
      return from_f16(load_le<std::uint16_t>(at));
    case StoredType::f32:
      return std::bit_cast<float>(load_le<std::uint32_t>(at));
    case StoredType::f8_e4m3:
      return from_f8_e4m3(load_le<std::uint8_t>(at));
    case StoredType::i32:
      return static_cast<float>(load_le<std::int32_t>(at));
  }
  return 0;
}

RowDifference compare_rows(std::span<const std::byte> a, StoredType type_a,
                           std::span<const std::byte> b, StoredType type_b, std::uint64_t width) {
  RowDifference result;
  if (type_a == type_b && std::memcmp(a.data(), b.data(), a.size()) == 0) {
    return result;
  }
  double square_a = 0;
  double square_b = 0;
  double square_difference = 0;
  double product = 0;
  for (std::uint64_t i = 0; i < width; ++i) {
    const std::byte* const at_a = a.data() + i * element_bytes(type_a);
    const std::byte* const at_b = b.data() + i * element_bytes(type_b);
    result.elements += same_element(at_a, type_a, at_b, type_b) ? 0U : 1U;
    const double x = element_value(type_a, at_a);
    const double y = element_value(type_b, at_b);
    square_a += x * x;
    square_b += y * y;
    square_difference += (x - y) * (x - y);
    product += x * y;
  }
  if (result.elements == 0) {
    return result;
  }
  const double error = std::sqrt(square_difference) / std::sqrt(square_a);
  const double cosine = product / (std::sqrt(square_a) * std::sqrt(square_b));
  result.relative_error = std::isfinite(error)     ? error
                          : square_difference == 0 ? 0  // +0 against -0 in a row of zeros
                                                   : std::numeric_limits<double>::infinity();
  result.cosine = std::isfinite(cosine) ? cosine : 0;
  return result;
}

}  // namespace librarian::activation_store
