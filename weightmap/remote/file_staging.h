#pragma once
/// Brings whole remote objects to a staging directory, or only through memory, and hashes them.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>
#include <string>

#include "base/clock.h"
#include "base/error.h"
#include "base/file_system.h"
#include "weightmap/remote/fetcher.h"
#include "weightmap/remote/staging_directory.h"

namespace librarian::weightmap::remote {

struct FileStagingOptions {
  std::uint64_t segment_bytes = kSegmentBytes;
  std::uint64_t object_bytes_max = ~std::uint64_t{0};  ///< Of the largest object that will come.
  std::uint32_t slabs = 8;              ///< Segments in memory at a time, at least 1.
  std::uint32_t segments_per_sync = 4;  ///< Written before they are made durable together.
};

/// What became of an object.
struct StagedObject {
  std::string sha256;   ///< Of all its bytes, by us.
  bool matches = true;  ///< False: not what the origin states, twice.
};

/// Works on one object at a time; not thread-safe, except needed_bytes(). A segment's memory is
/// reserved before its request is sent. What a crash may lose, and a resume fetch again, are the
/// segments in memory and those written since the last sync.
class FileStaging {
 public:
  /// @param fetcher, files, clock  Must outlive it.
  FileStaging(Fetcher& fetcher, FileSystem& files, Clock& clock, const FileStagingOptions& options);

  /// All memory that it takes, at once: the slabs, and one more to read back into.
  static std::uint64_t memory_bytes(const FileStagingOptions& options) {
    return (std::uint64_t{options.slabs} + 1) * slab_bytes(options);
  }

  /// Fetches the segments that the hold's file lacks, and reads all of it back in offset order for
  /// its digests; a segment that is not as it was journalled is fetched again. If they are not as
  /// the origin states, everything is fetched once more. The object is complete, and its journal
  /// says so, if the result matches; else it is not usable.
  /// @param object    Opened in the fetcher; as many bytes as the hold says.
  /// @param hold      In state `staging`.
  /// @param stated  What the origin says of the object; maybe nothing to compare with.
  /// @error unavailable | source_changed | bad_input | no_space | io | cancelled. Segments that
  ///        arrived stay.
  Result<StagedObject> stage(ObjectId object, const ObjectInfo& stated, const StagingHold& hold,
                             const std::stop_token& stop);

  /// Reads a complete object back: whether it still has the hash that its journal says.
  Result<StagedObject> check(const StagingHold& hold, const std::stop_token& stop);

  /// Hashes an object without keeping it; fetched once more if it is not as the origin states.
  Result<StagedObject> hash(ObjectId object, const ObjectInfo& stated, const std::stop_token& stop);

  /// Bytes that had to be fetched so far: segments that were missing when their turn came.
  std::uint64_t needed_bytes() const;

 private:
  class Staging;  // One stage() under way.

  Result<StagedObject> stage_once(ObjectId object, const StagingHold& hold, StagingJournal& known,
                                  const ObjectInfo& stated, const std::stop_token& stop);
  Result<StagedObject> hash_once(ObjectId object, const ObjectInfo& stated,
                                 const std::stop_token& stop);
  static std::uint64_t slab_bytes(const FileStagingOptions& options) {
    return std::min(options.segment_bytes, options.object_bytes_max);
  }
  std::span<std::byte> slab(std::uint32_t index) const {
    return {memory_.get() + index * slab_bytes(options_), slab_bytes(options_)};
  }

  Fetcher& fetcher_;
  FileSystem& files_;
  Clock& clock_;
  const FileStagingOptions options_;
  const std::unique_ptr<std::byte[]> memory_;  // NOLINT: the slabs, not initialised
  mutable Monitor monitor_;
  std::uint64_t needed_bytes_ = 0;
};

}  // namespace librarian::weightmap::remote
