#pragma once
/// Everything we do to files, as a seam: the real one, and in tests one that crashes and forgets
/// what was not synced, or is full. Paths are used as given. Reading follows symbolic links, which
/// caches and people use; creating, appending and removing never do.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file_map.h"

namespace librarian {

enum class FileKind : std::uint8_t { file, directory, other };

struct FileInfo {
  FileKind kind;
  std::uint64_t size;        ///< Bytes.
  std::int64_t modified_ns;  ///< Wall-clock time of the last change, Unix epoch.
  std::uint64_t inode;
  std::uint64_t device;  ///< Equal for everything on one file system.
};

/// One open file. Not thread-safe, except read_at() and map(), which any number of threads may
/// call. Destruction closes it (and gives up its lock); nothing is synced by closing.
class File {
 public:
  virtual ~File() = default;

  /// Appends all of `bytes`. @error no_space | io  names the path.
  virtual Result<void> append(std::span<const std::byte> bytes) = 0;
  /// Writes all of `bytes` at `offset`, growing the file if needed. Only for files opened by
  /// create_sparse() or open_sparse(): the others append wherever one writes.
  virtual Result<void> write_at(std::uint64_t offset, std::span<const std::byte> bytes) = 0;
  /// Reads from `offset`; fewer bytes than asked only at the end of the file.
  virtual Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> into) const = 0;
  /// The file's bytes without a copy; null where that cannot be had. For files that nobody changes
  /// any more: see FileMap.
  virtual std::shared_ptr<const FileMap> map() const { return nullptr; }
  /// Makes the bytes and the size durable. After an error the file must be written anew: the
  /// kernel may have dropped the dirty pages, so a second call would lie.
  virtual Result<void> sync_data() = 0;
  virtual Result<std::uint64_t> size() const = 0;
  virtual Result<void> truncate(std::uint64_t size) = 0;
  /// Grows the file to `size` bytes of zeros and takes the room for them, where the file system can
  /// promise room; never shrinks it. @error no_space | io
  virtual Result<void> reserve(std::uint64_t size) = 0;
  /// Sets the modification time to now.
  virtual Result<void> touch() = 0;
  /// Tries to take the exclusive advisory lock; false if another open file holds any. A shared lock
  /// that this file holds becomes exclusive, or is kept.
  virtual Result<bool> try_lock() = 0;
  /// Tries to take a shared one, which any number of open files may hold; false if another holds
  /// the exclusive one. An exclusive lock that this file holds becomes shared. Changing a lock
  /// gives others a moment between: only who holds yet another lock may rely on it.
  virtual Result<bool> try_lock_shared() = 0;
  /// Inode of the open file, to compare with what the path names now.
  virtual Result<std::uint64_t> inode() const = 0;
};

/// Access to one tree of files. Thread-safe.
class FileSystem {
 public:
  virtual ~FileSystem() = default;

  /// Creates a new file for appending (O_EXCL). @error already_exists | no_space | io
  virtual Result<std::unique_ptr<File>> create(const std::string& path) = 0;
  /// Creates a new file for write_at() (O_EXCL). @error already_exists | no_space | io
  virtual Result<std::unique_ptr<File>> create_sparse(const std::string& path) = 0;
  /// Opens an existing file for write_at() and read_at(). @error not_found | io
  virtual Result<std::unique_ptr<File>> open_sparse(const std::string& path) = 0;
  /// Opens a regular file for reading. @error not_found (also a directory, a pipe) | io
  virtual Result<std::unique_ptr<File>> open(const std::string& path) = 0;
  /// Opens for reading and appending; creates it if `create_if_missing`. @error not_found | io
  virtual Result<std::unique_ptr<File>> open_append(const std::string& path,
                                                    bool create_if_missing) = 0;
  /// What the path itself names, links not followed. @error not_found | io
  virtual Result<FileInfo> info(const std::string& path) = 0;
  /// Names in a directory, sorted, without "." and "..". @error not_found | io
  virtual Result<std::vector<std::string>> list(const std::string& path) = 0;
  /// Creates one directory; an existing one, or a link to one, is fine. @error not_found | io
  virtual Result<void> make_directory(const std::string& path) = 0;
  /// As make_directory(), and a new one is for this user alone (0700).
  virtual Result<void> make_private_directory(const std::string& path) = 0;
  /// Replaces `to` if it is there. Durable only after sync_directory() of both parents.
  virtual Result<void> rename(const std::string& from, const std::string& to) = 0;
  /// Hard link: `to` gets the file only if nothing has that name. @error already_exists | io
  virtual Result<void> link(const std::string& from, const std::string& to) = 0;
  /// Removes one file; not there is fine. @error io
  virtual Result<void> remove_file(const std::string& path) = 0;
  /// Removes one empty directory; not there is fine. @error io
  virtual Result<void> remove_directory(const std::string& path) = 0;
  /// Makes created, renamed and removed names in this directory durable. @error io
  virtual Result<void> sync_directory(const std::string& path) = 0;
  /// Bytes an unprivileged writer can still add on the file system that holds `path`.
  virtual Result<std::uint64_t> free_bytes(const std::string& path) = 0;
};

/// The machine's files; lives for the whole program.
FileSystem& posix_file_system();

/// Whole contents of a small file. @error not_found | io | bad_input (above `bytes_max`)
Result<std::string> read_small_file(FileSystem& files, const std::string& path,
                                    std::uint64_t bytes_max);

/// Fills `into` from `offset`. @error corrupt  the file ends before that.
Result<void> read_exactly(const File& file, const std::string& path, std::uint64_t offset,
                          std::span<std::byte> into);

/// Makes `path` and its missing parents, syncing each new name.
Result<void> make_directories(FileSystem& files, const std::string& path);
/// The same, and the new ones are for this user alone (0700).
Result<void> make_private_directories(FileSystem& files, const std::string& path);

/// Writes `text` to `path` so that a crash leaves the old file or the new one, never a mixture:
/// temporary beside it (`<path>.partial-<nonce>`), sync, rename, sync of the directory.
Result<void> replace_file(FileSystem& files, const std::string& path, std::string_view text);

/// True for "<name>.partial-<hex>": what a crash leaves of a file that was being written.
bool is_temporary_name(const std::string& name);

/// Removes files with such names from `path` and from `levels` levels of directories below it.
/// A directory that is not there is fine; links are not followed.
Result<void> remove_temporaries(FileSystem& files, const std::string& path, int levels);

/// "a/b" and "/": the directory part of a path; "." if it has none.
std::string parent_path(const std::string& path);

}  // namespace librarian
