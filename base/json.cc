#include "base/json.h"

#include <unordered_set>
#include <utility>
#include <vector>

namespace librarian {
namespace {

/// Builds the document while counting; returns false from an event to stop the parser.
class LimitedBuilder final : public nlohmann::json_sax<Json> {
 public:
  explicit LimitedBuilder(const JsonLimits& limits) : limits_(limits) {}

  bool null() override { return add(Json(nullptr)) != nullptr; }
  bool boolean(bool value) override { return add(Json(value)) != nullptr; }
  bool number_integer(number_integer_t value) override { return add(Json(value)) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return add(Json(value)) != nullptr; }
  bool number_float(number_float_t value, const string_t& /*text*/) override {
    return add(Json(value)) != nullptr;
  }
  bool string(string_t& value) override {
    if (value.size() > limits_.string_bytes_max) {
      return fail("a string of " + std::to_string(value.size()) + " bytes");
    }
    return add(Json(std::move(value))) != nullptr;
  }
  bool binary(binary_t& /*value*/) override { return fail("binary data"); }

  bool start_object(std::size_t /*elements*/) override { return open(Json::object()); }
  bool start_array(std::size_t /*elements*/) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& value) override {
    if (value.size() > limits_.key_bytes_max) {
      return fail("a key of " + std::to_string(value.size()) + " bytes");
    }
    if (!stack_.back().keys.insert(value).second) {
      return fail("the key '" + value + "' twice in one object");
    }
    stack_.back().key = std::move(value);
    return true;
  }

  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& /*error*/) override {
    return fail("a syntax error at byte " + std::to_string(position));
  }

  const std::string& failure() const { return failure_; }
  Json take() { return std::move(root_); }

 private:
  struct Level {
    Json* container;
    std::string key;
    std::unordered_set<std::string> keys;
  };

  bool fail(std::string reason) {
    failure_ = std::move(reason);
    return false;
  }

  Json* add(Json value) {
    if (++values_ > limits_.values_max) {
      fail("more than " + std::to_string(limits_.values_max) + " values");
      return nullptr;
    }
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& container = *stack_.back().container;
    if (container.is_array()) {
      container.push_back(std::move(value));
      return &container.back();
    }
    // ordered_json looks a key up in linear time; `keys` has ruled out duplicates already, so the
    // pair is appended as it is.
    auto& members = container.get_ref<Json::object_t&>();
    members.Json::object_t::Container::emplace_back(std::move(stack_.back().key), std::move(value));
    return &members.back().second;
  }

  bool open(Json container) {
    if (stack_.size() >= limits_.depth_max) {
      return fail("more than " + std::to_string(limits_.depth_max) + " levels of nesting");
    }
    Json* added = add(std::move(container));
    if (added == nullptr) {
      return false;
    }
    stack_.push_back(Level{added, {}, {}});
    return true;
  }

  bool close() {
    stack_.pop_back();
    return true;
  }

  const JsonLimits& limits_;
  Json root_;
  // Containers are only appended to while they are the innermost, so the pointers stay valid.
  std::vector<Level> stack_;
  std::size_t values_ = 0;
  std::string failure_;
};

Error missing(const Json& object, const char* key, const std::string& what, const char* kind) {
  const bool present = object.is_object() && object.contains(key);
  return Error(ErrorCode::bad_input,
               what + ": '" + key + "' is " + (present ? "not " : "missing; it must be ") + kind);
}

}  // namespace

namespace {

Result<Json> parse_from(char first, std::string_view text, const std::string& what,
                        const JsonLimits& limits) {
  if (text.size() > limits.text_bytes_max) {
    return Error(ErrorCode::bad_input,
                 what + ": " + std::to_string(text.size()) + " bytes of JSON, more than the " +
                     std::to_string(limits.text_bytes_max) + " that are accepted");
  }
  // The parser would take a NUL for the end and not see what follows.
  if (text.empty() || text.front() != first || text.find('\0') != std::string_view::npos) {
    return Error(ErrorCode::bad_input, what + ": not a JSON " +
                                           (first == '{' ? "object" : "array") +
                                           " (it must begin with '" + first + "' and hold no NUL)");
  }
  LimitedBuilder builder(limits);
  if (!Json::sax_parse(text.begin(), text.end(), &builder)) {
    return Error(ErrorCode::bad_input, what + ": not usable JSON: " + builder.failure());
  }
  return builder.take();
}

}  // namespace

Result<Json> parse_json(std::string_view text, const std::string& what, const JsonLimits& limits) {
  return parse_from('{', text, what, limits);
}

Result<Json> parse_json_array(std::string_view text, const std::string& what,
                              const JsonLimits& limits) {
  return parse_from('[', text, what, limits);
}

Result<std::uint64_t> json_uint(const Json& object, const char* key, const std::string& what) {
  if (!object.is_object() || !object.contains(key) || !object.at(key).is_number_unsigned()) {
    return missing(object, key, what, "a non-negative integer");
  }
  return object.at(key).get<std::uint64_t>();
}

Result<std::string> json_string(const Json& object, const char* key, const std::string& what) {
  if (!object.is_object() || !object.contains(key) || !object.at(key).is_string()) {
    return missing(object, key, what, "a string");
  }
  return object.at(key).get<std::string>();
}

Result<bool> json_bool(const Json& object, const char* key, const std::string& what) {
  if (!object.is_object() || !object.contains(key) || !object.at(key).is_boolean()) {
    return missing(object, key, what, "true or false");
  }
  return object.at(key).get<bool>();
}

}  // namespace librarian
