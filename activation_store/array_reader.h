#pragma once
/// Rows of one array, checked on the way: never wrong data, an error instead.

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "activation_store/types.h"
#include "base/error.h"
#include "base/file_system.h"

namespace librarian::activation_store {

/// One capture array on disk. read_rows() may be called from any number of threads. Starts no
/// threads, so it survives fork().
class ArrayReader {
 public:
  /// Reads and checks zarr.json (its seal first). Shards are opened while they are read, and no
  /// longer: a reader holds no descriptor, whatever the number of arrays and shards.
  /// @error corrupt | not_found | io
  static Result<ArrayReader> open(FileSystem& files, const std::string& array_directory);
  ArrayReader(ArrayReader&&) noexcept;
  ArrayReader& operator=(ArrayReader&&) noexcept;
  ~ArrayReader();

  const ArrayLayout& layout() const;
  /// The array's name as its attribute `capture` says.
  const std::string& capture() const;
  const ArrayAttributes& attributes() const;

  /// Rows [begin, end) into `into`, exactly (end - begin) * width elements; undefined content
  /// after an error. Decodes every chunk that holds one of the rows.
  /// @error invalid_argument  The range is not inside the array, or `into` has another size.
  /// @error corrupt  a shard is missing, short, or fails its checksum; names file and chunk.
  Result<void> read_rows(std::uint64_t begin, std::uint64_t end, std::span<std::byte> into) const;

 private:
  class Impl;
  explicit ArrayReader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace librarian::activation_store
