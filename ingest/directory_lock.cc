#include "ingest/directory_lock.h"

#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <fstream>

#include "base/json.h"
#include "base/log.h"
#include "base/random.h"

namespace librarian::ingest {
namespace {

using namespace std::chrono_literals;

constexpr auto kRenewalPeriod = 20s;
constexpr auto kStaleAfter = 120s;
constexpr auto kRetryPeriod = 200ms;
// Others hold a store's lock for moments: only a longer wait is worth a word.
constexpr int kAttemptsBeforeWarning = 25;
constexpr std::uint64_t kLockBytesMax = 4096;

std::string host_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "unknown";
}

/// Changes at every boot, so a pid of before means nothing now.
std::string boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  file >> id;
  return id;
}

std::int64_t wall_clock_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::string utc_text(std::int64_t time_ns) {
  const auto seconds = static_cast<std::time_t>(time_ns / 1'000'000'000);
  std::tm parts{};
  std::array<char, 32> text{};
  ::gmtime_r(&seconds, &parts);
  std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text.data();
}

struct Holder {
  std::string host;
  std::string boot;
  std::string nonce;
  std::string description;
};

/// Nothing if the file is empty or was cut short while being written.
std::optional<Holder> parse_holder(const std::string& text) {
  const auto document = parse_json(text, "lock");
  if (!document) {
    return std::nullopt;
  }
  const auto host = json_string(*document, "host", "lock");
  const auto boot = json_string(*document, "boot_id", "lock");
  const auto nonce = json_string(*document, "nonce", "lock");
  const auto pid = json_uint(*document, "pid", "lock");
  const auto start = json_string(*document, "start", "lock");
  if (!host || !boot || !nonce || !pid || !start) {
    return std::nullopt;
  }
  return Holder{*host, *boot, *nonce,
                "process " + std::to_string(*pid) + " on " + *host + " since " + *start};
}

std::string read_open_file(const File& file) {
  std::string text(kLockBytesMax, '\0');
  const auto got = file.read_at(0, std::as_writable_bytes(std::span(text)));
  text.resize(got ? *got : 0);
  return text;
}

}  // namespace

DirectoryLock::DirectoryLock(FileSystem& files, std::string path, std::string nonce,
                             std::unique_ptr<File> file)
    : files_(files), path_(std::move(path)), nonce_(std::move(nonce)), file_(std::move(file)) {
  // Renewal follows the machine's clock, not the job's: other machines compare it with theirs.
  renewal_ = std::jthread([this](const std::stop_token& stop) {
    while (real_clock().sleep_for(kRenewalPeriod, stop)) {
      if (!file_->touch()) {
        log(LogLevel::warning, "lock_renewal_failed", {{"path", path_}});
      }
    }
  });
}

DirectoryLock::~DirectoryLock() {
  renewal_.request_stop();
  renewal_.join();
  // An empty file names nobody: another machine, which cannot tell that flock is free because we
  // are gone rather than because it lies, need not wait for the name to grow stale.
  if (check_still_held()) {
    static_cast<void>(file_->truncate(0));
  }
}

Result<DirectoryLock::Outcome> DirectoryLock::try_acquire(FileSystem& files, Clock& /*clock*/,
                                                          const std::string& directory) {
  const std::string path = directory + "/.lock";
  LIB_TRY(std::unique_ptr<File> file, files.open_append(path, true));
  LIB_TRY(const bool locked, file->try_lock());
  const std::optional<Holder> holder = parse_holder(read_open_file(*file));
  if (!locked) {
    return Outcome{nullptr, holder ? holder->description : "another process"};
  }
  // The file may have been removed by its holder between our open and our lock.
  LIB_TRY(const std::uint64_t inode, file->inode());
  auto named = files.info(path);
  if (!named || named->inode != inode) {
    return Outcome{nullptr, "another process that just finished"};
  }
  if (holder && (holder->boot != boot_id() || holder->host != host_name()) &&
      // A clock that is ahead of ours must not make a lock last longer either.
      std::abs(wall_clock_ns() - named->modified_ns) <
          std::chrono::duration_cast<std::chrono::nanoseconds>(kStaleAfter).count()) {
    return Outcome{nullptr, holder->description};
  }
  const std::string nonce = random_hex(16);
  const Json document = {{"host", host_name()},
                         {"boot_id", boot_id()},
                         {"pid", static_cast<std::uint64_t>(::getpid())},
                         {"start", utc_text(wall_clock_ns())},
                         {"nonce", nonce}};
  LIB_TRY_VOID(file->truncate(0));
  const std::string text = document.dump();
  LIB_TRY_VOID(file->append(std::as_bytes(std::span(text))));
  LIB_TRY_VOID(file->sync_data());
  return Outcome{
      std::unique_ptr<DirectoryLock>(new DirectoryLock(files, path, nonce, std::move(file))), ""};
}

Result<std::unique_ptr<DirectoryLock>> DirectoryLock::acquire(FileSystem& files, Clock& clock,
                                                              const std::string& directory,
                                                              const std::stop_token& stop) {
  for (int attempt = 0;; ++attempt) {
    LIB_TRY(Outcome outcome, try_acquire(files, clock, directory));
    if (outcome.lock) {
      return std::move(outcome.lock);
    }
    if (attempt == kAttemptsBeforeWarning) {
      log(LogLevel::warning, "waiting_for_lock",
          {{"directory", directory}, {"holder", outcome.holder}});
    }
    if (!clock.sleep_for(kRetryPeriod, stop)) {
      return Error(ErrorCode::cancelled, "stopped while waiting for " + directory + "/.lock");
    }
  }
}

Result<void> DirectoryLock::check_still_held() const {
  auto text = read_small_file(files_, path_, kLockBytesMax);
  const std::optional<Holder> holder = text ? parse_holder(*text) : std::nullopt;
  if (holder && holder->nonce == nonce_) {
    return {};
  }
  return Error(ErrorCode::conflict,
               path_ + ": taken over by " + (holder ? holder->description : "somebody else") +
                   "; this process was silent for too long and stops without committing");
}

Result<void> DirectoryLock::remove() {
  LIB_TRY_VOID(check_still_held());
  return files_.remove_file(path_);
}

}  // namespace librarian::ingest
