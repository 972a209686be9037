#include "ingest/kept_rows.h"

#include <algorithm>

#include "base/error.h"

namespace librarian::ingest {
namespace {

/// Of a sample's own positions, [first, last]; empty if they lie outside.
struct Range {
  std::int64_t begin, end;
};
Range clipped(const Positions& positions, std::int64_t length) {
  const auto from_start = [length](std::int64_t position) {
    return position < 0 ? position + length : position;
  };
  switch (positions.kind) {
    case Positions::Kind::last:
      return {length - 1, length};
    case Positions::Kind::range:
      return {std::max<std::int64_t>(0, from_start(positions.first)),
              std::min(length, from_start(positions.last) + 1)};
    default:
      return {0, length};
  }
}

}  // namespace

std::vector<std::int64_t> kept_rows(const Positions& positions,
                                    std::span<const std::int64_t> offsets,
                                    std::span<const std::uint8_t> loss_mask) {
  LIB_CHECK(!positions.needs_loss_mask() ||
            loss_mask.size() == static_cast<std::size_t>(offsets.back()));
  std::vector<std::int64_t> rows;
  for (std::size_t sample = 0; sample + 1 < offsets.size(); ++sample) {
    const std::int64_t start = offsets[sample];
    const std::int64_t length = offsets[sample + 1] - start;
    const Range range = clipped(positions, length);
    for (std::int64_t i = range.begin; i < range.end; ++i) {
      const auto row = static_cast<std::size_t>(start + i);
      const bool kept = positions.kind == Positions::Kind::loss ? loss_mask[row] != 0
                        : positions.kind == Positions::Kind::loss_next
                            ? i + 1 < length && loss_mask[row + 1] != 0
                            : true;
      if (kept) {
        rows.push_back(start + i);
      }
    }
  }
  return rows;
}

}  // namespace librarian::ingest
