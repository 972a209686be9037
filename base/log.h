#pragma once
/// Events with fields. Messages go to standard error; results never do.

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace librarian {

enum class LogLevel : std::uint8_t { debug, info, warning, error };

using LogValue = std::variant<std::int64_t, std::uint64_t, double, std::string>;

/// One `name=value` of a log line.
struct LogField {
  std::string_view name;
  LogValue value;

  LogField(std::string_view n, std::uint64_t v) : name(n), value(v) {}
  LogField(std::string_view n, std::int64_t v) : name(n), value(v) {}
  LogField(std::string_view n, int v) : name(n), value(static_cast<std::int64_t>(v)) {}
  LogField(std::string_view n, double v) : name(n), value(v) {}
  LogField(std::string_view n, std::string v) : name(n), value(std::move(v)) {}
  LogField(std::string_view n, const char* v) : name(n), value(std::string(v)) {}
};

/// Writes one event. Thread-safe. Never put a secret or the query of a signed URL into a field.
void log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields = {});

/// Events below `level` are dropped. Default: warning.
void set_log_level(LogLevel level);

}  // namespace librarian
