#include "base/random.h"

#include <random>

namespace librarian {

std::uint64_t random_u64() {
  static thread_local std::random_device device;
  return (static_cast<std::uint64_t>(device()) << 32U) | device();
}

std::string random_hex(int digits) {
  static constexpr char kHexDigits[] = "0123456789abcdef";
  std::string text;
  std::uint64_t bits = 0;
  for (int i = 0; i < digits; ++i) {
    if (i % 16 == 0) {
      bits = random_u64();
    }
    text += kHexDigits[bits & 0xFU];
    bits >>= 4U;
  }
  return text;
}

}  // namespace librarian
