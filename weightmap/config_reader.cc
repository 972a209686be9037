#include "weightmap/config_reader.h"

#include <cmath>

namespace librarian::weightmap {
namespace {

std::string shown(const Json& value) { return value.dump(-1, ' ', true).substr(0, 80); }

}  // namespace

bool ConfigReader::is_null(const char* key) {
  used_.insert(key);
  const auto found = document_.find(key);
  return found != document_.end() && found->is_null();
}

const Json& ConfigReader::raw(const char* key) {
  static const Json kNull;
  used_.insert(key);
  const auto found = document_.find(key);
  return found == document_.end() ? kNull : *found;
}

Result<std::uint32_t> ConfigReader::count(const char* key, std::uint32_t min, std::uint32_t max,
                                          std::optional<std::uint32_t> fallback) {
  const Json& value = raw(key);
  if (value.is_null() && fallback) {
    return *fallback;
  }
  if (!value.is_number_unsigned()) {
    return refuse(key, value.is_null() ? "is missing"
                                       : "is " + shown(value) + ", not a non-negative integer");
  }
  const auto number = value.get<std::uint64_t>();
  if (number < min || number > max) {
    return refuse(key, "is " + std::to_string(number) + ", outside " + std::to_string(min) +
                           " to " + std::to_string(max));
  }
  return static_cast<std::uint32_t>(number);
}

Result<double> ConfigReader::number(const char* key, double min, double max,
                                    std::optional<double> fallback) {
  const Json& value = raw(key);
  if (value.is_null() && fallback) {
    return *fallback;
  }
  if (!value.is_number()) {
    return refuse(key, value.is_null() ? "is missing" : "is " + shown(value) + ", not a number");
  }
  const auto number = value.get<double>();
  if (!std::isfinite(number) || number < min || number > max) {
    return refuse(key, "is " + shown(value) + ", out of bounds");
  }
  return number;
}

Result<bool> ConfigReader::flag(const char* key, bool fallback) {
  const Json& value = raw(key);
  if (value.is_null()) {
    return fallback;
  }
  if (!value.is_boolean()) {
    return refuse(key, "is " + shown(value) + ", not true or false");
  }
  return value.get<bool>();
}

Result<std::string> ConfigReader::text(const char* key, const std::string& fallback) {
  const Json& value = raw(key);
  if (value.is_null()) {
    return fallback;
  }
  if (!value.is_string()) {
    return refuse(key, "is " + shown(value) + ", not a string");
  }
  return value.get<std::string>();
}

std::vector<std::string> ConfigReader::unused() const {
  std::vector<std::string> names;
  for (const auto& [key, value] : document_.items()) {
    if (!used_.contains(key)) {
      names.push_back(key);
    }
  }
  return names;
}

Error ConfigReader::refuse(const std::string& key, const std::string& reason) const {
  return Error(ErrorCode::bad_input, what_ + ": '" + key + "' " + reason);
}

}  // namespace librarian::weightmap
