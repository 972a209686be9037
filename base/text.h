#pragma once
/// Small things done to text, the same on every machine and in every locale.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace librarian {

/// ASCII letters in lower case, every other byte as it is.
std::string lower_case(std::string_view text);

/// Two lower-case hex digits a byte.
std::string hex(std::span<const std::byte> bytes);

/// A decimal number of digits alone; nothing for anything else, and beyond 64 bits.
std::optional<std::uint64_t> parse_u64(std::string_view text);

}  // namespace librarian
