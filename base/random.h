#pragma once
/// Randomness for names and jitter; never for anything that reaches array data.

#include <cstdint>
#include <string>

namespace librarian {

/// 64 bits from the operating system.
std::uint64_t random_u64();
/// `digits` random lower-case hex digits.
std::string random_hex(int digits);

}  // namespace librarian
