#pragma once
/// An append-only file of records that knows, after any crash, which of them are whole.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/file_system.h"

namespace librarian {

/// Frame: magic u32, payload bytes u32, sequence u64, CRC32C of the frame before u32, payload,
/// CRC32C of everything before it u32; little-endian.
struct JournalContents {
  std::vector<std::string> records;
  std::uint64_t torn_bytes = 0;  ///< Behind the last whole record: a write the crash cut short.
};

/// @error not_found | io
/// @error corrupt  a broken frame has a whole one behind it: damage, not a torn tail; or the file
///                 does not begin with one though it has bytes for it.
Result<JournalContents> read_journal(FileSystem& files, const std::string& path);

/// The one writer of a journal. Not thread-safe.
class JournalWriter {
 public:
  /// Replaces `path` by a journal of exactly `records`: new file, synced, renamed, directory
  /// synced. A crash leaves the old journal or the new one.
  static Result<JournalWriter> create(FileSystem& files, const std::string& path,
                                      const std::vector<std::string>& records);

  /// Appends a record and makes it durable. After an error the journal must not be used again.
  Result<void> append(std::string_view record);

 private:
  JournalWriter(std::unique_ptr<File> file) : file_(std::move(file)) {}
  std::string frame(std::string_view record);

  std::unique_ptr<File> file_;
  std::uint64_t sequence_ = 0;
  std::uint32_t previous_crc_ = 0;
};

}  // namespace librarian
