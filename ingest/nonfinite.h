#pragma once
/// Finds NaN and infinity in rows by their exponent bits.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "gpu_exec/model_spec.h"

namespace librarian::ingest {

/// Index of the first element that is NaN or infinite.
std::optional<std::uint64_t> first_nonfinite(std::span<const std::byte> elements,
                                             gpu_exec::DType type);

}  // namespace librarian::ingest
