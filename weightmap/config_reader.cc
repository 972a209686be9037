#include "weightmap/config_reader.h"

#include <cmath>

namespace librarian::weightmap {
namespace {

std::string shown(const Json& value) { return value.dump(-1, ' ', true).substr(0, 80); }

}  // namespace

Result<void> ConfigReader::add_spelling(const char* key, const char* spelling) {
  const auto first = document_.find(spelled(key));
  const auto second = document_.find(spelling);
  if (first != document_.end() && second != document_.end() && *first != *second &&
      !first->is_null() && !second->is_null()) {
    return refuse(key, "and '" + std::string(spelling) + "' differ: which one?");
  }
  spellings_[key].push_back(spelling);
  return {};
}

std::string ConfigReader::spelled(const std::string& key) const {
  const auto row = spellings_.find(key);
  const auto own = document_.find(key);
  if (row == spellings_.end() || (own != document_.end() && !own->is_null())) {
    return key;
  }
  for (const char* spelling : row->second) {
    if (document_.contains(spelling)) {
      return spelling;
    }
  }
  return own != document_.end() ? key : row->second.front();
}

void ConfigReader::mark_used(const std::string& key) {
  used_.insert(key);
  const auto row = spellings_.find(key);
  if (row != spellings_.end()) {
    used_.insert(row->second.begin(), row->second.end());
  }
}

bool ConfigReader::is_null(const char* key) {
  mark_used(key);
  const auto found = document_.find(spelled(key));
  return found != document_.end() && found->is_null();
}

const Json& ConfigReader::raw(const char* key) {
  static const Json null;
  mark_used(key);
  const auto found = document_.find(spelled(key));
  return found == document_.end() ? null : *found;
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

Result<std::uint32_t> ConfigReader::size(const char* key, std::uint32_t min, std::uint32_t max,
                                         std::uint32_t family_default) {
  if (has(key) || is_null(key) || !absent_sizes_allowed_) {
    return count(key, min, max);
  }
  sizes_taken_.push_back(spelled(key) + "=" + std::to_string(family_default));
  return family_default;
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

Result<std::vector<double>> ConfigReader::numbers(const char* key, std::size_t length, double min,
                                                  double max) {
  const Json& list = raw(key);
  if (list.is_null()) {
    return refuse(key, "is missing");
  }
  if (!list.is_array() || list.size() != length) {
    return refuse(key, "is not a list of " + std::to_string(length) + " numbers");
  }
  std::vector<double> values;
  for (const Json& item : list) {
    if (!item.is_number() || !(item.get<double>() >= min && item.get<double>() <= max)) {
      return refuse(key, "has " + shown(item) + ", which is no number or out of bounds");
    }
    values.push_back(item.get<double>());
  }
  return values;
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
  return Error(ErrorCode::bad_input, what_ + ": '" + spelled(key) + "' " + reason);
}

void ConfigReader::warn(const std::string& key, const std::string& remark) {
  warnings_.push_back(what_ + ": '" + spelled(key) + "' " + remark);
}

}  // namespace librarian::weightmap
