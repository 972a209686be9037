#pragma once
/// The arithmetic of quantised matrices, element by element, once for every backend: see
/// row_functors.h for what may stand here.

#include <cstdint>

#include "gpu_exec/quantised.h"
#include "gpu_exec/row_functors.h"

namespace librarian::gpu_exec {

// On the device tables are aligned, and compilers read a word at once only if they are told so.
#ifdef __CUDA_ARCH__
#define LIBRARIAN_ALIGNED_ON_DEVICE(pointer, bytes) __builtin_assume_aligned(pointer, bytes)
#else
#define LIBRARIAN_ALIGNED_ON_DEVICE(pointer, bytes) (pointer)
#endif

LIBRARIAN_ROW_FUNCTION std::uint32_t byte_at(const std::byte* bytes, std::uint64_t index) {
  return static_cast<std::uint32_t>(bytes[index]);
}
LIBRARIAN_ROW_FUNCTION std::uint16_t half_at(const std::byte* bytes, std::uint64_t index) {
  std::uint16_t value = 0;
  __builtin_memcpy(&value, LIBRARIAN_ALIGNED_ON_DEVICE(bytes + index * sizeof value, sizeof value),
                   sizeof value);
  return value;
}
LIBRARIAN_ROW_FUNCTION std::uint32_t word_at(const std::byte* bytes, std::uint64_t index) {
  std::uint32_t value = 0;
  __builtin_memcpy(&value, LIBRARIAN_ALIGNED_ON_DEVICE(bytes + index * sizeof value, sizeof value),
                   sizeof value);
  return value;
}

/// `bits` bits from bit `bit` of a row of words, which lie `stride` words apart.
LIBRARIAN_ROW_FUNCTION std::uint32_t bits_at(const std::byte* words, std::uint64_t bit,
                                             std::uint32_t bits, std::uint64_t first,
                                             std::uint64_t stride) {
  const std::uint64_t word = bit / 32;
  const auto shift = static_cast<std::uint32_t>(bit % 32);
  std::uint32_t code = word_at(words, first + word * stride) >> shift;
  if (shift + bits > 32) {
    code |= word_at(words, first + (word + 1) * stride) << (32 - shift);
  }
  return code & ((1U << bits) - 1U);
}
LIBRARIAN_ROW_FUNCTION std::uint64_t words_of(std::uint64_t count, std::uint32_t bits) {
  return (count * bits + 31) / 32;
}
/// AWQ interleaves eight neighbours: the nibble of the c-th.
LIBRARIAN_ROW_FUNCTION std::uint32_t awq_nibble(std::uint32_t word, std::uint64_t column) {
  const auto c = static_cast<std::uint32_t>(column % 8);
  return word >> (4U * (c / 2 + c % 2 * 4)) & 0xFU;
}

/// Sign, 4 bits of exponent with bias 7, 3 of mantissa; no infinity.
/// @source OCP 8-bit floating point specification 1.0, table 1
LIBRARIAN_ROW_FUNCTION float e4m3_to_f32(std::uint32_t code) {
  const std::uint32_t sign = (code & 0x80U) << 24U;
  const std::uint32_t magnitude = code & 0x7FU;
  if (magnitude == 0x7FU) {
    return float_of(sign | 0x7FC00000U);
  }
  if (magnitude < 8) {  // Subnormal: magnitude * 2^-9, exact.
    return float_of(sign | bits_of(static_cast<float>(magnitude) * 0.001953125F));
  }
  return float_of(sign | ((magnitude << 20U) + 0x3C000000U));
}
/// 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.   @source OCP microscaling formats 1.0, table 5
LIBRARIAN_ROW_FUNCTION float e2m1_to_f32(std::uint32_t code) {
  const std::uint32_t sign = (code & 8U) << 28U;
  const std::uint32_t magnitude = code & 7U;
  if (magnitude < 2) {
    return float_of(sign | (magnitude == 0 ? 0U : 0x3F000000U));
  }
  return float_of(sign | ((magnitude << 22U) + 0x3F000000U));
}
/// 2^(code - 127); NaN for 255.
LIBRARIAN_ROW_FUNCTION float e8m0_to_f32(std::uint32_t code) {
  if (code == 255) {
    return float_of(0x7FC00000U);
  }
  return float_of(code == 0 ? 0x00400000U : code << 23U);
}

/// Bits of a code: their number of values is what tables are made of.
LIBRARIAN_ROW_FUNCTION std::uint32_t code_bits(const QuantisedMatrix& m) {
  switch (m.layout) {
    case CodeLayout::f8_e4m3:
    case CodeLayout::int8:
      return 8;
    case CodeLayout::e2m1_by_row:
    case CodeLayout::awq:
    case CodeLayout::table_flat:
      return 4;
    case CodeLayout::bits_by_row:
    case CodeLayout::bits_by_input:
      return m.bits;
  }
  return 8;
}

LIBRARIAN_ROW_FUNCTION std::uint32_t code_at(const QuantisedMatrix& m, std::uint64_t o,
                                             std::uint64_t i) {
  switch (m.layout) {
    case CodeLayout::f8_e4m3:
    case CodeLayout::int8:
      return byte_at(m.codes, o * m.inputs + i);
    case CodeLayout::bits_by_row:
      return bits_at(m.codes, i * m.bits, m.bits, o * words_of(m.inputs, m.bits), 1);
    case CodeLayout::e2m1_by_row:
      return byte_at(m.codes, o * (m.inputs / 2) + i / 2) >> (i % 2 * 4) & 0xFU;
    case CodeLayout::bits_by_input:
      return bits_at(m.codes, i * m.bits, m.bits, o, m.outputs);
    case CodeLayout::awq:
      return awq_nibble(word_at(m.codes, i * (m.outputs / 8) + o / 8), o);
    case CodeLayout::table_flat: {
      const std::uint64_t element = o * m.inputs + i;
      return byte_at(m.codes, element / 2) >> (element % 2 == 0 ? 4U : 0U) & 0xFU;
    }
  }
  return 0;
}

/// The number that a code stands for, before zero point and scale.
LIBRARIAN_ROW_FUNCTION float code_number(const QuantisedMatrix& m, std::uint32_t code) {
  switch (m.layout) {
    case CodeLayout::f8_e4m3:
      return e4m3_to_f32(code);
    case CodeLayout::int8:
      return static_cast<float>(static_cast<std::int8_t>(code));
    case CodeLayout::bits_by_row:
      return static_cast<float>(static_cast<std::int32_t>(code) - (1 << (m.bits - 1)));
    case CodeLayout::e2m1_by_row:
      return e2m1_to_f32(code);
    case CodeLayout::bits_by_input:
    case CodeLayout::awq:
      return static_cast<float>(code);
    case CodeLayout::table_flat:
      return float_of(word_at(m.table, code));
  }
  return 0;
}

LIBRARIAN_ROW_FUNCTION std::uint64_t group_at(const QuantisedMatrix& m, std::uint64_t i) {
  return m.group_of_input == nullptr ? i / m.scale_inputs : word_at(m.group_of_input, i);
}

LIBRARIAN_ROW_FUNCTION float scale_value(const QuantisedMatrix& m, std::uint64_t index) {
  switch (m.scale_type) {
    case ScaleType::f32:
      return float_of(word_at(m.scales, index));
    case ScaleType::f16:
      return f16_to_f32(half_at(m.scales, index));
    case ScaleType::bf16:
      return bf16_to_f32(half_at(m.scales, index));
    case ScaleType::f8_e4m3:
      return e4m3_to_f32(byte_at(m.scales, index));
    case ScaleType::e8m0:
      return e8m0_to_f32(byte_at(m.scales, index));
    case ScaleType::table8:
      return float_of(word_at(m.scale_table, byte_at(m.scales, index))) *
                 float_of(word_at(m.scale_of_256, index / 256)) +
             m.scale_offset;
  }
  return 0;
}

/// Of element (o, i), whose group is `group`; the global scale is in it.
LIBRARIAN_ROW_FUNCTION float scale_at(const QuantisedMatrix& m, std::uint64_t o, std::uint64_t i,
                                      std::uint64_t group) {
  std::uint64_t index = o / m.scale_outputs * m.groups + group;
  if (m.layout == CodeLayout::table_flat) {
    index = (o * m.inputs + i) / m.scale_inputs;
  } else if (m.scale_by_input) {
    index = group * m.outputs + o;
  }
  const float scale = scale_value(m, index);
  if (!m.has_global) {
    return scale;
  }
  return m.divides_by_global ? scale / m.global : scale * m.global;
}

LIBRARIAN_ROW_FUNCTION std::int32_t zero_at(const QuantisedMatrix& m, std::uint64_t o,
                                            std::uint64_t group) {
  switch (m.zero_layout) {
    case ZeroLayout::none:
      return 0;
    case ZeroLayout::int8:
      return static_cast<std::int8_t>(byte_at(m.zeros, o / m.scale_outputs * m.groups + group));
    case ZeroLayout::bits_by_output:
      return static_cast<std::int32_t>(bits_at(m.zeros, o * m.bits, m.bits, group, m.groups)) -
             (1 << (m.bits - 1));
    case ZeroLayout::bits_in_row:
      return static_cast<std::int32_t>(
                 bits_at(m.zeros, o * m.bits, m.bits, group * words_of(m.outputs, m.bits), 1)) +
             m.zero_plus;
    case ZeroLayout::awq:
      return static_cast<std::int32_t>(
          awq_nibble(word_at(m.zeros, group * (m.outputs / 8) + o / 8), o));
  }
  return 0;
}

/// Rounded to the type that the format's library decodes to.
LIBRARIAN_ROW_FUNCTION float decoded(const QuantisedMatrix& m, std::uint32_t code, float scale,
                                     std::int32_t zero) {
  const float value = (code_number(m, code) - static_cast<float>(zero)) * scale * m.after;
  switch (m.result) {
    case DType::f32:
      return value;
    case DType::f16:
      return f16_to_f32(f32_to_f16(value));
    case DType::bf16:
      return bf16_to_f32(f32_to_bf16(value));
  }
  return value;
}

LIBRARIAN_ROW_FUNCTION float decoded_element(const QuantisedMatrix& m, std::uint64_t o,
                                             std::uint64_t i) {
  const std::uint64_t group = group_at(m, i);
  return decoded(m, code_at(m, o, i), scale_at(m, o, i, group), zero_at(m, o, group));
}

}  // namespace librarian::gpu_exec
