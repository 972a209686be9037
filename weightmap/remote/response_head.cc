#include <algorithm>
#include <cctype>

#include "base/text.h"
#include "weightmap/remote/response_check.h"

namespace librarian::weightmap::remote {
namespace {

// Real heads are under 8 KiB; the caps keep a hostile one from becoming memory or time.
constexpr std::uint64_t kHeadBytesMax = 64U << 10U;
constexpr std::size_t kFieldsMax = 256;

std::string_view trim(std::string_view text) {
  const auto is_space = [](char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; };
  while (!text.empty() && is_space(text.front())) {
    text.remove_prefix(1);
  }
  while (!text.empty() && is_space(text.back())) {
    text.remove_suffix(1);
  }
  return text;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// RFC 9110 5.6.2. A space in a name or a folded line is how two readers are made to disagree.
bool is_token(std::string_view text) {
  constexpr std::string_view kSymbols = "!#$%&'*+-.^_`|~";
  return !text.empty() && std::all_of(text.begin(), text.end(), [&](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 ||
           kSymbols.find(c) != std::string_view::npos;
  });
}

}  // namespace

Result<void> ResponseHead::add_line(std::string_view line) {
  bytes_ += line.size();
  if (bytes_ > kHeadBytesMax || fields_.size() >= kFieldsMax) {
    return Error(ErrorCode::unavailable, "the server's response head is larger than 64 KiB");
  }
  if (line.rfind("HTTP/", 0) == 0 && (complete_ || fields_.empty())) {
    const std::size_t space = line.find(' ');
    if (space == std::string_view::npos || line.size() < space + 4 || !is_digit(line[space + 1]) ||
        !is_digit(line[space + 2]) || !is_digit(line[space + 3])) {
      return Error(ErrorCode::unavailable, "the server's status line is not HTTP");
    }
    status_ =
        (line[space + 1] - '0') * 100 + (line[space + 2] - '0') * 10 + (line[space + 3] - '0');
    fields_.clear();
    complete_ = false;
    return {};
  }
  if (complete_) {
    return {};  // A trailer; nothing we use may come that late.
  }
  if (status_ == 0) {
    return Error(ErrorCode::unavailable, "the server's answer does not begin with a status line");
  }
  if (trim(line).empty()) {
    complete_ = true;
    return {};
  }
  const std::size_t colon = line.find(':');
  if (colon == std::string_view::npos || !is_token(line.substr(0, colon))) {
    return Error(ErrorCode::unavailable,
                 "the server's response head has a line without a proper name");
  }
  fields_.emplace_back(lower_case(line.substr(0, colon)),
                       std::string(trim(line.substr(colon + 1))));
  return {};
}

std::optional<std::string> ResponseHead::find(std::string_view name) const {
  for (const auto& [field, value] : fields_) {
    if (field == name) {
      return value;
    }
  }
  return std::nullopt;
}

bool ResponseHead::contradicts_itself(std::string_view name) const {
  const auto first = find(name);
  return std::any_of(fields_.begin(), fields_.end(), [&](const auto& field) {
    return field.first == name && field.second != *first;
  });
}

}  // namespace librarian::weightmap::remote
