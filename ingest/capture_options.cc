#include "ingest/capture_options.h"

#include <algorithm>
#include <charconv>
#include <map>

#include "base/text.h"

namespace librarian::ingest {
namespace {

using Options = std::map<std::string_view, std::string_view>;

constexpr std::int64_t kPositionMax = 1'000'000'000;

Error wrong(std::string reason) { return Error(ErrorCode::invalid_argument, std::move(reason)); }

/// "key=value,key=value". @param allowed  For the message.
Result<Options> split_options(std::string_view text, const char* allowed) {
  Options options;
  while (true) {
    const std::size_t comma = text.find(',');
    std::string_view item = text.substr(0, comma);
    item.remove_prefix(std::min(item.find_first_not_of(' '), item.size()));
    const std::size_t equals = item.find('=');
    if (equals == std::string_view::npos) {
      return wrong(std::string("options in brackets are written key=value; there are ") + allowed);
    }
    if (!options.emplace(item.substr(0, equals), item.substr(equals + 1)).second) {
      return wrong("'" + std::string(item.substr(0, equals)) + "' is given twice");
    }
    if (comma == std::string_view::npos) {
      return options;
    }
    text.remove_prefix(comma + 1);
  }
}

/// Takes an option out, so that what is left at the end is unknown.
std::optional<std::string_view> take(Options& options, std::string_view key) {
  const auto found = options.find(key);
  if (found == options.end()) {
    return std::nullopt;
  }
  const std::string_view value = found->second;
  options.erase(found);
  return value;
}

Result<void> nothing_left(const Options& options, const char* allowed) {
  return options.empty() ? Result<void>()
                         : wrong("no option '" + std::string(options.begin()->first) +
                                 "'; there are " + allowed);
}

std::optional<std::int64_t> parse_position(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc() || end != text.data() + text.size() || value > kPositionMax ||
      value < -kPositionMax) {
    return std::nullopt;
  }
  return value;
}

Result<Positions> parse_positions(std::optional<std::string_view> text, Positions::Kind loss) {
  Positions positions;
  if (!text || *text == "all") {
    return positions;
  }
  if (*text == "loss") {
    positions.kind = loss;
    return positions;
  }
  if (*text == "last") {
    positions.kind = Positions::Kind::last;
    return positions;
  }
  const std::size_t dots = text->find("..");
  const auto first = parse_position(text->substr(0, dots));
  const auto last =
      dots == std::string_view::npos ? std::nullopt : parse_position(text->substr(dots + 2));
  if (!first || !last) {
    return wrong("positions are written all, loss, last or a..b, such as 0..15 or -16..-1");
  }
  if ((*first < 0) == (*last < 0) && *first > *last) {
    return wrong("the range of positions is empty");
  }
  positions.kind = Positions::Kind::range;
  positions.first = *first;
  positions.last = *last;
  return positions;
}

std::string in_brackets(const std::string& text) { return text.empty() ? "" : "(" + text + ")"; }

void add(std::string& text, const std::string& option) {
  text += (text.empty() ? "" : ",") + option;
}

std::string position_name(std::int64_t position) {
  return position < 0 ? "m" + std::to_string(-position) : std::to_string(position);
}

}  // namespace

std::string Positions::text() const {
  switch (kind) {
    case Kind::all:
      return "all";
    case Kind::loss:
    case Kind::loss_next:
      return "loss";
    case Kind::last:
      return "last";
    case Kind::range:
      return std::to_string(first) + ".." + std::to_string(last);
  }
  LIB_CHECK(false);
}

std::string Positions::rows_name() const {
  switch (kind) {
    case Kind::all:
      return "";
    case Kind::loss:
      return "rows_loss";
    case Kind::loss_next:
      return "rows_loss_next";
    case Kind::last:
      return "rows_last";
    case Kind::range:
      return "rows_" + position_name(first) + "_" + position_name(last);
  }
  LIB_CHECK(false);
}

std::string ArrayOptions::text() const {
  std::string text;
  if (fp8) {
    add(text, "dtype=fp8_e4m3");
  }
  if (keep_mantissa_bits != 0) {
    add(text, "keep_mantissa_bits=" + std::to_string(keep_mantissa_bits));
  }
  if (positions.kind != Positions::Kind::all) {
    add(text, "positions=" + positions.text());
  }
  return in_brackets(text);
}

std::string LogitsTopk::text() const {
  std::string text = "k=" + std::to_string(k);
  if (positions.kind != Positions::Kind::all) {
    add(text, "positions=" + positions.text());
  }
  return in_brackets(text);
}

Result<ArrayOptions> parse_array_options(std::string_view text) {
  static constexpr const char* kAllowed = "positions, keep_mantissa_bits, dtype";
  LIB_TRY(Options options, split_options(text, kAllowed));
  ArrayOptions result;
  LIB_TRY(result.positions, parse_positions(take(options, "positions"), Positions::Kind::loss));
  if (const auto bits = take(options, "keep_mantissa_bits")) {
    const std::optional<std::uint64_t> number = parse_u64(*bits);
    if (!number || *number < 3 || *number > 6) {
      return wrong("keep_mantissa_bits must be 3 to 6");
    }
    result.keep_mantissa_bits = static_cast<std::uint32_t>(*number);
  }
  if (const auto dtype = take(options, "dtype")) {
    if (*dtype != "fp8_e4m3") {
      return wrong("dtype in brackets can only be fp8_e4m3; --dtype sets what is computed in");
    }
    result.fp8 = true;
  }
  if (result.fp8 && result.keep_mantissa_bits != 0) {
    return wrong("fp8_e4m3 has 3 bits of mantissa; leave out keep_mantissa_bits");
  }
  LIB_TRY_VOID(nothing_left(options, kAllowed));
  return result;
}

Result<LogitsTopk> parse_logits_options(std::string_view text, std::uint32_t vocab_size) {
  static constexpr const char* kAllowed = "k, positions";
  LIB_TRY(Options options, split_options(text, kAllowed));
  LogitsTopk result;
  LIB_TRY(result.positions,
          parse_positions(take(options, "positions"), Positions::Kind::loss_next));
  if (const auto k = take(options, "k")) {
    const std::optional<std::uint64_t> number = parse_u64(*k);
    const std::uint64_t most = vocab_size != 0 ? vocab_size : 1U << 20U;
    if (!number || *number < 1 || *number > most) {
      return wrong("k must be 1 to " + std::to_string(most));
    }
    result.k = static_cast<std::uint32_t>(*number);
  }
  LIB_TRY_VOID(nothing_left(options, kAllowed));
  return result;
}

}  // namespace librarian::ingest
