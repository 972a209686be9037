#pragma once
/// Typed access to config.json that remembers which keys were looked at.

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace librarian::weightmap {

/// Not thread-safe. A null value counts as absent, as transformers treats it.
class ConfigReader {
 public:
  /// @param document  An object; must outlive the reader.
  /// @param what      Where it is from, for errors.
  ConfigReader(const Json& document, std::string what)
      : document_(document), what_(std::move(what)) {}

  /// Present and not null.
  bool has(const char* key) { return !raw(key).is_null(); }
  /// Present and null: for the few keys where that differs from absent.
  bool is_null(const char* key);
  /// The raw value, null if absent.
  const Json& raw(const char* key);

  /// @error bad_input  Absent without a fallback, of another kind, or outside [min, max].
  Result<std::uint32_t> count(const char* key, std::uint32_t min, std::uint32_t max,
                              std::optional<std::uint32_t> fallback = std::nullopt);
  Result<double> number(const char* key, double min, double max,
                        std::optional<double> fallback = std::nullopt);
  Result<bool> flag(const char* key, bool fallback);
  Result<std::string> text(const char* key, const std::string& fallback);

  /// Accepts and forgets a key.
  void ignore(const char* key) { used_.insert(key); }
  /// Keys that nobody asked for.
  std::vector<std::string> unused() const;

  /// An error about one key.
  Error refuse(const std::string& key, const std::string& reason) const;
  const std::string& what() const { return what_; }

 private:
  const Json& document_;
  std::string what_;
  std::set<std::string> used_;
};

}  // namespace librarian::weightmap
