#pragma once
/// The bytes of the file that fetch_contenders.py serves: behind a safetensors header padded to
/// 4096 bytes, each 8-byte word is a function of its place, so that any byte that is wrong or in
/// the wrong place shows. fetch_contenders.py writes the same.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>

namespace librarian::bench {

inline constexpr std::uint64_t kPatternBegin = 4096;

inline std::uint64_t pattern_word(std::uint64_t index) {
  const std::uint64_t word = index * 0x9E3779B97F4A7C15U;
  return word ^ (word >> 29U);
}

/// Looks at one word in each `step` bytes of [begin, end) of the file, which lie at `bytes`.
/// @param begin, step  Multiples of 8.
/// @return the place in the file of the first wrong word.
inline std::optional<std::uint64_t> find_wrong(const std::byte* bytes, std::uint64_t begin,
                                               std::uint64_t end, std::uint64_t step) {
  for (std::uint64_t at = begin; at + 8 <= end; at += step) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes + (at - begin), sizeof(word));
    if (at >= kPatternBegin && word != pattern_word(at / 8)) {
      return at;
    }
  }
  return std::nullopt;
}

}  // namespace librarian::bench
