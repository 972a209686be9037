// Compiled with -msse4.2: nothing here may run before the CPU was asked.
#include "base/crc32c_sse42.h"

#include <nmmintrin.h>

#include <array>
#include <cstring>

namespace librarian {
namespace {

// The instruction takes three cycles and a new one can begin in each: three lanes of bytes keep it
// busy, and are joined afterwards.
constexpr std::size_t kLaneBytes = 2048;

std::uint64_t add_word(std::uint64_t state, const std::byte* at) {
  std::uint64_t word = 0;
  std::memcpy(&word, at, 8);
  return _mm_crc32_u64(state, word);
}

/// The register after kLaneBytes zeros, for each value of each of its bytes: it is linear in them.
using LaneShift = std::array<std::array<std::uint32_t, 256>, 4>;

LaneShift make_lane_shift() {
  LaneShift shift{};
  for (unsigned bit = 0; bit < 32; ++bit) {
    std::uint64_t state = 1U << bit;
    for (std::size_t i = 0; i < kLaneBytes; i += 8) {
      state = _mm_crc32_u64(state, 0);
    }
    for (std::size_t value = 0; value < 256; ++value) {
      if (((value >> (bit % 8)) & 1U) != 0) {
        shift[bit / 8][value] ^= static_cast<std::uint32_t>(state);
      }
    }
  }
  return shift;
}

std::uint64_t past_a_lane(const LaneShift& shift, std::uint64_t state) {
  return shift[0][state & 0xFFU] ^ shift[1][(state >> 8U) & 0xFFU] ^
         shift[2][(state >> 16U) & 0xFFU] ^ shift[3][(state >> 24U) & 0xFFU];
}

}  // namespace

std::uint32_t crc32c_sse42(std::span<const std::byte> bytes, std::uint32_t state) {
  std::uint64_t wide = state;
  const std::byte* at = bytes.data();
  std::size_t left = bytes.size();
  if (left >= 3 * kLaneBytes) {
    static const LaneShift shift = make_lane_shift();
    for (; left >= 3 * kLaneBytes; left -= 3 * kLaneBytes, at += 3 * kLaneBytes) {
      std::uint64_t second = 0;
      std::uint64_t third = 0;
      for (std::size_t i = 0; i < kLaneBytes; i += 8) {
        wide = add_word(wide, at + i);
        second = add_word(second, at + kLaneBytes + i);
        third = add_word(third, at + 2 * kLaneBytes + i);
      }
      wide = past_a_lane(shift, past_a_lane(shift, wide) ^ second) ^ third;
    }
  }
  for (; left >= 8; left -= 8, at += 8) {
    wide = add_word(wide, at);
  }
  auto narrow = static_cast<std::uint32_t>(wide);
  for (; left > 0; --left, ++at) {
    narrow = _mm_crc32_u8(narrow, static_cast<unsigned char>(*at));
  }
  return narrow;
}

}  // namespace librarian
