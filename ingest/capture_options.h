#pragma once
/// What stands in brackets behind a capture: which tokens are kept, and how exactly.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"

namespace librarian::ingest {

/// Tokens of each sample that an array keeps.
struct Positions {
  enum class Kind : std::uint8_t {
    all,
    loss,       ///< Tokens that the loss mask has in.
    loss_next,  ///< Tokens before such a token: what predicts it. What `loss` means for logits.
    last,       ///< The sample's last token.
    range       ///< Tokens first to last, inclusive.
  };
  Kind kind = Kind::all;
  std::int64_t first = 0;  ///< 0-based; negative ones count from the sample's end.
  std::int64_t last = 0;
  bool operator==(const Positions&) const = default;

  bool needs_loss_mask() const { return kind == Kind::loss || kind == Kind::loss_next; }
  /// As the user writes it: "all", "loss", "last", "-4..-1".
  std::string text() const;
  /// Name of the array of kept rows below tokens/, e.g. "rows_m4_m1"; empty for `all`.
  std::string rows_name() const;
};

/// How one array is kept.
struct ArrayOptions {
  Positions positions;
  std::uint32_t keep_mantissa_bits = 0;  ///< 3 to 6; 0: all of them.
  bool fp8 = false;                      ///< e4m3 with a scale for each row.
  bool operator==(const ArrayOptions&) const = default;

  bool lossy() const { return fp8 || keep_mantissa_bits != 0; }
  /// Every row, bit for bit: what may serve as the state between layers.
  bool complete() const { return !lossy() && positions.kind == Positions::Kind::all; }
  /// "(dtype=fp8_e4m3,positions=loss)"; empty if nothing differs from the default.
  std::string text() const;
};

/// `logits.topk`: the k likeliest next tokens of each kept row.
struct LogitsTopk {
  std::uint32_t k = 128;
  Positions positions;
  bool operator==(const LogitsTopk&) const = default;

  /// "(k=128,positions=loss)"; always says k.
  std::string text() const;
};

/// Parses the options of a capture of hidden states.
/// @param text  What stands between the brackets.
/// @error invalid_argument  Says what is wrong and what is allowed; does not quote the capture.
Result<ArrayOptions> parse_array_options(std::string_view text);
/// @param vocab_size  k can be no larger; 0: unknown.
/// @error invalid_argument  As parse_array_options().
Result<LogitsTopk> parse_logits_options(std::string_view text, std::uint32_t vocab_size);

}  // namespace librarian::ingest
