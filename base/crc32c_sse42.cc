// Compiled with -msse4.2: nothing here may run before the CPU was asked.
#include "base/crc32c_sse42.h"

#include <nmmintrin.h>

#include <cstring>

namespace librarian {

std::uint32_t crc32c_sse42(std::span<const std::byte> bytes, std::uint32_t state) {
  std::uint64_t wide = state;
  const std::byte* at = bytes.data();
  std::size_t left = bytes.size();
  for (; left >= 8; left -= 8, at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, at, 8);
    wide = _mm_crc32_u64(wide, word);
  }
  auto narrow = static_cast<std::uint32_t>(wide);
  for (; left > 0; --left, ++at) {
    narrow = _mm_crc32_u8(narrow, static_cast<unsigned char>(*at));
  }
  return narrow;
}

}  // namespace librarian
