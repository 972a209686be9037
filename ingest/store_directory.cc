#include "ingest/store_directory.h"

#include <algorithm>

#include "base/random.h"
#include "ingest/identity.h"
#include "ingest/part_journal.h"
#include "ingest/residual_state.h"

namespace librarian::ingest {
namespace {

constexpr const char* kJobName = "job.json";
constexpr const char* kGroupName = "zarr.json";
constexpr const char* kLockName = ".lock";
constexpr const char* kScratchName = "scratch";

Error foreign(const std::string& directory, const std::string& name) {
  return Error(ErrorCode::conflict, directory +
                                        ": not empty and not a store of librarian (it holds '" +
                                        name + "'); give an empty or a new directory");
}

/// Files that exist before job.json does: a lock, and a job.json that was being written.
bool may_precede_job(const std::string& name) {
  return name == kLockName || name == kScratchName ||
         name.starts_with(std::string(kJobName) + ".partial-");
}

Result<void> publish_job(FileSystem& files, const std::string& directory,
                         const activation_store::JobFile& job) {
  const std::string path = directory + "/" + kJobName;
  const std::string temporary = path + ".partial-" + random_hex(8);
  {
    LIB_TRY(const std::unique_ptr<File> file, files.create(temporary));
    const std::string text = activation_store::job_file_text(job);
    LIB_TRY_VOID(file->append(std::as_bytes(std::span(text))));
    LIB_TRY_VOID(file->sync_data());
  }
  // A link, unlike a rename, fails if somebody was faster; who was may also have cleaned up.
  auto linked = files.link(temporary, path);
  LIB_TRY_VOID(files.remove_file(temporary));
  if (!linked && !files.info(path)) {
    return linked;
  }
  return files.sync_directory(directory);
}

}  // namespace

Result<std::optional<activation_store::JobFile>> read_existing_job(FileSystem& files,
                                                                   const std::string& directory) {
  auto names = files.list(directory);
  if (!names) {
    if (names.error().code() == ErrorCode::not_found) {
      auto info = files.info(directory);
      if (info && info->kind != FileKind::directory) {
        return Error(ErrorCode::conflict, directory + ": is not a directory");
      }
      return std::optional<activation_store::JobFile>();
    }
    return names.error();
  }
  if (std::find(names->begin(), names->end(), kJobName) == names->end()) {
    const auto other = std::find_if_not(names->begin(), names->end(), may_precede_job);
    if (other != names->end()) {
      return foreign(directory, *other);
    }
    return std::optional<activation_store::JobFile>();
  }
  LIB_TRY(activation_store::JobFile job, activation_store::read_job_file(files, directory));
  return std::optional(std::move(job));
}

Result<void> claim_store(FileSystem& files, Clock& clock, const std::string& directory,
                         const activation_store::JobFile& job, const std::stop_token& stop) {
  LIB_TRY(std::optional<activation_store::JobFile> existing, read_existing_job(files, directory));
  if (!existing) {
    LIB_TRY_VOID(make_directories(files, directory));
    LIB_TRY_VOID(publish_job(files, directory, job));
    LIB_TRY(existing, read_existing_job(files, directory));
    LIB_CHECK(existing.has_value());
  }
  if (existing->identity_digest != job.identity_digest) {
    std::string fields;
    for (const std::string& field : identity_differences(job.identity, existing->identity)) {
      fields += (fields.empty() ? "" : ", ") + field;
    }
    return Error(ErrorCode::conflict,
                 directory + ": holds another job; it differs in " + fields +
                     "; give the options of that job to resume it, or another directory");
  }
  LIB_TRY(const std::unique_ptr<DirectoryLock> lock,
          DirectoryLock::acquire(files, clock, directory, stop));
  LIB_TRY_VOID(remove_temporaries(files, directory, 0));
  const std::string group = directory + "/" + kGroupName;
  if (files.info(group)) {
    return {};
  }
  return replace_file(files, group, activation_store::store_group_text(job.identity));
}

std::string existing_ancestor(FileSystem& files, std::string path) {
  while (!files.info(path) && path != "/" && path != ".") {
    path = parent_path(path);
  }
  return path;
}

Result<void> clean_finished_part(FileSystem& files, const std::string& part_directory,
                                 const std::string& scratch_root, std::uint64_t part,
                                 DirectoryLock& lock) {
  const std::string scratch = scratch_root + "/" + activation_store::part_directory_name(part);
  auto states = files.list(scratch);
  if (states) {
    for (const std::string& name : *states) {
      if (ResidualState::is_file_name(name)) {
        LIB_TRY_VOID(files.remove_file(scratch + "/" + name));
      }
    }
    LIB_TRY_VOID(files.remove_directory(scratch));
    // Before the journal goes, which is what tells the next process to look here.
    LIB_TRY_VOID(files.sync_directory(scratch_root));
  }
  LIB_TRY_VOID(files.remove_file(part_directory + "/" + kJournalName));
  LIB_TRY_VOID(remove_temporaries(files, part_directory, 0));
  LIB_TRY_VOID(lock.remove());
  return files.sync_directory(part_directory);
}

Result<PartClaim> claim_part(FileSystem& files, Clock& clock, const std::string& directory,
                             const std::string& scratch_root, std::uint64_t part_count,
                             std::optional<std::uint64_t> skip) {
  PartClaim claim;
  for (std::uint64_t part = 0; part < part_count; ++part) {
    if (part == skip) {
      continue;
    }
    const std::string part_directory =
        directory + "/" + activation_store::part_directory_name(part);
    const std::string group = part_directory + "/" + kGroupName;
    const bool published = files.info(group).has_value();
    // A crash right after publication leaves journal and lock: the owner's last duty is ours then.
    const bool cleaned = !files.info(part_directory + "/" + kJournalName) &&
                         !files.info(part_directory + "/" + kLockName);
    if (published && cleaned) {
      ++claim.complete;
      continue;
    }
    LIB_TRY_VOID(make_directories(files, part_directory));
    LIB_TRY(DirectoryLock::Outcome outcome,
            DirectoryLock::try_acquire(files, clock, part_directory));
    if (!outcome.lock) {
      claim.holders += (claim.holders.empty() ? "" : "; ") +
                       activation_store::part_directory_name(part) + ": " + outcome.holder;
      continue;
    }
    if (files.info(group)) {  // Published while we waited for the lock, or before a crash.
      LIB_TRY_VOID(clean_finished_part(files, part_directory, scratch_root, part, *outcome.lock));
      ++claim.complete;
      continue;
    }
    claim.part = part;
    claim.lock = std::move(outcome.lock);
    return claim;
  }
  return claim;
}

}  // namespace librarian::ingest
