#pragma once
/// Words of the store that its writer, readers and the job share. FORMAT.md is normative.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/digest.h"
#include "base/error.h"

namespace librarian::activation_store {

/// Element type of an array as it is kept; bf16 is stored as Zarr `uint16`, f8_e4m3 as `uint8`,
/// both with an attribute. f8_e4m3 is e4m3fn: no infinity, NaN is 0x7F and 0xFF, the largest is
/// 448.
enum class StoredType : std::uint8_t { bf16, f16, f32, f8_e4m3, i32 };
enum class Codec : std::uint8_t { none, zstd };

std::uint64_t element_bytes(StoredType type);
/// "bfloat16", "float16", "float32", "float8_e4m3fn", "int32": the attribute `dtype` of every
/// array.
const char* stored_type_name(StoredType type);
Result<StoredType> parse_stored_type(std::string_view name);

/// Shape and encoding of one capture array, [rows, width], or [rows] if it is a vector.
struct ArrayLayout {
  std::uint64_t rows = 0;   ///< May be 0: then it has no shard.
  std::uint64_t width = 0;  ///< 1 if it is a vector.
  StoredType type = StoredType::bf16;
  Codec codec = Codec::zstd;
  std::uint64_t chunk_tokens = 1;  ///< Rows of an inner chunk; a power of two.
  std::uint64_t shard_tokens = 1;  ///< Rows of a shard file; a multiple of chunk_tokens.
  bool is_vector = false;          ///< One-dimensional in Zarr.

  /// The extents that zarr.json and the manifest state.
  std::vector<std::uint64_t> shape() const;
};

/// What an array says of itself beside its layout.
struct ArrayAttributes {
  /// Path of the token array with the kept rows, relative to the part ("tokens/rows_loss"); empty
  /// if the array keeps all rows.
  std::string rows;
  std::uint32_t keep_mantissa_bits = 0;  ///< What values were rounded to; 0: not at all.
  bool operator==(const ArrayAttributes&) const = default;
};

/// Name of the array with the scale of each row of an f8_e4m3 array.
std::string scales_name(const std::string& array);

/// Largest raw chunk; it bounds what a reader allocates for a file it does not trust.
inline constexpr std::uint64_t kChunkBytesMax = 256U << 20U;

/// What writer and reader ask of a layout: some width, chunk_tokens a power of two, shard_tokens a
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
/// The same for an array whose shards are those of another: a power of two that divides them.
std::uint64_t chunk_tokens_within(std::uint64_t width, StoredType type, std::uint64_t shard_tokens);
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
  std::string dtype;    ///< As stored_type_name(), or of tokens "int32", "int64", "uint8".
  Digest128 rows_xxh3;  ///< XXH3-128 of the raw rows in order, before encoding.
  std::uint64_t nan_count = 0;
  std::uint64_t inf_count = 0;
  std::uint64_t raw_bytes = 0;
  std::uint64_t stored_bytes = 0;  ///< Sum of the files' sizes.
  std::vector<FileRecord> files;

  bool is_tokens() const { return name.starts_with("tokens/"); }
};

}  // namespace librarian::activation_store
