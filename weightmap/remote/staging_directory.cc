#include "weightmap/remote/staging_directory.h"

#include <algorithm>
#include <chrono>
#include <string_view>
#include <utility>

#include "base/digest.h"
#include "base/log.h"
#include "base/random.h"

namespace librarian::weightmap::remote {
namespace {

using namespace std::chrono_literals;

constexpr const char* kData = ".weights";
constexpr const char* kJournal = ".journal";
constexpr const char* kLock = ".lock";
constexpr const char* kDirectoryLock = "lock";
// Others hold the directory for moments.
constexpr Duration kRetryPeriod = 2ms;

bool all_hex(std::string_view text) {
  return text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

bool is_key(std::string_view key) {
  const auto is = [&](std::string_view kind, std::size_t digits) {
    return key.starts_with(kind) && key.size() == kind.size() + digits &&
           all_hex(key.substr(kind.size()));
  };
  return is("sha256-", 64) || is("stream-", 32);
}

/// The key of a name of ours with this ending; empty if it is none.
std::string key_of(const std::string& name, std::string_view ending) {
  if (!name.ends_with(ending)) {
    return "";
  }
  std::string key = name.substr(0, name.size() - ending.size());
  return is_key(key) ? key : "";
}

}  // namespace

std::string staging_key(const Uri& uri, const ObjectInfo& info) {
  if (info.sha256.size() == 64 && all_hex(info.sha256)) {
    return "sha256-" + info.sha256;
  }
  const std::string validator = info.validator.empty() ? random_hex(32) : info.validator;
  // The query may be a signature, which is another one next time.
  const std::string text = uri.display() + '\n' + validator + '\n' + std::to_string(info.size);
  return "stream-" + xxh3_128(text).hex();
}

std::uint64_t staging_footprint_bytes(std::uint64_t bytes, std::uint64_t segment_bytes) {
  // A record of a segment has less than 96 bytes, and there may be two journals for a moment.
  constexpr std::uint64_t kJournalBytes = 4096;
  constexpr std::uint64_t kSegmentRecordBytes = 192;
  return bytes + kJournalBytes + (bytes / segment_bytes + 1) * kSegmentRecordBytes;
}

StagingHold::StagingHold(std::string key, std::uint64_t bytes, const std::string& directory,
                         std::unique_ptr<File> lock)
    : key_(std::move(key)),
      bytes_(bytes),
      data_path_(directory + "/" + key_ + kData),
      journal_path_(directory + "/" + key_ + kJournal),
      lock_(std::move(lock)) {}

StagingDirectory::StagingDirectory(FileSystem& files, Clock& clock, Options options)
    : files_(files), clock_(clock), options_(std::move(options)) {}

Result<std::unique_ptr<StagingDirectory>> StagingDirectory::open(FileSystem& files, Clock& clock,
                                                                 Options options) {
  LIB_TRY_VOID(make_private_directories(files, options.path));
  return std::unique_ptr<StagingDirectory>(new StagingDirectory(files, clock, std::move(options)));
}

std::string StagingDirectory::path_of(const std::string& key, const char* ending) const {
  return options_.path + "/" + key + ending;
}

Result<std::unique_ptr<File>> StagingDirectory::lock_directory(const std::stop_token& stop) const {
  const std::string path = options_.path + "/" + kDirectoryLock;
  while (true) {
    LIB_TRY(std::unique_ptr<File> file, files_.open_append(path, true));
    LIB_TRY(const bool locked, file->try_lock());
    if (locked) {
      LIB_TRY(const std::uint64_t inode, file->inode());
      // clear() may have removed the file between our open and our lock.
      const auto named = files_.info(path);
      if (named && named->inode == inode) {
        return file;
      }
    } else if (!clock_.sleep_for(kRetryPeriod, stop)) {
      return Error(ErrorCode::cancelled, "stopped while waiting for " + path);
    }
  }
}

Result<std::vector<StagingDirectory::Object>> StagingDirectory::objects() const {
  std::vector<Object> found;
  LIB_TRY(const std::vector<std::string> names, files_.list(options_.path));
  for (const std::string& name : names) {
    const std::string key = key_of(name, kData);
    if (key.empty()) {
      continue;
    }
    LIB_TRY(const FileInfo data, files_.info(options_.path + "/" + name));
    const auto lock = files_.info(path_of(key, kLock));
    found.push_back({key, data.size, lock ? lock->modified_ns : 0});
  }
  return found;
}

Result<std::uint64_t> StagingDirectory::used_bytes() const {
  std::uint64_t bytes = 0;
  auto names = files_.list(options_.path);
  if (!names) {
    return names.error().code() == ErrorCode::not_found ? Result<std::uint64_t>(0) : names.error();
  }
  for (const std::string& name : *names) {
    if (!key_of(name, kData).empty() || !key_of(name, kJournal).empty()) {
      const auto info = files_.info(options_.path + "/" + name);
      bytes += info ? info->size : 0;  // It may just have gone.
    }
  }
  return bytes;
}

std::uint64_t StagingDirectory::progress_bytes(const std::string& key) const {
  const auto info = files_.info(path_of(key, kJournal));
  return info ? info->size : 0;
}

Result<bool> StagingDirectory::is_complete(const std::string& key, std::uint64_t bytes) const {
  const auto data = files_.info(path_of(key, kData));
  if (!data || data->kind != FileKind::file || data->size != bytes) {
    return false;
  }
  LIB_TRY(const auto journal,
          read_staging_journal(files_, path_of(key, kJournal), bytes, options_.segment_bytes));
  return journal && !journal->sha256.empty();
}

Result<StagingDirectory::Taken> StagingDirectory::take(const std::string& key, std::uint64_t bytes,
                                                       const std::set<std::string>& keep,
                                                       const std::stop_token& stop) {
  LIB_CHECK(is_key(key));
  // Locks of objects are only taken exclusively while the directory is held: so they can be
  // exchanged for shared ones without anybody coming between.
  LIB_TRY(const std::unique_ptr<File> directory, lock_directory(stop));
  LIB_TRY(const bool room, make_room(key, bytes, keep));
  if (!room && !files_.info(path_of(key, kData))) {
    return Taken{State::no_room, std::nullopt};
  }
  LIB_TRY(std::unique_ptr<File> lock, files_.open_append(path_of(key, kLock), true));
  LIB_TRY(const bool exclusive, lock->try_lock());
  LIB_TRY(const bool complete, is_complete(key, bytes));
  if (complete) {
    LIB_TRY(const bool shared, lock->try_lock_shared());
    if (shared) {
      LIB_TRY_VOID(lock->touch());
      return Taken{State::complete, StagingHold(key, bytes, options_.path, std::move(lock))};
    }
  }
  if (!exclusive) {
    return Taken{State::busy, std::nullopt};
  }
  if (!room) {
    return Taken{State::no_room, std::nullopt};
  }
  if (auto taken = take_room(key, bytes); !taken) {
    // A file of half the size would be counted as the room of an object that nobody brings.
    static_cast<void>(remove_files(key));
    return taken.error();
  }
  LIB_TRY_VOID(lock->touch());
  return Taken{State::staging, StagingHold(key, bytes, options_.path, std::move(lock))};
}

/// Deletes what nobody holds until `bytes` more fit. The directory is locked.
Result<bool> StagingDirectory::make_room(const std::string& key, std::uint64_t bytes,
                                         const std::set<std::string>& keep) {
  LIB_TRY(std::vector<Object> there, objects());
  std::uint64_t used = footprint(bytes);
  for (const Object& object : there) {
    used += object.key == key ? 0 : footprint(object.bytes);
  }
  std::sort(there.begin(), there.end(),
            [](const Object& a, const Object& b) { return a.used_ns < b.used_ns; });
  for (const Object& object : there) {
    if (used <= options_.limit_bytes) {
      break;
    }
    if (object.key == key || keep.contains(object.key)) {
      continue;
    }
    LIB_TRY(const bool removed, remove_unheld(object.key));
    used -= removed ? footprint(object.bytes) : 0;
  }
  return used <= options_.limit_bytes;
}

/// Gives the object a file of its full size. The directory and the object are locked.
Result<void> StagingDirectory::take_room(const std::string& key, std::uint64_t bytes) {
  const std::string path = path_of(key, kData);
  const auto before = files_.info(path);
  if (before && before->kind == FileKind::file && before->size == bytes) {
    return remove_temporaries_of(key);
  }
  LIB_TRY_VOID(remove_files(key));
  LIB_TRY(const std::unique_ptr<File> file, files_.create_sparse(path));
  LIB_TRY_VOID(file->reserve(bytes));
  LIB_TRY_VOID(file->sync_data());
  return files_.sync_directory(options_.path);
}

Result<void> StagingDirectory::completed(StagingHold& hold, const std::stop_token& stop) {
  LIB_TRY(const std::unique_ptr<File> directory, lock_directory(stop));
  LIB_TRY(const bool shared, hold.lock_->try_lock_shared());
  LIB_CHECK(shared);
  return hold.lock_->touch();
}

Result<bool> StagingDirectory::remove(StagingHold hold, const std::stop_token& stop) {
  LIB_TRY(const std::unique_ptr<File> directory, lock_directory(stop));
  LIB_TRY(const bool alone, hold.lock_->try_lock());
  if (!alone) {
    return false;
  }
  LIB_TRY_VOID(remove_files(hold.key_));
  LIB_TRY_VOID(files_.remove_file(path_of(hold.key_, kLock)));
  return true;
}

Result<bool> StagingDirectory::remove_idle(const std::string& key, const std::stop_token& stop) {
  LIB_TRY(const std::unique_ptr<File> directory, lock_directory(stop));
  if (!files_.info(path_of(key, kData))) {
    return false;
  }
  return remove_unheld(key);
}

/// The directory is locked. @return false if somebody holds it.
Result<bool> StagingDirectory::remove_unheld(const std::string& key) {
  LIB_TRY(const std::unique_ptr<File> lock, files_.open_append(path_of(key, kLock), true));
  LIB_TRY(const bool free, lock->try_lock());
  if (!free) {
    return false;
  }
  log(LogLevel::info, "staged_file_removed", {{"directory", options_.path}, {"key", key}});
  LIB_TRY_VOID(remove_files(key));
  LIB_TRY_VOID(files_.remove_file(path_of(key, kLock)));
  return true;
}

/// All but the lock. The journal goes first, so that no crash leaves it without what it speaks of.
Result<void> StagingDirectory::remove_files(const std::string& key) {
  LIB_TRY_VOID(files_.remove_file(path_of(key, kJournal)));
  LIB_TRY_VOID(remove_temporaries_of(key));
  LIB_TRY_VOID(files_.sync_directory(options_.path));
  return files_.remove_file(path_of(key, kData));
}

/// What a crash left of a journal that was being replaced.
Result<void> StagingDirectory::remove_temporaries_of(const std::string& key) {
  LIB_TRY(const std::vector<std::string> names, files_.list(options_.path));
  for (const std::string& name : names) {
    if (name.starts_with(key + kJournal + ".") && is_temporary_name(name)) {
      LIB_TRY_VOID(files_.remove_file(options_.path + "/" + name));
    }
  }
  return {};
}

Result<void> StagingDirectory::clear(const std::stop_token& stop) {
  if (!files_.info(options_.path)) {
    return {};
  }
  LIB_TRY(const std::unique_ptr<File> directory, lock_directory(stop));
  LIB_TRY(std::vector<std::string> names, files_.list(options_.path));
  std::set<std::string> keys;
  for (const std::string& name : names) {
    for (const char* ending : {kData, kJournal, kLock}) {
      const std::string key = key_of(name, ending);
      if (!key.empty()) {
        keys.insert(key);
      }
    }
  }
  for (const std::string& key : keys) {
    LIB_TRY_VOID(remove_unheld(key));
  }
  LIB_TRY(names, files_.list(options_.path));
  if (names == std::vector<std::string>{kDirectoryLock}) {
    LIB_TRY_VOID(files_.remove_file(options_.path + "/" + kDirectoryLock));
    // Another process may have made its lock anew meanwhile: then the directory stays.
    static_cast<void>(files_.remove_directory(options_.path));
  }
  return {};
}

}  // namespace librarian::weightmap::remote
