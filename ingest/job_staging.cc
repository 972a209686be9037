// Where a job's weights wait: the plan for it, and the source that follows the plan.
#include <algorithm>

#include "base/units.h"
#include "ingest/job.h"
#include "ingest/store_directory.h"
#include "weightmap/staged_source.h"

namespace librarian::ingest {
namespace {

using weightmap::remote::StagingDirectory;

/// What stays free of a disk that only its size limits: others write to it, too.
std::uint64_t margin_bytes(std::uint64_t free) { return std::min(4 * kGiB, free / 10); }

std::uint64_t minus(std::uint64_t a, std::uint64_t b) { return a - std::min(a, b); }

bool on_same_disk(FileSystem& files, const std::string& a, const std::string& b) {
  const auto of_a = files.info(a);
  const auto of_b = files.info(b);
  return of_a && of_b && of_a->device == of_b->device;
}

/// What files in a staging directory may take at most: what is free and what they take already,
/// less what others will need and a margin.
/// @param where  An existing directory on its disk.
Result<std::uint64_t> room_bytes(FileSystem& files, Clock& clock, const std::string& path,
                                 const std::string& where, std::uint64_t others) {
  LIB_TRY(const std::uint64_t free, files.free_bytes(where));
  std::uint64_t there = 0;
  if (files.info(path)) {
    LIB_TRY(const auto directory, StagingDirectory::open(files, clock, {path, 0}));
    LIB_TRY(there, directory->used_bytes());
  }
  return minus(free + there, others + margin_bytes(free));
}

}  // namespace

Result<std::uint64_t> weights_cache_limit_bytes(FileSystem& files, Clock& clock,
                                                const JobOptions& options, std::uint64_t others) {
  const std::string& path = options.weights_cache;
  LIB_TRY(const std::uint64_t room,
          room_bytes(files, clock, path, existing_ancestor(files, path), others));
  return std::min(room, options.cache_limit_bytes.value_or(room));
}

/// State of a job that is given --scratch lies below a directory of its own there.
std::string PreparedJob::scratch_root() const {
  return (options_.scratch.empty() ? options_.out + "/scratch" : options_.scratch) + "/librarian-" +
         identity_digest_.substr(0, 16);
}

std::string PreparedJob::staging_path() const {
  return options_.weights_cache.empty() ? scratch_root() + "/weights" : options_.weights_cache;
}

/// What the parts that are not published yet will take at most.
Result<std::uint64_t> PreparedJob::disk_needed_bytes() const {
  FileSystem& files = *environment_.files;
  std::optional<activation_store::JobFile> existing;
  if (!options_.out.empty()) {
    LIB_TRY(existing, read_existing_job(files, options_.out));
  }
  std::uint64_t left = 0;
  for (std::uint64_t part = 0; part < parts_.size(); ++part) {
    const std::string group =
        options_.out + "/" + activation_store::part_directory_name(part) + "/zarr.json";
    left += existing && files.info(group) ? 0 : parts_[part].tokens;
  }
  return static_cast<std::uint64_t>(static_cast<double>(disk_.peak_bytes - disk_.skeleton_bytes) *
                                    static_cast<double>(left) /
                                    static_cast<double>(tokens_.tokens())) +
         disk_.skeleton_bytes;
}

/// What whole files may take together: the user's limit, and never more than the disk has.
Result<std::uint64_t> PreparedJob::staging_limit_bytes() const {
  FileSystem& files = *environment_.files;
  LIB_TRY(const std::uint64_t needed, disk_needed_bytes());
  // A plan without --out speaks of the directory it is made in.
  const std::string store = options_.out.empty() ? "." : existing_ancestor(files, options_.out);
  if (!options_.weights_cache.empty()) {
    const bool same = on_same_disk(files, store, existing_ancestor(files, options_.weights_cache));
    return weights_cache_limit_bytes(files, *environment_.clock, options_, same ? needed : 0);
  }
  const bool no_place = options_.out.empty() && options_.scratch.empty();
  const std::string where = no_place ? "." : existing_ancestor(files, staging_path());
  const std::uint64_t others =
      on_same_disk(files, store, where) ? needed : disk_.scratch_peak_bytes;
  LIB_TRY(const std::uint64_t room,
          room_bytes(files, *environment_.clock, staging_path(), where, others));
  return options_.disk_limit_bytes
             ? std::min(room, minus(*options_.disk_limit_bytes, disk_.peak_bytes))
             : room;
}

Result<void> PreparedJob::plan_weight_staging() {
  StagingInputs inputs;
  inputs.checkpoint = &*checkpoint_;
  inputs.last_layer = captures_.last_layer();
  inputs.mode = options_.staging;
  inputs.readings_max = memory_.readings_max;
  inputs.spare_memory_bytes = minus(memory_.limit_bytes, memory_.total_bytes);
  inputs.connections = options_.connections;
  if (model_.read_from.scheme != "file" && options_.staging != StagingMode::memory) {
    LIB_TRY(inputs.limit_bytes, staging_limit_bytes());
  }
  staging_ = plan_staging(inputs);
  const bool no_place =
      options_.out.empty() && options_.scratch.empty() && options_.weights_cache.empty();
  staging_.directory = no_place ? "OUT/scratch" : staging_path();
  staging_.is_cache = !options_.weights_cache.empty();
  memory_.staging_bytes = staging_.memory_bytes;
  memory_.total_bytes += staging_.memory_bytes;
  const bool wanted = options_.staging == StagingMode::disk || staging_.is_cache;
  if (wanted && !staging_.on_disk && model_.read_from.scheme != "file") {
    warnings_.push_back("weights are not staged on disk, but read as ranges: " + staging_.reason);
  }
  return {};
}

/// @param directory  Set if files are staged; must outlive the source.
Result<std::unique_ptr<weightmap::WeightSource>> PreparedJob::open_weight_source(
    std::unique_ptr<StagingDirectory>& directory) {
  if (!staging_.on_disk) {
    return std::make_unique<weightmap::DirectSource>(*fetcher_, *checkpoint_);
  }
  FileSystem& files = *environment_.files;
  LIB_TRY(directory, StagingDirectory::open(files, *environment_.clock,
                                            {staging_.directory, staging_.limit_bytes,
                                             weightmap::remote::kSegmentBytes}));
  weightmap::remote::FileStagingOptions staging;
  staging.object_bytes_max = staging_.largest_file_bytes;
  staging.slabs = staging_.slabs;
  weightmap::StagedSourceOptions options;
  options.last_layer = captures_.last_layer();
  options.keep = staging_.is_cache;
  return std::make_unique<weightmap::StagedSource>(
      *fetcher_, *checkpoint_, files, *environment_.clock, *directory, staging, options);
}

/// Removes the job's scratch directories, which are empty once every part is published.
Result<void> PreparedJob::remove_scratch() {
  FileSystem& files = *environment_.files;
  const std::string weights = scratch_root() + "/weights";
  if (files.info(weights)) {
    LIB_TRY(const auto directory, StagingDirectory::open(files, *environment_.clock, {weights, 0}));
    LIB_TRY_VOID(directory->clear({}));
  }
  // Another process may still be at its last part's clean-up: then the directories are not empty
  // and stay.
  static_cast<void>(files.remove_directory(scratch_root()));
  if (options_.scratch.empty()) {
    static_cast<void>(files.remove_directory(options_.out + "/scratch"));
  }
  return {};
}

}  // namespace librarian::ingest
