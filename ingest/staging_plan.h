#pragma once
/// Whether a job's weights go through whole files on a disk, and why. plan_staging() is pure
/// arithmetic.

#include <cstdint>
#include <optional>
#include <string>

#include "base/clock.h"
#include "base/error.h"
#include "base/file_system.h"
#include "ingest/job_options.h"
#include "weightmap/checkpoint.h"

namespace librarian::ingest {

struct StagingInputs {
  const weightmap::Checkpoint* checkpoint = nullptr;
  std::int32_t last_layer = 0;
  std::uint64_t readings_max = 1;  ///< Of the layers, see MemoryPlan.
  StagingMode mode = StagingMode::automatic;
  std::uint64_t limit_bytes = 0;         ///< Disk that whole files may take together.
  std::uint64_t spare_memory_bytes = 0;  ///< Host memory that nothing else needs.
  std::uint32_t connections = 1;
};

struct StagingPlan {
  bool on_disk = false;   ///< Else ranges straight to memory.
  std::string reason;     ///< One clause for people: why.
  std::string directory;  ///< Where files would go.
  bool is_cache = false;  ///< Files stay there.
  std::uint64_t limit_bytes = 0;
  std::uint64_t needed_bytes = 0;      ///< Of the weights that a pass reads, every reading.
  std::uint64_t file_bytes = 0;        ///< Of the whole files that they lie in.
  std::uint64_t two_layers_bytes = 0;  ///< The most that files of two successive layers take.
  std::uint64_t largest_file_bytes = 0;
  std::uint32_t slabs = 0;         ///< Segments in memory at a time.
  std::uint64_t memory_bytes = 0;  ///< Of the slabs; 0: none.
  /// Whether the limit holds all files at once, so that other parts find them there.
  bool holds_all() const { return on_disk && file_bytes <= limit_bytes; }
};

/// Staging on disk needs a remote model, room for the files of two layers, and memory for one
/// segment; by itself it is chosen only where whole files add at most 2 % to what would be fetched
/// by ranges.
StagingPlan plan_staging(const StagingInputs& inputs);

/// Host memory that staging a model takes for each segment on its way; 0 if it will not be staged.
std::uint64_t staging_segment_bytes(const weightmap::Checkpoint& checkpoint, StagingMode mode);

/// What --weights-cache may hold: --cache-limit, and never more than its disk has room for beside
/// `others` bytes and a margin. @error io
Result<std::uint64_t> weights_cache_limit_bytes(FileSystem& files, Clock& clock,
                                                const JobOptions& options, std::uint64_t others);

}  // namespace librarian::ingest
