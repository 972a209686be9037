#pragma once
/// A store as a trainer sees it: samples of captures by name, from the parts that are complete.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "activation_store/array_reader.h"
#include "activation_store/store_files.h"
#include "activation_store/types.h"
#include "base/error.h"
#include "base/file_system.h"

namespace librarian::activation_store {

/// Rows of one sample of one capture, [tokens, width] row-major.
struct SampleRows {
  std::uint64_t tokens = 0;  ///< Rows that are kept: all tokens of the sample, or some.
  std::uint64_t width = 0;
  StoredType type = StoredType::bf16;
  std::vector<std::byte> bytes;
  bool is_vector = false;
  /// Where only some tokens are kept: position of each in the sample, rising.
  std::optional<std::vector<std::int64_t>> positions;
};

/// One part that is complete, as its zarr.json describes it.
struct CompletePart {
  std::uint64_t index = 0;
  std::string directory;  ///< Full path.
  PartFile file;
};

/// Where a sample lies.
struct SampleRange {
  std::uint64_t part = 0;   ///< Index into StoreReader::parts().
  std::uint64_t begin = 0;  ///< First row in the part's arrays.
  std::uint64_t end = 0;
};

/// Read access to a store that may still be growing: parts that are completed after open() are not
/// seen. Any number of threads may call anything. Starts no threads, so it survives fork().
class StoreReader {
 public:
  /// Reads job.json and zarr.json of every complete part, seals first.
  /// @error not_found  No job.json: not a store.
  /// @error corrupt    A damaged file, or a part that is not the job's part of that number.
  /// @error bad_input  A later version of the format.
  static Result<StoreReader> open(FileSystem& files, const std::string& store_directory);
  /// One part of `job` and nothing of the others, for who opens parts as he needs them: parts()
  /// holds it alone, and no other part's samples can be located.
  /// @param index  Below job->parts.size().
  /// @error not_found  The part is not complete. @error corrupt | bad_input  as open()
  static Result<StoreReader> open_part(FileSystem& files, const std::string& store_directory,
                                       std::shared_ptr<const JobFile> job, std::uint64_t index);
  StoreReader(StoreReader&&) noexcept;
  StoreReader& operator=(StoreReader&&) noexcept;
  ~StoreReader();

  const JobFile& job() const;
  /// Complete parts by index; the partition with those that are missing is job().parts.
  const std::vector<CompletePart>& parts() const;
  std::uint64_t parts_total() const;
  std::uint64_t samples_total() const;
  /// False if complete parts come from devices of different kinds: equal inputs may then have
  /// given different bits.
  bool numerics_uniform() const;

  /// Requested names and arrays of the first complete part, sorted; empty if there is none.
  std::vector<std::string> captures() const;
  /// The array that holds a capture in a part: its own name or the target of its alias. A group's
  /// arrays are captures of their own.
  /// @error not_found  No such capture; the message lists those that exist.
  Result<std::string> resolve(const CompletePart& part, const std::string& capture) const;

  /// @param sample   Number of the sample in the job's order, from 0.
  /// @error not_found  No such sample, or its part is not complete yet.
  Result<SampleRange> locate(std::uint64_t sample) const;
  /// @error not_found  No such sample or capture, or the part is not complete.
  /// @error corrupt    A checksum or length does not fit; never wrong data.
  Result<SampleRows> sample(const std::string& capture, std::uint64_t sample) const;
  /// Token ids of one sample. @error as sample()
  Result<std::vector<std::int32_t>> sample_tokens(std::uint64_t sample) const;

  /// The reader of one array of parts()[part]; lives as long as this object.
  Result<const ArrayReader*> array(std::uint64_t part, const std::string& name) const;
  /// Offsets [samples + 1] of parts()[part]; lives as long as this object.
  Result<const std::vector<std::int64_t>*> offsets(std::uint64_t part) const;
  /// Rows that arrays of parts()[part] with this attribute `rows` keep; lives as long as this
  /// object.
  /// @error corrupt  Not strictly rising, or not as many as the manifest says.
  Result<const std::vector<std::int64_t>*> kept_rows(std::uint64_t part,
                                                     const std::string& rows) const;
  /// Rows of the input file [samples] of parts()[part].
  Result<std::vector<std::int64_t>> sample_index(std::uint64_t part) const;
  /// Token ids of rows [begin, end) of parts()[part].
  Result<std::vector<std::int32_t>> input_ids(std::uint64_t part, std::uint64_t begin,
                                              std::uint64_t end) const;

 private:
  class Impl;
  explicit StoreReader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace librarian::activation_store
