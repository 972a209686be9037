// Compiled with -msse4.2: nothing here may run before the CPU was asked.
#include "base/crc32c_sse42.h"

#include <nmmintrin.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace librarian {
namespace {

// The instruction takes three cycles and a new one can begin in each: three lanes of bytes keep it
// busy, and are joined afterwards. Short lanes take what is too little for long ones; the longest
// also keep three pages on their way from memory.
constexpr std::size_t kPageLaneBytes = 32768;
constexpr std::size_t kLongLaneBytes = 2048;
constexpr std::size_t kShortLaneBytes = 256;
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

/// Where the bytes go while they are summed: nowhere, or past the cache to `to`.
struct Nowhere {
  static constexpr bool kFromMemory = true;
  void line(const std::byte* from, std::size_t offset) const {
    // As a number: the place may lie behind the end, where a pointer may not point.
    const auto address = reinterpret_cast<std::uintptr_t>(from) + offset + kPrefetchBytes;
    _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T0);  // NOLINT
  }
  void rest(const std::byte* /*from*/, std::size_t /*bytes*/) const {}
  void advance(std::size_t /*bytes*/) const {}
};

struct PastCache {
  static constexpr bool kFromMemory = false;  // From where they were just received.
  std::byte* to;                              // Aligned to kLineBytes where line() is called.
  void line(const std::byte* from, std::size_t offset) const {
    const auto* source = reinterpret_cast<const __m128i*>(from + offset);
    auto* target = reinterpret_cast<__m128i*>(to + offset);
    const __m128i a = _mm_loadu_si128(source);
    const __m128i b = _mm_loadu_si128(source + 1);
    const __m128i c = _mm_loadu_si128(source + 2);
    const __m128i d = _mm_loadu_si128(source + 3);
    _mm_stream_si128(target, a);
    _mm_stream_si128(target + 1, b);
    _mm_stream_si128(target + 2, c);
    _mm_stream_si128(target + 3, d);
  }
  void rest(const std::byte* from, std::size_t bytes) const { std::memcpy(to, from, bytes); }
  void advance(std::size_t bytes) { to += bytes; }
};

template <typename Sink>
class Pass {
 public:
  Pass(std::span<const std::byte> bytes, std::uint64_t state, Sink sink)
      : at_(bytes.data()), left_(bytes.size()), state_(state), sink_(sink) {}

  template <std::size_t lane_bytes>
  void lanes() {
    if (left_ < 3 * lane_bytes) {
      return;
    }
    static const LaneShift shift = make_lane_shift(lane_bytes);
    while (left_ >= 3 * lane_bytes) {
      std::uint64_t first = state_;
      std::uint64_t second = 0;
      std::uint64_t third = 0;
      for (std::size_t i = 0; i < lane_bytes; i += kLineBytes) {
        for (std::size_t lane = 0; lane < 3; ++lane) {
          sink_.line(at_, lane * lane_bytes + i);
        }
        for (std::size_t word = i; word < i + kLineBytes; word += 8) {
          first = add_word(first, at_ + word);
          second = add_word(second, at_ + lane_bytes + word);
          third = add_word(third, at_ + 2 * lane_bytes + word);
        }
      }
      state_ = past_a_lane(shift, past_a_lane(shift, first) ^ second) ^ third;
      advance(3 * lane_bytes);
    }
  }

  void lines() {
    while (left_ >= kLineBytes) {
      sink_.line(at_, 0);
      for (std::size_t word = 0; word < kLineBytes; word += 8) {
        state_ = add_word(state_, at_ + word);
      }
      advance(kLineBytes);
    }
  }

  void rest(std::size_t bytes) {
    sink_.rest(at_, bytes);
    std::size_t done = 0;
    for (; done + 8 <= bytes; done += 8) {
      state_ = add_word(state_, at_ + done);
    }
    auto narrow = static_cast<std::uint32_t>(state_);
    for (; done < bytes; ++done) {
      narrow = _mm_crc32_u8(narrow, static_cast<unsigned char>(at_[done]));
    }
    state_ = narrow;
    advance(bytes);
  }

  /// All that is left.
  std::uint32_t finish() {
    if constexpr (Sink::kFromMemory) {
      lanes<kPageLaneBytes>();
    }
    lanes<kLongLaneBytes>();
    lanes<kShortLaneBytes>();
    lines();
    rest(left_);
    return static_cast<std::uint32_t>(state_);
  }

 private:
  void advance(std::size_t bytes) {
    sink_.advance(bytes);
    at_ += bytes;
    left_ -= bytes;
  }

  const std::byte* at_;
  std::size_t left_;
  std::uint64_t state_;
  Sink sink_;
};

}  // namespace

std::uint32_t crc32c_sse42(std::span<const std::byte> bytes, std::uint32_t state) {
  return Pass<Nowhere>(bytes, state, {}).finish();
}

std::uint32_t copy_with_crc32c_sse42(std::byte* to, std::span<const std::byte> from,
                                     std::uint32_t state) {
  Pass<PastCache> pass(from, state, {to});
  const std::size_t past_line = reinterpret_cast<std::uintptr_t>(to) % kLineBytes;
  pass.rest(std::min(from.size(), (kLineBytes - past_line) % kLineBytes));
  const std::uint32_t end = pass.finish();
  _mm_sfence();  // Before anybody is told that the bytes are there.
  return end;
}

}  // namespace librarian
