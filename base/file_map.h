#pragma once
/// A file's bytes where the kernel keeps them.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

namespace librarian {

/// All of a file as it was long when it was mapped; stays when the file is closed or removed.
/// Thread-safe. A file that is cut while its bytes are looked at ends the program.
class FileMap {
 public:
  /// @return  Null where memory could fail later: on file systems that may lose what was read, and
  ///          of empty files.
  static std::shared_ptr<const FileMap> of(int descriptor, std::uint64_t file_bytes);
  ~FileMap();
  FileMap(const FileMap&) = delete;
  FileMap& operator=(const FileMap&) = delete;

  /// Bytes [offset, offset + size), all of them read already, valid as long as the map; nothing
  /// where they cannot be had: then File::read_at() tells what is wrong.
  std::optional<std::span<const std::byte>> bytes(std::uint64_t offset, std::uint64_t size) const;

 private:
  explicit FileMap(std::span<std::byte> memory) : memory_(memory) {}
  const std::span<std::byte> memory_;
};

}  // namespace librarian
