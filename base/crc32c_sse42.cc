// Compiled with -msse4.2: nothing here may run before the CPU was asked.
#include "base/crc32c_sse42.h"

#include <nmmintrin.h>

#include <array>
#include <cstring>

namespace librarian {
namespace {

// The instruction takes three cycles and a new one can begin in each: three lanes of bytes keep it
// busy, and are joined afterwards. Long lanes also keep three pages on their way from memory.
constexpr std::size_t kLongLaneBytes = 32768;
constexpr std::size_t kShortLaneBytes = 2048;
constexpr std::size_t kLineBytes = 64;
// The hardware's prefetcher begins anew in each page, which costs half the rate of memory.
constexpr std::size_t kPrefetchBytes = 1024;

std::uint64_t add_word(std::uint64_t state, const std::byte* at) {
  std::uint64_t word = 0;
  std::memcpy(&word, at, 8);
  return _mm_crc32_u64(state, word);
}

/// The register after a lane of zeros, for each value of each of its bytes: it is linear in them.
using LaneShift = std::array<std::array<std::uint32_t, 256>, 4>;

LaneShift make_lane_shift(std::size_t lane_bytes) {
  LaneShift shift{};
  for (unsigned bit = 0; bit < 32; ++bit) {
    std::uint64_t state = 1U << bit;
    for (std::size_t i = 0; i < lane_bytes; i += 8) {
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

void prefetch(const std::byte* at) {
  // As a number: the place may lie behind the end, where a pointer may not point.
  const auto address = reinterpret_cast<std::uintptr_t>(at) + kPrefetchBytes;
  _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T0);  // NOLINT
}

/// Takes as many bytes off `bytes` as fill three lanes each.
template <std::size_t kLaneBytes>
std::uint64_t add_lanes(std::span<const std::byte>& bytes, std::uint64_t state) {
  if (bytes.size() < 3 * kLaneBytes) {
    return state;
  }
  static const LaneShift shift = make_lane_shift(kLaneBytes);
  for (; bytes.size() >= 3 * kLaneBytes; bytes = bytes.subspan(3 * kLaneBytes)) {
    std::uint64_t second = 0;
    std::uint64_t third = 0;
    const std::byte* at = bytes.data();
    for (const std::byte* const end = at + kLaneBytes; at != end; at += kLineBytes) {
      prefetch(at);
      prefetch(at + kLaneBytes);
      prefetch(at + 2 * kLaneBytes);
      for (std::size_t i = 0; i < kLineBytes; i += 8) {
        state = add_word(state, at + i);
        second = add_word(second, at + kLaneBytes + i);
        third = add_word(third, at + 2 * kLaneBytes + i);
      }
    }
    state = past_a_lane(shift, past_a_lane(shift, state) ^ second) ^ third;
  }
  return state;
}

}  // namespace

std::uint32_t crc32c_sse42(std::span<const std::byte> bytes, std::uint32_t state) {
  std::uint64_t wide = add_lanes<kLongLaneBytes>(bytes, state);
  wide = add_lanes<kShortLaneBytes>(bytes, wide);
  for (; bytes.size() >= 8; bytes = bytes.subspan(8)) {
    wide = add_word(wide, bytes.data());
  }
  auto narrow = static_cast<std::uint32_t>(wide);
  for (const std::byte byte : bytes) {
    narrow = _mm_crc32_u8(narrow, static_cast<unsigned char>(byte));
  }
  return narrow;
}

}  // namespace librarian
