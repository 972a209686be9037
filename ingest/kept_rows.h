#pragma once
/// Which rows of a part an array keeps. Pure arithmetic.

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "ingest/capture_options.h"

namespace librarian::ingest {

/// Rows of a part, strictly rising.
/// @param offsets    [samples + 1] of the part's samples, from 0.
/// @param loss_mask  [tokens] of the part; read only if positions.needs_loss_mask().
std::vector<std::int64_t> kept_rows(const Positions& positions,
                                    std::span<const std::int64_t> offsets,
                                    std::span<const std::uint8_t> loss_mask);

}  // namespace librarian::ingest
