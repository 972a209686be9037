#pragma once
/// Words of the store that its writer, readers and the job share. FORMAT.md is normative.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/digest.h"
#include "base/error.h"

namespace librarian::activation_store {

/// Element type of an array as it is kept; bf16 is stored as Zarr `uint16` with an attribute.
enum class StoredType : std::uint8_t { bf16, f16, f32 };
enum class Codec : std::uint8_t { none, zstd };

std::uint64_t element_bytes(StoredType type);
/// "bfloat16", "float16", "float32": the attribute `dtype` of every array.
const char* stored_type_name(StoredType type);
Result<StoredType> parse_stored_type(std::string_view name);

/// Shape and encoding of one capture array, [rows, width].
struct ArrayLayout {
  std::uint64_t rows = 0;
  std::uint64_t width = 0;
  StoredType type = StoredType::bf16;
  Codec codec = Codec::zstd;
  std::uint64_t chunk_tokens = 1;  ///< Rows of an inner chunk; a power of two.
  std::uint64_t shard_tokens = 1;  ///< Rows of a shard file; a multiple of chunk_tokens.
};

/// Largest raw chunk; it bounds what a reader allocates for a file it does not trust.
inline constexpr std::uint64_t kChunkBytesMax = 256U << 20U;

/// What writer and reader ask of a layout: non-empty, chunk_tokens a power of two, shard_tokens a
/// multiple of it, a chunk of at most kChunkBytesMax, every size below 2^64.
/// @error invalid_argument
Result<void> check_layout(const ArrayLayout& layout);
/// The next four hold for layouts that passed check_layout().
std::uint64_t row_bytes(const ArrayLayout& layout);
std::uint64_t chunk_bytes(const ArrayLayout& layout);
std::uint64_t chunk_count(const ArrayLayout& layout);  ///< Chunks that hold rows.
std::uint64_t shard_count(const ArrayLayout& layout);

/// Rows whose bytes come nearest to 1 MiB: 2^round(log2(1 MiB / bytes per row)), at least 1.
std::uint64_t default_chunk_tokens(std::uint64_t width, StoredType type);
inline constexpr std::uint64_t kDefaultChunksPerShard = 512;

/// A file as it was written; `path` is relative to the part's directory. The CRC32C finds bytes
/// that changed; it does not tell two whole shards of one size apart, because their pieces each
/// end in a CRC32C of their own (FORMAT.md section 6). ArrayRecord::rows_xxh3 does.
struct FileRecord {
  std::string path;
  std::uint64_t size = 0;
  std::uint32_t crc32c = 0;
  bool operator==(const FileRecord&) const = default;
};

/// What writing one array left: enough to check it without trusting the disk.
struct ArrayRecord {
  std::string name;  ///< Relative to the part's directory, e.g. "blocks.12.resid_post".
  std::vector<std::uint64_t> shape;
  std::string dtype;    ///< "bfloat16", "float16", "float32", "int32", "int64", "uint8".
  Digest128 rows_xxh3;  ///< XXH3-128 of the raw rows in order, before encoding.
  std::uint64_t nan_count = 0;
  std::uint64_t inf_count = 0;
  std::uint64_t raw_bytes = 0;
  std::uint64_t stored_bytes = 0;  ///< Sum of the files' sizes.
  std::vector<FileRecord> files;
};

}  // namespace librarian::activation_store
