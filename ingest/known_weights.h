#pragma once
/// The same tensor must be the same bytes whenever it is fetched: by this run, by the runs before,
/// for any part of the store.

#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "base/error.h"
#include "base/file_system.h"

namespace librarian::ingest {

/// `weights.json` of a published part: the digests of the tensors it was computed with.
inline constexpr const char* kWeightsFileName = "weights.json";

/// Tensor name -> XXH3-128 in hex.
using WeightDigests = std::map<std::string, std::string>;

std::string weights_file_text(const WeightDigests& digests);

/// Digests as they were seen first, shared by all parts of a run. Thread-safe.
class KnownWeights {
 public:
  /// Remembers or compares. @error source_changed  a tensor had other bytes before.
  Result<void> check(const WeightDigests& digests);
  /// A tensor in which `digests` contradict what is known; nothing if they agree.
  std::optional<std::string> contradiction(const WeightDigests& digests) const;
  /// Reads the published parts of a store that it has not read yet, and checks them.
  /// @error source_changed | corrupt | io
  Result<void> read_published(FileSystem& files, const std::string& store_directory,
                              std::uint64_t part_count);

 private:
  mutable std::mutex mutex_;
  WeightDigests digests_;
  std::set<std::uint64_t> parts_read_;
};

}  // namespace librarian::ingest
