#pragma once
/// Sizes and times as people write and read them.

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/error.h"

namespace librarian {

inline constexpr std::uint64_t kKiB = 1024;
inline constexpr std::uint64_t kMiB = 1024 * kKiB;
inline constexpr std::uint64_t kGiB = 1024 * kMiB;

/// "16GiB", "500MB", "1.5GiB", "4096": bytes. Units B, kB, MB, GB, TB (1000) and KiB, MiB, GiB,
/// TiB (1024), in any case, with or without a space.
/// @error invalid_argument  Not a size, negative, or above 2^63 bytes.
Result<std::uint64_t> parse_bytes(std::string_view text);

/// "10min", "30s", "2h", "500ms", "0": a time.
/// @error invalid_argument  Not a time or negative.
Result<Duration> parse_duration(std::string_view text);

/// "1.50 GiB", "17 B": three significant digits, binary units.
std::string format_bytes(std::uint64_t bytes);
/// "2h 05min", "3min 20s", "12.3 s", "45 ms".
std::string format_duration(Duration duration);
/// "1,234,567".
std::string format_count(std::uint64_t count);

}  // namespace librarian
