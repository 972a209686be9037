#pragma once
/// The index at the end of a shard file: where each inner chunk lies. Pure arithmetic.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/error.h"

namespace librarian::activation_store {

/// Where a chunk lies in its shard file, in bytes.
struct ChunkPlace {
  std::uint64_t offset = 0;
  std::uint64_t size = 0;
  bool operator==(const ChunkPlace&) const = default;
};

/// Bytes of the index of a shard of `chunks` chunks: a pair of u64 each, then CRC32C.
std::uint64_t shard_index_bytes(std::uint64_t chunks);

/// The index of a shard whose first places.size() chunks are there and whose others, up to
/// `chunks`, hold no row of the array (both u64 are 2^64 - 1).
std::vector<std::byte> encode_shard_index(std::span<const ChunkPlace> places, std::uint64_t chunks);

/// @param index       The last shard_index_bytes(chunks) bytes of the file.
/// @param chunks      Chunks a full shard has.
/// @param present     Chunks that this one must have, 1..chunks: those with rows.
/// @param file_bytes  Size of the shard file.
/// @return `present` places, one after the other from offset 0 up to the index.
/// @error corrupt  anything else.
Result<std::vector<ChunkPlace>> decode_shard_index(std::span<const std::byte> index,
                                                   std::uint64_t chunks, std::uint64_t present,
                                                   std::uint64_t file_bytes);

}  // namespace librarian::activation_store
