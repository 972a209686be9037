#pragma once
/// Who works on what: a lock file that a crash gives up by itself and that says who holds it.

#include <memory>
#include <optional>
#include <string>

#include "base/clock.h"
#include "base/error.h"
#include "base/file_system.h"

namespace librarian::ingest {

/// Holds `<directory>/.lock`: flock, and a renewal every 20 s for file systems where flock lies.
class DirectoryLock {
 public:
  struct Outcome {
    std::unique_ptr<DirectoryLock> lock;  ///< Null if somebody else holds it,
    std::string holder;                   ///< who is described here: host, pid, since when.
  };
  /// Takes the lock if it is free: flock is free, and the last holder is of this boot or has not
  /// renewed for two minutes. @error io | no_space
  static Result<Outcome> try_acquire(FileSystem& files, Clock& clock, const std::string& directory);
  /// Waits until it is free. @error cancelled | io | no_space
  static Result<std::unique_ptr<DirectoryLock>> acquire(FileSystem& files, Clock& clock,
                                                        const std::string& directory,
                                                        const std::stop_token& stop);
  /// Gives the lock up: the file stays, empty.
  ~DirectoryLock();

  /// Re-reads the file before something is made durable on the strength of this lock.
  /// @error conflict  somebody else took it over; what was not committed must be dropped.
  Result<void> check_still_held() const;
  /// Removes the file; the lock ends with this object. @error conflict  it is another's by now
  Result<void> remove();

 private:
  DirectoryLock(FileSystem& files, std::string path, std::string nonce, std::unique_ptr<File> file);

  FileSystem& files_;
  std::string path_;
  std::string nonce_;
  std::unique_ptr<File> file_;
  std::jthread renewal_;  // Last: it stops before the file closes.
};

}  // namespace librarian::ingest
