#pragma once
/// Cuts a job into parts, a part into blocks. Pure arithmetic on sample lengths.

#include <cstdint>
#include <span>
#include <vector>

#include "activation_store/store_files.h"
#include "gpu_exec/layer_executor.h"

namespace librarian::ingest {

/// State of a part never grows beyond this when --part-tokens is auto.
inline constexpr std::uint64_t kAutoPartStateBytes = 8ULL << 30U;

/// Largest power of two of tokens whose state is at most kAutoPartStateBytes; at least 1.
std::uint64_t auto_part_tokens(std::uint64_t state_bytes_per_token);

/// Consecutive samples in input order, filled greedily up to `part_tokens`; a longer sample is a
/// part alone.
/// @param offsets  [samples + 1], as in TokenData.
std::vector<activation_store::PartRange> partition_samples(std::span<const std::int64_t> offsets,
                                                           std::uint64_t part_tokens);

/// Rows of a part that one run() works on.
struct BlockRange {
  std::uint64_t row_begin = 0;
  std::uint64_t rows = 0;
  std::vector<gpu_exec::Segment> segments;
};

/// Whole samples, greedily, up to `block_rows`; a longer sample as consecutive tiles of that many
/// rows (the last one shorter), alone in their blocks.
/// @param offsets  [samples + 1] of the part's samples, from any origin.
std::vector<BlockRange> plan_blocks(std::span<const std::int64_t> offsets,
                                    std::uint64_t block_rows);

}  // namespace librarian::ingest
