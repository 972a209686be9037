#pragma once
/// Typed access to config.json that remembers which keys were looked at.

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace librarian::weightmap {

/// Not thread-safe. A null value counts as absent, as transformers treats it.
/// A key may have other spellings; errors name the one that the document has.
class ConfigReader {
 public:
  /// @param document  An object; must outlive the reader.
  /// @param what      Where it is from, for errors.
  ConfigReader(const Json& document, std::string what)
      : document_(document), what_(std::move(what)) {}

  /// @param key, spelling  Must outlive the reader.
  /// @error bad_input  Both are there and differ.
  Result<void> add_spelling(const char* key, const char* spelling);

  /// Present and not null.
  bool has(const char* key) { return !raw(key).is_null(); }
  /// Present and null: for the few keys where that differs from absent.
  bool is_null(const char* key);
  /// The raw value, null if absent.
  const Json& raw(const char* key);

  /// @error bad_input  Absent without a fallback, of another kind, or outside [min, max].
  Result<std::uint32_t> count(const char* key, std::uint32_t min, std::uint32_t max,
                              std::optional<std::uint32_t> fallback = std::nullopt);
  /// As count(), for a key that only the part of a larger document may leave out, where it is
  /// `family_default`; a null is refused, and what was taken for granted is remembered.
  Result<std::uint32_t> size(const char* key, std::uint32_t min, std::uint32_t max,
                             std::uint32_t family_default);
  void allow_absent_sizes() { absent_sizes_allowed_ = true; }
  const std::vector<std::string>& sizes_taken() const { return sizes_taken_; }
  Result<double> number(const char* key, double min, double max,
                        std::optional<double> fallback = std::nullopt);
  Result<bool> flag(const char* key, bool fallback);
  Result<std::string> text(const char* key, const std::string& fallback);
  /// A list of `length` numbers in [min, max].
  Result<std::vector<double>> numbers(const char* key, std::size_t length, double min, double max);

  /// Accepts and forgets a key.
  void ignore(const char* key) { used_.insert(key); }
  /// Keys that nobody asked for.
  std::vector<std::string> unused() const;

  /// An error about one key.
  Error refuse(const std::string& key, const std::string& reason) const;
  const std::string& what() const { return what_; }

  /// A remark about one key that the user should read.
  void warn(const std::string& key, const std::string& remark);
  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  /// The spelling of `key` that the document has, else the preferred one.
  std::string spelled(const std::string& key) const;
  void mark_used(const std::string& key);

  const Json& document_;
  std::string what_;
  std::set<std::string> used_;
  std::map<std::string, std::vector<const char*>> spellings_;  // The preferred one first.
  std::vector<std::string> warnings_;
  std::vector<std::string> sizes_taken_;
  bool absent_sizes_allowed_ = false;
};

}  // namespace librarian::weightmap
