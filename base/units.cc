#include "base/units.h"

#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>

namespace librarian {
namespace {

struct NumberAndUnit {
  double number;
  std::string unit;  // lower case
};

Result<NumberAndUnit> split(std::string_view text, const char* what) {
  double number = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (status != std::errc() || !(number >= 0) || !std::isfinite(number)) {
    return Error(ErrorCode::invalid_argument, "'" + std::string(text) + "' is not " + what);
  }
  std::string unit;
  for (const char* at = end; at != text.data() + text.size(); ++at) {
    if (*at != ' ') {
      unit += static_cast<char>(std::tolower(static_cast<unsigned char>(*at)));
    }
  }
  return NumberAndUnit{number, unit};
}

std::string format(const char* pattern, double value) {
  std::array<char, 64> buffer{};
  std::snprintf(buffer.data(), buffer.size(), pattern, value);
  return buffer.data();
}

}  // namespace

Result<std::uint64_t> parse_bytes(std::string_view text) {
  struct Unit {
    std::string_view name;
    double bytes;
  };
  static constexpr std::array<Unit, 14> kUnits{{{"", 1},
                                                {"b", 1},
                                                {"k", 1e3},
                                                {"kb", 1e3},
                                                {"mb", 1e6},
                                                {"gb", 1e9},
                                                {"tb", 1e12},
                                                {"kib", 1024.0},
                                                {"mib", 1024.0 * 1024},
                                                {"gib", 1024.0 * 1024 * 1024},
                                                {"tib", 1024.0 * 1024 * 1024 * 1024},
                                                {"m", 1e6},
                                                {"g", 1e9},
                                                {"t", 1e12}}};
  static constexpr const char* kWhat = "a size; write for example 16GiB, 500MB or 4096";
  LIB_TRY(const NumberAndUnit parsed, split(text, kWhat));
  for (const Unit& unit : kUnits) {
    if (parsed.unit == unit.name) {
      const double bytes = parsed.number * unit.bytes;
      if (bytes < 9.2e18) {
        return static_cast<std::uint64_t>(bytes);
      }
    }
  }
  return Error(ErrorCode::invalid_argument, "'" + std::string(text) + "' is not " + kWhat);
}

Result<Duration> parse_duration(std::string_view text) {
  static constexpr const char* kWhat = "a time; write for example 10min, 30s, 2h or 0";
  LIB_TRY(const NumberAndUnit parsed, split(text, kWhat));
  double seconds = -1;
  if (parsed.unit == "ms") {
    seconds = parsed.number / 1e3;
  } else if (parsed.unit == "s" || (parsed.unit.empty() && parsed.number == 0)) {
    seconds = parsed.number;
  } else if (parsed.unit == "min") {
    seconds = parsed.number * 60;
  } else if (parsed.unit == "h") {
    seconds = parsed.number * 3600;
  }
  if (seconds < 0 || seconds > 3e8) {
    return Error(ErrorCode::invalid_argument, "'" + std::string(text) + "' is not " + kWhat);
  }
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

std::string format_bytes(std::uint64_t bytes) {
  if (bytes < kKiB) {
    return std::to_string(bytes) + " B";
  }
  static constexpr std::array<const char*, 5> kNames{"KiB", "MiB", "GiB", "TiB", "PiB"};
  double value = static_cast<double>(bytes) / 1024.0;
  std::size_t unit = 0;
  while (value >= 1000 && unit + 1 < kNames.size()) {
    value /= 1024.0;
    ++unit;
  }
  const char* pattern = value >= 99.95 ? "%.0f " : value >= 9.995 ? "%.1f " : "%.2f ";
  return format(pattern, value) + kNames[unit];
}

std::string format_duration(Duration duration) {
  const double seconds = std::chrono::duration<double>(duration).count();
  if (seconds < 1) {
    return format("%.0f ms", seconds * 1e3);
  }
  if (seconds < 99.95) {
    return format("%.1f s", seconds);
  }
  const auto total = static_cast<std::uint64_t>(std::llround(seconds));
  std::array<char, 64> buffer{};
  if (total < 3600) {
    std::snprintf(buffer.data(), buffer.size(), "%llumin %02llus",
                  static_cast<unsigned long long>(total / 60),
                  static_cast<unsigned long long>(total % 60));
  } else {
    std::snprintf(buffer.data(), buffer.size(), "%lluh %02llumin",
                  static_cast<unsigned long long>(total / 3600),
                  static_cast<unsigned long long>(total / 60 % 60));
  }
  return buffer.data();
}

std::string format_count(std::uint64_t count) {
  std::string digits = std::to_string(count);
  for (std::size_t at = digits.size(); at > 3; at -= 3) {
    digits.insert(at - 3, ",");
  }
  return digits;
}

}  // namespace librarian
