#pragma once
/// What the store's tests share: deterministic rows, small arrays and whole small stores.

#include <cstdint>
#include <string>
#include <vector>

#include "activation_store/array_writer.h"
#include "activation_store/store_files.h"
#include "base/file_system.h"

namespace librarian::activation_store::testing {

/// How rows look: `activations` compress as real ones do, `noise` does not compress at all,
/// `special` holds NaNs, infinities, zeros and denormals.
enum class RowKind : std::uint8_t { activations, noise, special };

/// layout.rows x layout.width elements; the same bytes on every machine.
std::vector<std::byte> make_rows(const ArrayLayout& layout, RowKind kind, std::uint64_t seed);

/// Writes, finishes and publishes one array, appending `append_rows` rows at a time (0: all).
Result<ArrayRecord> write_array(FileSystem& files, const std::string& directory,
                                const std::string& name, const ArrayLayout& layout,
                                const std::vector<std::byte>& rows, std::uint64_t append_rows = 0,
                                const ArrayAttributes& attributes = {});

/// All rows through an ArrayReader.
Result<std::vector<std::byte>> read_array(FileSystem& files, const std::string& directory);

struct StoreOptions {
  std::vector<std::uint64_t> sample_lengths = {5, 9, 1, 12, 7, 3, 10, 6};
  std::uint64_t part_tokens = 24;  ///< Partition, greedily as the job does it.
  std::uint64_t parts_to_write = 1000;
  std::uint64_t width = 40;
  std::uint64_t chunk_tokens = 8;
  std::uint64_t shard_tokens = 16;
  StoredType type = StoredType::bf16;
  Codec codec = Codec::zstd;
  std::vector<std::string> arrays = {"blocks.0.resid_post", "blocks.1.resid_post"};
  /// Requested name -> array.
  std::vector<std::pair<std::string, std::string>> aliases = {
      {"blocks.1.resid_pre", "blocks.0.resid_post"}};
  /// Also what captures with parameters leave: arrays of some rows (of none in some parts), rounded
  /// ones, fp8 with scales, and the group logits.topk.
  bool every_kind = false;
  std::string zstd_version = "1.5.4";
  /// Bits flipped in the first element of this token, if `tamper_xor` is not 0.
  std::uint64_t tamper_sample = 0;
  std::uint64_t tamper_position = 0;
  unsigned tamper_xor = 0;
};

/// Rows of `samples` in order for one array; a sample's rows depend on nothing but its number.
std::vector<std::byte> make_sample_rows(const StoreOptions& options, const std::string& array,
                                        std::uint64_t first_sample, std::uint64_t samples);

/// One array that `every_kind` adds to a part, and its content.
struct KindArray {
  std::string name;
  ArrayLayout layout;
  ArrayAttributes attributes;
  std::vector<std::byte> rows;
};
std::vector<KindArray> kind_arrays(const StoreOptions& options, const PartRange& range);
/// "rows_loss" and so on -> rows in the part, as `every_kind` keeps them.
std::map<std::string, std::vector<std::int64_t>> kind_rows(const StoreOptions& options,
                                                           const PartRange& range);

/// Writes a store as the job does: job.json, zarr.json, parts. `directory` is created.
Result<void> write_store(FileSystem& files, const std::string& directory,
                         const StoreOptions& options);

/// The options of the store that is committed as tests/activation_store/golden_store.
StoreOptions golden_options();
/// The same with every kind of array: golden_store_kinds.
StoreOptions golden_kinds_options();

/// The partition that write_store() uses.
std::vector<PartRange> partition(const StoreOptions& options);

}  // namespace librarian::activation_store::testing
