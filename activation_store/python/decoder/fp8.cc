#include "activation_store/python/decoder/fp8.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace librarian::activation_store::python {
namespace {

std::array<float, 256> make_fp8_values() {
  std::array<float, 256> values{};
  for (unsigned bits = 0; bits < values.size(); ++bits) {
    const auto mantissa = static_cast<float>(bits & 7U);
    const int exponent = static_cast<int>((bits >> 3U) & 15U);
    const float magnitude = (bits & 0x7FU) == 0x7FU ? std::numeric_limits<float>::quiet_NaN()
                            : exponent == 0         ? std::ldexp(mantissa, -9)
                                                    : std::ldexp(8.0F + mantissa, exponent - 10);
    values[bits] = (bits & 0x80U) != 0 ? -magnitude : magnitude;
  }
  return values;
}

std::uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (std::isnan(value)) {
    return 0x7FC0;
  }
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16U) & 1U)) >> 16U);
}

std::uint16_t to_f16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16U) & 0x8000U;
  if (std::isnan(value)) {
    return 0x7E00;
  }
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0F) {  // Half way from the largest f16 to the next power of two.
    return static_cast<std::uint16_t>(sign | 0x7C00U);
  }
  if (magnitude < 0x1p-14F) {  // Subnormal: steps of 2^-24; adding 2^-1 leaves just these.
    const auto shifted = std::bit_cast<std::uint32_t>(magnitude + 0.5F);
    return static_cast<std::uint16_t>(sign | (shifted - std::bit_cast<std::uint32_t>(0.5F)));
  }
  const std::uint32_t rounded = (bits & 0x7FFFFFFFU) + 0xFFFU + ((bits >> 13U) & 1U);
  return static_cast<std::uint16_t>(sign | ((rounded - (112U << 23U)) >> 13U));
}

template <typename T, typename Convert>
void convert_rows(std::span<const std::byte> values, std::span<const float> scales,
                  std::span<std::byte> into, Convert convert) {
  static const std::array<float, 256> fp8_values = make_fp8_values();
  const std::size_t width = scales.empty() ? 0 : values.size() / scales.size();
  std::size_t at = 0;
  for (const float scale : scales) {
    std::array<T, 256> converted;  // NOLINT: filled in the loop
    for (std::size_t bits = 0; bits < converted.size(); ++bits) {
      converted[bits] = convert(fp8_values[bits] * scale);
    }
    for (std::size_t column = 0; column < width; ++column, ++at) {
      std::memcpy(into.data() + at * sizeof(T),
                  &converted[std::to_integer<std::size_t>(values[at])], sizeof(T));
    }
  }
}

}  // namespace

Result<void> dequantise_fp8(std::span<const std::byte> values, std::span<const float> scales,
                            StoredType type, std::span<std::byte> into) {
  if ((scales.empty() ? !values.empty() : values.size() % scales.size() != 0) ||
      into.size() != values.size() * element_bytes(type)) {
    return Error(ErrorCode::invalid_argument, "fp8 rows: their sizes do not belong together");
  }
  switch (type) {
    case StoredType::bf16:
      convert_rows<std::uint16_t>(values, scales, into, to_bf16);
      return {};
    case StoredType::f16:
      convert_rows<std::uint16_t>(values, scales, into, to_f16);
      return {};
    case StoredType::f32:
      convert_rows<float>(values, scales, into, [](float value) { return value; });
      return {};
    default:
      return Error(ErrorCode::invalid_argument, "fp8 rows become bf16, f16 or f32");
  }
}

}  // namespace librarian::activation_store::python
