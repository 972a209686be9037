#include "ingest/partition.h"

#include <algorithm>
#include <bit>

namespace librarian::ingest {

std::uint64_t auto_part_tokens(std::uint64_t state_bytes_per_token) {
  return std::bit_floor(std::max<std::uint64_t>(kAutoPartStateBytes / state_bytes_per_token, 1));
}

std::vector<activation_store::PartRange> partition_samples(std::span<const std::int64_t> offsets,
                                                           std::uint64_t part_tokens) {
  std::vector<activation_store::PartRange> parts;
  for (std::size_t sample = 0; sample + 1 < offsets.size(); ++sample) {
    const auto tokens = static_cast<std::uint64_t>(offsets[sample + 1] - offsets[sample]);
    if (parts.empty() || parts.back().tokens + tokens > part_tokens) {
      parts.push_back({sample, 0, 0});
    }
    ++parts.back().samples;
    parts.back().tokens += tokens;
  }
  return parts;
}

std::vector<BlockRange> plan_blocks(std::span<const std::int64_t> offsets,
                                    std::uint64_t block_rows) {
  std::vector<BlockRange> blocks;
  bool open = false;  // The last block takes more samples.
  for (std::size_t sample = 0; sample + 1 < offsets.size(); ++sample) {
    const auto begin = static_cast<std::uint64_t>(offsets[sample] - offsets[0]);
    const auto rows = static_cast<std::uint64_t>(offsets[sample + 1] - offsets[sample]);
    if (rows > block_rows) {
      for (std::uint64_t position = 0; position < rows; position += block_rows) {
        const std::uint64_t tile = std::min(block_rows, rows - position);
        blocks.push_back({begin + position, tile, {{0, tile, position, rows}}});
      }
      open = false;
      continue;
    }
    if (!open || blocks.back().rows + rows > block_rows) {
      blocks.push_back({begin, 0, {}});
      open = true;
    }
    blocks.back().segments.push_back({blocks.back().rows, rows, 0, rows});
    blocks.back().rows += rows;
  }
  return blocks;
}

}  // namespace librarian::ingest
