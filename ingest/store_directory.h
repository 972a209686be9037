#pragma once
/// The store's directory as a whole: whose it is, which parts are free.

#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "activation_store/store_files.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/file_system.h"
#include "ingest/directory_lock.h"

namespace librarian::ingest {

/// @param directory  May be missing. @return nothing if no job was begun there.
/// @error conflict  It is not empty and not a store. @error corrupt | io
Result<std::optional<activation_store::JobFile>> read_existing_job(FileSystem& files,
                                                                   const std::string& directory);

/// Makes the directory this job's: writes job.json if nobody did, compares it if somebody did.
/// Two processes may race; one of them wins and the other reads the winner's.
/// @error conflict  It holds another job (names the fields that differ) or is foreign.
Result<void> claim_store(FileSystem& files, Clock& clock, const std::string& directory,
                         const activation_store::JobFile& job, const std::stop_token& stop);

/// The nearest directory above a path that exists: free space is asked there.
std::string existing_ancestor(FileSystem& files, std::string path);

/// What a look over the parts found.
struct PartClaim {
  std::optional<std::uint64_t> part;
  std::unique_ptr<DirectoryLock> lock;  ///< Of `part`'s directory.
  std::uint64_t complete = 0;           ///< Parts that need nothing any more.
  std::string holders;                  ///< Who works on the others, if nothing is free.
};
/// Takes the first part that is neither complete nor held.
/// @param scratch_root  Of the job: finishes the clean-up of a part whose owner died at it.
/// @param skip          A part that this process holds already.
Result<PartClaim> claim_part(FileSystem& files, Clock& clock, const std::string& directory,
                             const std::string& scratch_root, std::uint64_t part_count,
                             std::optional<std::uint64_t> skip);

/// Removes what only a running part needs, its lock last. The part's zarr.json is durable.
/// @param lock  Of the part's directory.
Result<void> clean_finished_part(FileSystem& files, const std::string& part_directory,
                                 const std::string& scratch_root, std::uint64_t part,
                                 DirectoryLock& lock);

}  // namespace librarian::ingest
