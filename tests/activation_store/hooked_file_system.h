#pragma once
/// A file system that calls back before each append: to be slow, to block, to fail.

#include <functional>
#include <memory>
#include <string>

#include "base/file_system.h"

namespace librarian::activation_store::testing {

/// Forwards everything to another one. Thread-safe if the hook is.
class HookedFileSystem final : public FileSystem {
 public:
  using Hook = std::function<void(const std::string& path)>;
  HookedFileSystem(FileSystem& files, Hook before_append)
      : files_(files), before_append_(std::move(before_append)) {}

  Result<std::unique_ptr<File>> create(const std::string& path) override {
    LIB_TRY(std::unique_ptr<File> file, files_.create(path));
    return std::make_unique<HookedFile>(std::move(file), path, before_append_);
  }
  Result<std::unique_ptr<File>> create_sparse(const std::string& path) override {
    return files_.create_sparse(path);
  }
  Result<std::unique_ptr<File>> open_sparse(const std::string& path) override {
    return files_.open_sparse(path);
  }
  Result<std::unique_ptr<File>> open(const std::string& path) override { return files_.open(path); }
  Result<std::unique_ptr<File>> open_append(const std::string& path, bool create) override {
    return files_.open_append(path, create);
  }
  Result<FileInfo> info(const std::string& path) override { return files_.info(path); }
  Result<std::vector<std::string>> list(const std::string& path) override {
    return files_.list(path);
  }
  Result<void> make_directory(const std::string& path) override {
    return files_.make_directory(path);
  }
  Result<void> make_private_directory(const std::string& path) override {
    return files_.make_private_directory(path);
  }
  Result<void> rename(const std::string& from, const std::string& to) override {
    return files_.rename(from, to);
  }
  Result<void> link(const std::string& from, const std::string& to) override {
    return files_.link(from, to);
  }
  Result<void> remove_file(const std::string& path) override { return files_.remove_file(path); }
  Result<void> remove_directory(const std::string& path) override {
    return files_.remove_directory(path);
  }
  Result<void> sync_directory(const std::string& path) override {
    return files_.sync_directory(path);
  }
  Result<std::uint64_t> free_bytes(const std::string& path) override {
    return files_.free_bytes(path);
  }

 private:
  class HookedFile final : public File {
   public:
    HookedFile(std::unique_ptr<File> file, std::string path, const Hook& hook)
        : file_(std::move(file)), path_(std::move(path)), hook_(hook) {}
    Result<void> append(std::span<const std::byte> bytes) override {
      hook_(path_);
      return file_->append(bytes);
    }
    Result<void> write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
      return file_->write_at(offset, bytes);
    }
    Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> into) const override {
      return file_->read_at(offset, into);
    }
    Result<void> sync_data() override { return file_->sync_data(); }
    Result<std::uint64_t> size() const override { return file_->size(); }
    Result<void> truncate(std::uint64_t size) override { return file_->truncate(size); }
    Result<void> touch() override { return file_->touch(); }
    Result<void> reserve(std::uint64_t size) override { return file_->reserve(size); }
    Result<bool> try_lock() override { return file_->try_lock(); }
    Result<bool> try_lock_shared() override { return file_->try_lock_shared(); }
    Result<std::uint64_t> inode() const override { return file_->inode(); }

   private:
    std::unique_ptr<File> file_;
    const std::string path_;
    const Hook& hook_;
  };

  FileSystem& files_;
  const Hook before_append_;
};

}  // namespace librarian::activation_store::testing
