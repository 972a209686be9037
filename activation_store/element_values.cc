// Fill values and non-finite counts: what the store knows about the meaning of elements.
#include <cstring>

#include "activation_store/blosc_chunk.h"
#include "activation_store/little_endian.h"

namespace librarian::activation_store {
namespace {

constexpr std::uint16_t kFillBf16 = 0x7FC0;
constexpr std::uint16_t kFillF16 = 0x7E00;
constexpr std::uint32_t kFillF32 = 0x7FC00000;
constexpr std::uint8_t kFillF8 = 0x7F;
constexpr std::uint32_t kFillI32 = 0xFFFFFFFF;

template <typename Bits>
void fill(std::span<std::byte> rows, Bits value) {
  for (std::size_t at = 0; at < rows.size(); at += sizeof(Bits)) {
    store_le(rows.data() + at, value);
  }
}

template <typename Bits>
bool filled(std::span<const std::byte> rows, Bits value) {
  bool same = true;
  for (std::size_t at = 0; at < rows.size(); at += sizeof(Bits)) {
    same = same && load_le<Bits>(rows.data() + at) == value;
  }
  return same;
}

/// Non-finite means all exponent bits set; a mantissa of zero then means infinity. Counts in
/// 32 bits over runs short enough not to overflow, so that the loop stays in vector registers.
template <typename Bits>
NonFiniteCounts count(std::span<const std::byte> rows, Bits exponent_mask, Bits magnitude_mask) {
  constexpr std::size_t kRun = 1U << 20U;
  NonFiniteCounts total;
  const std::size_t elements = rows.size() / sizeof(Bits);
  for (std::size_t begin = 0; begin < elements; begin += kRun) {
    const std::size_t end = std::min(elements, begin + kRun);
    std::uint32_t non_finite = 0;
    std::uint32_t inf = 0;
    for (std::size_t i = begin; i < end; ++i) {
      const auto bits =
          static_cast<Bits>(load_le<Bits>(rows.data() + i * sizeof(Bits)) & magnitude_mask);
      non_finite += bits >= exponent_mask ? 1U : 0U;
      inf += bits == exponent_mask ? 1U : 0U;
    }
    total.nan += non_finite - inf;
    total.inf += inf;
  }
  return total;
}

}  // namespace

void fill_rows(StoredType type, std::span<std::byte> rows) {
  switch (type) {
    case StoredType::bf16:
      return fill(rows, kFillBf16);
    case StoredType::f16:
      return fill(rows, kFillF16);
    case StoredType::f32:
      return fill(rows, kFillF32);
    case StoredType::f8_e4m3:
      return fill(rows, kFillF8);
    case StoredType::i32:
      return fill(rows, kFillI32);
  }
}

bool is_filled(StoredType type, std::span<const std::byte> rows) {
  switch (type) {
    case StoredType::bf16:
      return filled(rows, kFillBf16);
    case StoredType::f16:
      return filled(rows, kFillF16);
    case StoredType::f32:
      return filled(rows, kFillF32);
    case StoredType::f8_e4m3:
      return filled(rows, kFillF8);
    case StoredType::i32:
      return filled(rows, kFillI32);
  }
  return false;
}

NonFiniteCounts count_non_finite(StoredType type, std::span<const std::byte> rows) {
  switch (type) {
    case StoredType::bf16:
      return count<std::uint16_t>(rows, 0x7F80, 0x7FFF);
    case StoredType::f16:
      return count<std::uint16_t>(rows, 0x7C00, 0x7FFF);
    case StoredType::f32:
      return count<std::uint32_t>(rows, 0x7F800000, 0x7FFFFFFF);
    case StoredType::f8_e4m3:
      return {count<std::uint8_t>(rows, 0x7F, 0x7F).inf, 0};  // e4m3fn has no infinity
    case StoredType::i32:
      return {};
  }
  return {};
}

}  // namespace librarian::activation_store
