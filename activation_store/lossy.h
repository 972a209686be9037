#pragma once
/// Values with fewer bits, where the user asked for them: rounded mantissas and fp8 with a scale a
/// row. Functions of the values alone, so that a store's bytes do not depend on who computed them.
/// Any function may be called concurrently.

#include <cstddef>
#include <cstdint>
#include <span>

#include "activation_store/types.h"

namespace librarian::activation_store {

/// Largest finite e4m3fn.
inline constexpr float kFp8Max = 448.0F;

/// Rounds the mantissa of every element to `bits` bits, in place: to nearest, halves to even. What
/// would become infinite becomes the largest finite value of so many bits; NaN and infinity stay.
/// @param type      bf16, f16 or f32.
/// @param bits      Below the type's own (7, 10, 23).
/// @param elements  Whole elements.
void round_mantissas(StoredType type, std::uint32_t bits, std::span<std::byte> elements);

/// Rows as e4m3fn with a scale each: value = q * scale.
///   scale  the row's largest finite |value| / 448 in f32; 1 where that is 0.
///   q      value / scale in f32, rounded to nearest, halves to even, at most 448 in magnitude; NaN
///          (0x7F) for NaN and infinity.
/// @param rows    [n, width]
/// @param q       [n, width] bytes; @param scales  [n]
/// @source speculators' offline hidden states: e4m3fn, scale = amax / 448 a token, float32.
void encode_fp8_rows(std::span<const float> rows, std::uint64_t width, std::span<std::byte> q,
                     std::span<float> scales);

}  // namespace librarian::activation_store
