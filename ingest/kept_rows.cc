#include "ingest/kept_rows.h"

#include <algorithm>

namespace librarian::ingest {
namespace {

/// Calls `use(row of the part)` for each kept row, in order.
template <typename Use>
void for_each_row(const TokenData& tokens, const activation_store::PartRange& part,
                  const Positions& positions, Use use) {
  const std::int64_t origin = tokens.offsets[part.first_sample];
  for (std::uint64_t sample = part.first_sample; sample < part.first_sample + part.samples;
       ++sample) {
    const std::int64_t begin = tokens.offsets[sample];
    const std::int64_t length = tokens.offsets[sample + 1] - begin;
    std::int64_t first = 0;
    std::int64_t last = length - 1;
    std::int64_t mask_shift = 0;
    switch (positions.kind) {
      case Positions::Kind::all:
      case Positions::Kind::loss:
        break;
      case Positions::Kind::loss_next:
        last = length - 2;
        mask_shift = 1;
        break;
      case Positions::Kind::last:
        first = last;
        break;
      case Positions::Kind::range:
        first = std::max<std::int64_t>(positions.first + (positions.first < 0 ? length : 0), 0);
        last = std::min(positions.last + (positions.last < 0 ? length : 0), length - 1);
        break;
    }
    for (std::int64_t k = first; k <= last; ++k) {
      if (!positions.needs_loss_mask() ||
          (*tokens.loss_mask)[static_cast<std::size_t>(begin + k + mask_shift)] != 0) {
        use(begin - origin + k);
      }
    }
  }
}

}  // namespace

std::vector<std::int64_t> kept_rows(const TokenData& tokens,
                                    const activation_store::PartRange& part,
                                    const Positions& positions) {
  LIB_CHECK(positions.kind != Positions::Kind::all);
  std::vector<std::int64_t> rows;
  // Counted first: the list must not take more than the plan says.
  rows.reserve(kept_row_count(tokens, part, positions));
  for_each_row(tokens, part, positions, [&](std::int64_t row) { rows.push_back(row); });
  return rows;
}

std::uint64_t kept_row_count(const TokenData& tokens, const activation_store::PartRange& part,
                             const Positions& positions) {
  if (positions.kind == Positions::Kind::all) {
    return part.tokens;
  }
  std::uint64_t count = 0;
  for_each_row(tokens, part, positions, [&](std::int64_t /*row*/) { ++count; });
  return count;
}

std::map<std::string, Positions> positions_of(const CaptureList& captures) {
  std::map<std::string, Positions> all;
  for (const auto& [array, options] : captures.options) {
    all[options.positions.rows_name()] = options.positions;
  }
  if (captures.logits) {
    all[captures.logits->positions.rows_name()] = captures.logits->positions;
  }
  all.erase("");
  return all;
}

Result<void> check_positions(const CaptureList& captures, const TokenData& tokens,
                             const std::string& token_path) {
  for (const auto& [name, positions] : positions_of(captures)) {
    if (positions.needs_loss_mask() && !tokens.loss_mask) {
      return Error(ErrorCode::invalid_argument,
                   "--capture with positions=loss: " + token_path +
                       " has no loss_mask; tokenize with one, or keep all positions");
    }
    const activation_store::PartRange whole{0, tokens.samples(), tokens.tokens()};
    if (kept_row_count(tokens, whole, positions) == 0) {
      return Error(
          ErrorCode::invalid_argument,
          "--capture with positions=" + positions.text() + ": no token of " + token_path +
              (positions.needs_loss_mask() ? " is in its loss_mask" : " is at such a position") +
              ", so nothing would be kept");
    }
  }
  return {};
}

}  // namespace librarian::ingest
