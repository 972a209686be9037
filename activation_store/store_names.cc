#include "activation_store/store_names.h"

#include <algorithm>

#include "activation_store/array_writer.h"
#include "activation_store/store_files.h"

namespace librarian::activation_store {
namespace {

constexpr std::string_view kPartial = ".partial-";
constexpr std::string_view kPart = "part-";
constexpr std::size_t kPartDigits = 5;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_hex_digit(char c) { return is_digit(c) || (c >= 'a' && c <= 'f'); }
bool is_capture_character(char c) { return (c >= 'a' && c <= 'z') || c == '_'; }

/// "resid_post", "attn.q": words of a-z and '_' joined by dots.
bool is_capture_word(std::string_view text) {
  bool after_dot = true;
  for (const char c : text) {
    if (c == '.') {
      if (after_dot) {
        return false;
      }
      after_dot = true;
    } else if (is_capture_character(c)) {
      after_dot = false;
    } else {
      return false;
    }
  }
  return !after_dot;
}

}  // namespace

std::optional<std::uint64_t> parse_decimal(std::string_view text) {
  if (text.empty() || text.size() > 18 || (text.size() > 1 && text.front() == '0') ||
      !std::all_of(text.begin(), text.end(), is_digit)) {
    return std::nullopt;
  }
  std::uint64_t value = 0;
  for (const char c : text) {
    value = value * 10 + static_cast<std::uint64_t>(c - '0');
  }
  return value;
}

bool is_partial_name(std::string_view text, std::string_view name) {
  if (text.substr(0, name.size()) != name) {
    return false;
  }
  text.remove_prefix(name.size());
  if (text.substr(0, kPartial.size()) != kPartial) {
    return false;
  }
  text.remove_prefix(kPartial.size());
  return !text.empty() && text.size() <= 64 && std::all_of(text.begin(), text.end(), is_hex_digit);
}

std::optional<std::uint64_t> parse_part_directory_name(std::string_view name) {
  if (name.substr(0, kPart.size()) != kPart) {
    return std::nullopt;
  }
  std::string_view digits = name.substr(kPart.size());
  if (digits.size() < kPartDigits || (digits.size() > kPartDigits && digits.front() == '0')) {
    return std::nullopt;
  }
  digits.remove_prefix(std::min(digits.find_first_not_of('0'), digits.size() - 1));
  return parse_decimal(digits);
}

bool is_safe_relative_path(std::string_view path) {
  std::size_t begin = 0;
  while (begin <= path.size()) {
    const std::size_t end = std::min(path.find('/', begin), path.size());
    const std::string_view name = path.substr(begin, end - begin);
    const bool plain = std::all_of(name.begin(), name.end(), [](char c) {
      return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' ||
             c == '_' || c == '-';
    });
    if (name.empty() || name == "." || name == ".." || !plain) {
      return false;
    }
    begin = end + 1;
  }
  return true;
}

std::string partial_path(const std::string& path, const std::string& nonce) {
  return path + std::string(kPartial) + nonce;
}

std::string shard_path(const ArrayLayout& layout, std::uint64_t shard) {
  return "c/" + std::to_string(shard) + (layout.is_vector ? "" : "/0");
}

bool is_rows_path(std::string_view path) {
  constexpr std::string_view kRows = "tokens/rows_";
  return path.starts_with(kRows) && path.size() > kRows.size() && path.size() <= 64 &&
         std::all_of(path.begin() + kRows.size(), path.end(),
                     [](char c) { return is_digit(c) || is_capture_character(c); });
}

std::string part_directory_name(std::uint64_t part_index) {
  std::string digits = std::to_string(part_index);
  digits.insert(0, kPartDigits - std::min(kPartDigits, digits.size()), '0');
  return std::string(kPart) + digits;
}

bool is_array_name(const std::string& name) {
  constexpr std::string_view kScales = ".scales";
  const std::string_view whole = name;
  const std::string_view plain =
      whole.ends_with(kScales) ? whole.substr(0, whole.size() - kScales.size()) : whole;
  if (plain == "embed" || plain == "final.pre_norm" || plain == "final.post_norm") {
    return true;
  }
  constexpr std::string_view kTopk = "logits.topk.";
  if (whole.starts_with(kTopk)) {
    return is_capture_word(whole.substr(kTopk.size()));
  }
  constexpr std::string_view kBlocks = "blocks.";
  if (name.size() > 128 || name.compare(0, kBlocks.size(), kBlocks) != 0) {
    return false;
  }
  const std::size_t dot = name.find('.', kBlocks.size());
  if (dot == std::string::npos) {
    return false;
  }
  const std::string_view view = name;
  const auto layer = parse_decimal(view.substr(kBlocks.size(), dot - kBlocks.size()));
  return layer && *layer < 1'000'000 && is_capture_word(view.substr(dot + 1));
}

}  // namespace librarian::activation_store
