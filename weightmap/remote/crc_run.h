#pragma once
/// CRC32C of bytes as they came from their origin, in runs that any later request can go on from.

#include <cstdint>
#include <optional>
#include <vector>

#include "weightmap/remote/byte_range.h"

namespace librarian::weightmap::remote {

/// CRC32C of some adjacent bytes of an object, taken while they were copied to their place.
struct CrcRun {
  ByteRange range;
  std::uint32_t crc32c = 0;
  bool operator==(const CrcRun&) const = default;
};

/// Sorted and disjoint.
using CrcRuns = std::vector<CrcRun>;

/// Runs end at multiples of this and at the ends of pieces, and nowhere else but where a transfer
/// does: another transfer that begins at one of these offsets can replace what follows. Also bounds
/// the memory that runs take: a server may send single bytes.
constexpr std::uint64_t kCrcRunBytes = 64U << 10U;

/// CRC32C of `range`; none if the runs do not cover it exactly.
std::optional<std::uint32_t> crc_of(const CrcRuns& runs, ByteRange range);

/// Adds those of `more` that end at `end` or before to `runs`, whose bytes lie before theirs.
void append_runs(CrcRuns& runs, const CrcRuns& more, std::uint64_t end);

}  // namespace librarian::weightmap::remote
