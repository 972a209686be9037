#pragma once
/// What Python asks of a store, in types that cross easily: JSON text and bytes.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "activation_store/store_reader.h"
#include "base/error.h"

namespace librarian::activation_store::python {

/// One complete part. Any number of threads may call anything; starts none.
class PartAccess {
 public:
  explicit PartAccess(StoreReader reader) : reader_(std::move(reader)) {}

  /// {"captures": [...], "aliases": {...}, "groups": {...}, "arrays": {name: {"shape": [...],
  /// "dtype": "..."}}, ...}
  std::string facts() const;
  /// {"rows": n, "width": n (0: one value per row), "dtype": "...", "chunk_tokens": n,
  /// "shard_tokens": n, "rows_array": "tokens/rows_loss" or null, "lossy": {...} or null}
  /// @error corrupt  The array is not the one the manifest lists, or a shard has another size.
  Result<std::string> array_facts(const std::string& name) const;
  /// All of tokens/<name>, little-endian, of the length that the part states.
  /// @param name  "input_ids", "offsets", "sample_index", "loss_mask" or "rows_loss" and so on.
  Result<std::vector<std::byte>> tokens(const std::string& name) const;
  /// As ArrayReader::read_rows() of one array.
  Result<void> read_rows(const std::string& name, std::uint64_t begin, std::uint64_t end,
                         std::span<std::byte> into) const;
  /// The same of an fp8 array, each value times its row's scale, rounded to nearest even.
  /// @param type  bf16, f16 or f32.
  /// @error invalid_argument  Not an fp8 array, another type, or `into` has another size.
  Result<void> read_dequantised(const std::string& name, std::uint64_t begin, std::uint64_t end,
                                StoredType type, std::span<std::byte> into) const;

 private:
  const CompletePart& part() const { return reader_.parts().front(); }

  StoreReader reader_;
};

/// A store's job.json. Opening reads no part, so its time does not depend on the number of shards.
class JobAccess {
 public:
  /// @error not_found  Not a store. @error corrupt | bad_input (a later version)
  static Result<JobAccess> open(const std::string& directory);

  /// {"identity_digest": "...", "identity": {...}, "parts": [[first_sample, samples, tokens], ...]}
  std::string facts() const;
  /// Numbers of the parts that are complete now, rising.
  Result<std::vector<std::uint64_t>> complete_parts() const;
  /// @error not_found  No such part, or it is not complete.
  Result<PartAccess> open_part(std::uint64_t index) const;

 private:
  JobAccess(std::string directory, JobFile job);

  std::string directory_;
  std::shared_ptr<const JobFile> job_;
};

}  // namespace librarian::activation_store::python
