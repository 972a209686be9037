#pragma once
/// Files in memory that can crash: an operation count after which everything fails, and a view of
/// what a power cut at that moment would leave on disk.

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/file_system.h"

namespace librarian::testing {

/// What of the changes that were not synced a crash leaves.
enum class Survival : std::uint8_t {
  durable_only,  ///< Nothing: the strictest disk that POSIX allows.
  everything,    ///< All of it: kill -9, where the page cache lives on.
  torn,          ///< Names survive; of each file's unsynced tail only the first half does.
};

/// A tree of files below "/". Thread-safe. Durable operations (create, append, sync, truncate,
/// rename, link, remove, make and sync a directory) are counted from 1.
class MemoryFileSystem final : public FileSystem {
 public:
  MemoryFileSystem();
  ~MemoryFileSystem() override;

  /// Operation number `operation` and all after it fail with ErrorCode::io and do nothing.
  void crash_at(std::uint64_t operation);
  /// Restarts the machine: open files are lost, unsynced changes survive as `survival` says, the
  /// crash point and the operation count are cleared.
  void restart(Survival survival);
  std::uint64_t operations() const;
  /// The disk takes this many more bytes, then reports no_space.
  void set_free_bytes(std::uint64_t bytes);
  /// Changes a file behind everyone's back, as bit rot does. The file must exist.
  void corrupt(const std::string& path, std::uint64_t offset, std::byte xor_with);
  /// path -> contents of every file, as a reader sees it now.
  std::map<std::string, std::string> snapshot() const;

  Result<std::unique_ptr<File>> create(const std::string& path) override;
  Result<std::unique_ptr<File>> create_sparse(const std::string& path) override;
  Result<std::unique_ptr<File>> open_sparse(const std::string& path) override;
  Result<std::unique_ptr<File>> open(const std::string& path) override;
  Result<std::unique_ptr<File>> open_append(const std::string& path,
                                            bool create_if_missing) override;
  Result<FileInfo> info(const std::string& path) override;
  Result<std::vector<std::string>> list(const std::string& path) override;
  Result<void> make_directory(const std::string& path) override;
  Result<void> make_private_directory(const std::string& path) override;
  Result<void> rename(const std::string& from, const std::string& to) override;
  Result<void> link(const std::string& from, const std::string& to) override;
  Result<void> remove_file(const std::string& path) override;
  Result<void> remove_directory(const std::string& path) override;
  Result<void> sync_directory(const std::string& path) override;
  Result<std::uint64_t> free_bytes(const std::string& path) override;

 private:
  struct Node;
  class OpenFile;
  struct Place {  // a name in a directory; node is null if nothing has that name
    std::shared_ptr<Node> directory;
    std::string name;
    std::shared_ptr<Node> node;
  };

  Result<Place> find(const std::string& path) const;
  Result<void> count_operation();
  std::shared_ptr<Node> make_node(bool is_directory);

  mutable std::mutex mutex_;
  std::shared_ptr<Node> root_;
  std::uint64_t operations_ = 0;
  std::optional<std::uint64_t> crash_at_;
  std::uint64_t free_bytes_ = 1ULL << 40U;
  std::uint64_t next_inode_ = 1;
  std::int64_t now_ns_ = 0;  // Counts touches.
  std::uint64_t boot_ = 0;   // files opened before a restart are dead
};

}  // namespace librarian::testing
