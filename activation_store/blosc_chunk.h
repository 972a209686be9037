#pragma once
/// One inner chunk of a shard: rows to bytes and back. Codec zstd is a Blosc-1 container of byte
/// planes, each a zstd frame or raw; codec none is the rows themselves. CRC32C ends both.
/// FORMAT.md section 5 gives the bytes. Nothing here allocates after construction, except the
/// decoder's buffers on its first chunk.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "activation_store/types.h"
#include "base/error.h"

namespace librarian::activation_store {

/// Bytes of a Blosc block: half a chunk, or the whole of a chunk with an odd number of rows, so
/// that no chunk ends in a shorter block.
std::uint64_t blosc_block_bytes(const ArrayLayout& layout);

/// The most bytes encode() writes for a chunk of `chunk_bytes` raw bytes.
std::uint64_t encoded_bytes_max(std::uint64_t chunk_bytes);

/// Version of the zstd library in use, e.g. "1.5.4": what decides the bytes of encoded chunks.
std::string zstd_version();

/// Encodes chunks. Not thread-safe; use one per task.
class ChunkEncoder {
 public:
  /// Every byte that an encoder for chunks of this size allocates.
  static std::uint64_t memory_bytes(std::uint64_t chunk_bytes_max);

  explicit ChunkEncoder(std::uint64_t chunk_bytes_max);

  /// @param raw  One whole chunk, [chunk_tokens, width] row-major, padded by the caller.
  /// @param out  At least encoded_bytes_max() bytes; must not overlap `raw`.
  /// @return     Bytes written, the checksum included: a function of `raw`, the layout and
  ///             zstd_version() alone.
  std::uint64_t encode(const ArrayLayout& layout, std::span<const std::byte> raw,
                       std::span<std::byte> out);

 private:
  struct ZstdState;
  struct ZstdDeleter {
    void operator()(ZstdState* state) const noexcept;
  };
  std::uint64_t encode_blosc(const ArrayLayout& layout, std::span<const std::byte> raw,
                             std::span<std::byte> out);
  std::uint64_t encode_stream(std::span<const std::byte> plane, std::byte* out);

  std::vector<std::byte> planes_;
  std::unique_ptr<ZstdState, ZstdDeleter> zstd_;
};

/// Decodes chunks and believes nothing in them. Not thread-safe.
class ChunkDecoder {
 public:
  ChunkDecoder();
  ~ChunkDecoder();
  ChunkDecoder(ChunkDecoder&&) noexcept;
  ChunkDecoder& operator=(ChunkDecoder&&) noexcept;

  /// @param raw  Exactly chunk_bytes(layout); its content is undefined after an error.
  /// @error corrupt  The checksum, a length or a frame does not fit; the message has no file name.
  Result<void> decode(const ArrayLayout& layout, std::span<const std::byte> encoded,
                      std::span<std::byte> raw) {
    return decode_rows(layout, encoded, 0, layout.chunk_tokens, raw);
  }
  /// Rows [begin, end) of a chunk alone. The checksum is that of the whole chunk; blocks without
  /// such a row are not decompressed.
  /// @param rows  Exactly the size of those rows.
  Result<void> decode_rows(const ArrayLayout& layout, std::span<const std::byte> encoded,
                           std::uint64_t begin, std::uint64_t end, std::span<std::byte> rows);

 private:
  struct ZstdState;
  Result<void> decode_blosc(const ArrayLayout& layout, std::span<const std::byte> encoded,
                            std::uint64_t begin, std::uint64_t end, std::span<std::byte> rows);
  Result<const std::byte*> decode_stream(std::span<const std::byte> stored,
                                         std::span<std::byte> to);

  std::vector<std::byte> planes_;
  std::unique_ptr<ZstdState> zstd_;
};

/// Writes the fill value of `type` over all of `rows`, a whole number of elements.
void fill_rows(StoredType type, std::span<std::byte> rows);
/// True if every element is the fill value, bit for bit.
bool is_filled(StoredType type, std::span<const std::byte> rows);

struct NonFiniteCounts {
  std::uint64_t nan = 0;
  std::uint64_t inf = 0;
};
/// NaNs and infinities among whole elements of `type`.
NonFiniteCounts count_non_finite(StoredType type, std::span<const std::byte> rows);

}  // namespace librarian::activation_store
