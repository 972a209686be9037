#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/file_system.h"
#include "base/unique_handle.h"

namespace librarian {
namespace {

constexpr mode_t kFileMode = 0644;
constexpr mode_t kDirectoryMode = 0755;
constexpr mode_t kPrivateDirectoryMode = 0700;

struct DescriptorTraits {
  using Raw = int;
  static constexpr Raw null = -1;
  static void close(Raw descriptor) noexcept { static_cast<void>(::close(descriptor)); }
};
using Descriptor = UniqueHandle<DescriptorTraits>;

struct DirectoryTraits {
  using Raw = DIR*;
  static constexpr Raw null = nullptr;
  static void close(Raw directory) noexcept { static_cast<void>(::closedir(directory)); }
};
using Directory = UniqueHandle<DirectoryTraits>;

Error from_errno(const char* action, const std::string& path) {
  const int number = errno;
  ErrorCode code = ErrorCode::io;
  const char* advice = "";
  switch (number) {
    case ENOENT:
    case ENOTDIR:
      code = ErrorCode::not_found;
      break;
    case EEXIST:
      code = ErrorCode::already_exists;
      break;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      code = ErrorCode::no_space;
      advice = "; free some space and run the same command again: it resumes";
      break;
    default:
      break;
  }
  return Error(
      code, std::string("cannot ") + action + " " + path + ": " + std::strerror(number) + advice);
}

template <typename Call>
auto retry_interrupted(Call call) {
  auto result = call();
  while (result == -1 && errno == EINTR) {
    result = call();
  }
  return result;
}

class PosixFile final : public File {
 public:
  PosixFile(Descriptor descriptor, std::string path)
      : descriptor_(std::move(descriptor)), path_(std::move(path)) {}

  Result<void> append(std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const ssize_t written =
          retry_interrupted([&] { return ::write(descriptor_.get(), bytes.data(), bytes.size()); });
      if (written < 0) {
        return from_errno("write", path_);
      }
      bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
    return {};
  }

  Result<void> write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const ssize_t written = retry_interrupted([&] {
        return ::pwrite(descriptor_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
      });
      if (written < 0) {
        return from_errno("write", path_);
      }
      bytes = bytes.subspan(static_cast<std::size_t>(written));
      offset += static_cast<std::uint64_t>(written);
    }
    return {};
  }

  Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> into) const override {
    std::size_t done = 0;
    while (done < into.size()) {
      const ssize_t got = retry_interrupted([&] {
        return ::pread(descriptor_.get(), into.data() + done, into.size() - done,
                       static_cast<off_t>(offset + done));
      });
      if (got < 0) {
        return from_errno("read", path_);
      }
      if (got == 0) {
        break;
      }
      done += static_cast<std::size_t>(got);
    }
    return done;
  }

  std::shared_ptr<const FileMap> map() const override {
    const auto bytes = this->size();
    return bytes ? FileMap::of(descriptor_.get(), *bytes) : nullptr;
  }

  Result<void> sync_data() override {
    return checked(retry_interrupted([&] { return ::fdatasync(descriptor_.get()); }), "sync");
  }

  Result<std::uint64_t> size() const override {
    struct stat status {};
    if (::fstat(descriptor_.get(), &status) != 0) {
      return from_errno("look at", path_);
    }
    return static_cast<std::uint64_t>(status.st_size);
  }

  Result<void> truncate(std::uint64_t size) override {
    return checked(
        retry_interrupted([&] { return ::ftruncate(descriptor_.get(), static_cast<off_t>(size)); }),
        "truncate");
  }

  Result<void> reserve(std::uint64_t bytes) override {
    LIB_TRY(const std::uint64_t now, size());
    if (now >= bytes) {
      return {};
    }
    const int status = retry_interrupted([&] {
      return ::fallocate(descriptor_.get(), 0, static_cast<off_t>(now),
                         static_cast<off_t>(bytes - now));
    });
    if (status != 0 && errno == EOPNOTSUPP) {
      return truncate(bytes);
    }
    return checked(status, "reserve room for");
  }

  Result<void> touch() override { return checked(::futimens(descriptor_.get(), nullptr), "touch"); }

  Result<bool> try_lock() override {
    LIB_TRY(const bool locked, lock_as(LOCK_EX));
    // The kernel drops a shared lock before it looks whether the exclusive one is free.
    if (!locked && shared_) {
      LIB_TRY(shared_, lock_as(LOCK_SH));
    }
    shared_ = shared_ && !locked;
    return locked;
  }
  Result<bool> try_lock_shared() override {
    LIB_TRY(shared_, lock_as(LOCK_SH));
    return shared_;
  }

  Result<std::uint64_t> inode() const override {
    struct stat status {};
    if (::fstat(descriptor_.get(), &status) != 0) {
      return from_errno("look at", path_);
    }
    return static_cast<std::uint64_t>(status.st_ino);
  }

 private:
  Result<void> checked(int status, const char* action) const {
    if (status != 0) {
      return from_errno(action, path_);
    }
    return {};
  }

  Result<bool> lock_as(int kind) {
    if (retry_interrupted([&] { return ::flock(descriptor_.get(), kind | LOCK_NB); }) == 0) {
      return true;
    }
    if (errno == EWOULDBLOCK) {
      return false;
    }
    return from_errno("lock", path_);
  }

  Descriptor descriptor_;
  std::string path_;
  bool shared_ = false;  // Holds the shared lock.
};

class PosixFileSystem final : public FileSystem {
 public:
  Result<std::unique_ptr<File>> create(const std::string& path) override {
    return open_with(path, O_RDWR | O_APPEND | O_CREAT | O_EXCL, "create");
  }
  Result<std::unique_ptr<File>> create_sparse(const std::string& path) override {
    return open_with(path, O_RDWR | O_CREAT | O_EXCL, "create");
  }
  Result<std::unique_ptr<File>> open_sparse(const std::string& path) override {
    return open_with(path, O_RDWR, "open");
  }
  Result<std::unique_ptr<File>> open(const std::string& path) override {
    // Without O_NONBLOCK, opening a pipe would wait for somebody to write to it.
    Descriptor descriptor(
        retry_interrupted([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); }));
    if (!descriptor) {
      return from_errno("open", path);
    }
    struct stat status {};
    if (::fstat(descriptor.get(), &status) != 0) {
      return from_errno("look at", path);
    }
    if (!S_ISREG(status.st_mode)) {
      return Error(ErrorCode::not_found, "cannot open " + path + ": it is not a regular file");
    }
    return std::make_unique<PosixFile>(std::move(descriptor), path);
  }
  Result<std::unique_ptr<File>> open_append(const std::string& path,
                                            bool create_if_missing) override {
    return open_with(path, O_RDWR | O_APPEND | (create_if_missing ? O_CREAT : 0), "open");
  }

  Result<FileInfo> info(const std::string& path) override {
    struct stat status {};
    if (::lstat(path.c_str(), &status) != 0) {
      return from_errno("look at", path);
    }
    FileInfo result{};
    result.kind = S_ISREG(status.st_mode)   ? FileKind::file
                  : S_ISDIR(status.st_mode) ? FileKind::directory
                                            : FileKind::other;
    result.size = static_cast<std::uint64_t>(status.st_size);
    result.modified_ns =
        static_cast<std::int64_t>(status.st_mtim.tv_sec) * 1'000'000'000 + status.st_mtim.tv_nsec;
    result.inode = static_cast<std::uint64_t>(status.st_ino);
    result.device = static_cast<std::uint64_t>(status.st_dev);
    return result;
  }

  Result<std::vector<std::string>> list(const std::string& path) override {
    const Directory directory(::opendir(path.c_str()));
    if (!directory) {
      return from_errno("list", path);
    }
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* entry = ::readdir(directory.get())) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") {
        names.push_back(name);
      }
      errno = 0;
    }
    if (errno != 0) {
      return from_errno("list", path);
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  Result<void> make_directory(const std::string& path) override {
    return make_directory(path, kDirectoryMode);
  }
  Result<void> make_private_directory(const std::string& path) override {
    return make_directory(path, kPrivateDirectoryMode);
  }
  static Result<void> make_directory(const std::string& path, mode_t mode) {
    if (::mkdir(path.c_str(), mode) != 0) {
      Error error = from_errno("create directory", path);
      if (error.code() != ErrorCode::already_exists) {
        return error;
      }
      struct stat existing {};
      if (::stat(path.c_str(), &existing) != 0 || !S_ISDIR(existing.st_mode)) {
        return Error(ErrorCode::io, path + " is not a directory");
      }
    }
    return {};
  }

  Result<void> rename(const std::string& from, const std::string& to) override {
    return checked(::rename(from.c_str(), to.c_str()), "rename to", to);
  }
  Result<void> link(const std::string& from, const std::string& to) override {
    return checked(::link(from.c_str(), to.c_str()), "link to", to);
  }
  Result<void> remove_file(const std::string& path) override {
    return absent_is_fine(::unlink(path.c_str()), path);
  }
  Result<void> remove_directory(const std::string& path) override {
    return absent_is_fine(::rmdir(path.c_str()), path);
  }

  Result<void> sync_directory(const std::string& path) override {
    const Descriptor directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!directory) {
      return from_errno("open directory", path);
    }
    return checked(retry_interrupted([&] { return ::fsync(directory.get()); }), "sync directory",
                   path);
  }

  Result<std::uint64_t> free_bytes(const std::string& path) override {
    struct statvfs status {};
    if (::statvfs(path.c_str(), &status) != 0) {
      return from_errno("look at the file system of", path);
    }
    return static_cast<std::uint64_t>(status.f_bavail) * status.f_frsize;
  }

 private:
  static Result<std::unique_ptr<File>> open_with(const std::string& path, int flags,
                                                 const char* action) {
    Descriptor descriptor(retry_interrupted(
        [&] { return ::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW, kFileMode); }));
    if (!descriptor) {
      return from_errno(action, path);
    }
    return std::make_unique<PosixFile>(std::move(descriptor), path);
  }

  static Result<void> checked(int status, const char* action, const std::string& path) {
    if (status != 0) {
      return from_errno(action, path);
    }
    return {};
  }

  static Result<void> absent_is_fine(int status, const std::string& path) {
    if (status != 0 && errno != ENOENT) {
      return from_errno("remove", path);
    }
    return {};
  }
};

}  // namespace

FileSystem& posix_file_system() {
  static PosixFileSystem files;
  return files;
}

}  // namespace librarian
