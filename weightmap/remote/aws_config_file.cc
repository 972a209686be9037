#include "weightmap/remote/aws_config_file.h"

#include <algorithm>
#include <optional>

#include "base/text.h"

namespace librarian::weightmap::remote {
namespace {

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r'; }

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_space(text.front())) {
    text.remove_prefix(1);
  }
  while (!text.empty() && is_space(text.back())) {
    text.remove_suffix(1);
  }
  return text;
}

// A '#' or ';' begins a comment at the start of a line and after a space.
std::string_view without_comment(std::string_view line) {
  for (std::size_t i = 0; i < line.size(); ++i) {
    if ((line[i] == '#' || line[i] == ';') && (i == 0 || is_space(line[i - 1]))) {
      return line.substr(0, i);
    }
  }
  return line;
}

// `profile "my name"` as `profile my name`.
std::string section_name(std::string_view text) {
  std::string name;
  for (const char c : trim(text)) {
    if (c == '"' || (is_space(c) && !name.empty() && name.back() == ' ')) {
      continue;
    }
    name.push_back(is_space(c) ? ' ' : c);
  }
  return name;
}

class Parser {
 public:
  Result<void> add_line(std::string_view raw) {
    const std::string_view line = without_comment(raw);
    const std::string_view text = trim(line);
    if (text.empty()) {
      return {};
    }
    const bool indented = is_space(line.front());
    if (text.front() == '[') {
      if (text.back() != ']' || section_name(text.substr(1, text.size() - 2)).empty()) {
        return Error(ErrorCode::bad_input, "a section without its closing bracket");
      }
      section_ = &file_[section_name(text.substr(1, text.size() - 2))];
      parent_.clear();
      return {};
    }
    const std::size_t equals = text.find('=');
    const std::string name = lower_case(trim(text.substr(0, equals)));
    if (equals == std::string_view::npos || name.empty()) {
      // The further lines of a long value; nothing we read has any.
      return indented && section_ != nullptr && !last_name_.empty()
                 ? Result<void>()
                 : Error(ErrorCode::bad_input, "neither [section] nor name = value");
    }
    if (section_ == nullptr) {
      return Error(ErrorCode::bad_input, "a setting before the first [section]");
    }
    const std::string value(trim(text.substr(equals + 1)));
    if (indented && !parent_.empty()) {
      (*section_)[parent_ + "." + name] = value;
      return {};
    }
    (*section_)[name] = value;
    last_name_ = name;
    parent_ = value.empty() ? name : "";
    return {};
  }

  AwsConfigFile take() { return std::move(file_); }

 private:
  AwsConfigFile file_;
  std::map<std::string, std::string>* section_ = nullptr;
  std::string last_name_;
  std::string parent_;  // Of nested settings: a setting without a value of its own.
};

}  // namespace

Result<AwsConfigFile> parse_aws_config_file(std::string_view text) {
  if (text.size() > kAwsConfigFileBytesMax) {
    return Error(ErrorCode::bad_input, "more than 1 MiB is no AWS configuration");
  }
  if (text.substr(0, 3) == "\xEF\xBB\xBF") {
    text.remove_prefix(3);
  }
  Parser parser;
  for (std::uint64_t number = 1; !text.empty(); ++number) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (auto added = parser.add_line(line); !added) {
      return added.error().with_context("line " + std::to_string(number));
    }
  }
  return parser.take();
}

}  // namespace librarian::weightmap::remote
