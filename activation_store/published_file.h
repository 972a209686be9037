#pragma once
/// Small files of a part that are written in one go: temporary, synced, renamed.

#include <span>
#include <string>
#include <vector>

#include "activation_store/types.h"
#include "base/error.h"
#include "base/file_system.h"

namespace librarian::activation_store {

/// Bytes that go one after the other into one file.
using Pieces = std::vector<std::span<const std::byte>>;

/// Writes `directory`/`path` durably under its final name, except that the name itself lasts only
/// after sync_directory() of its parent, which must exist.
/// @error io | no_space | already_exists
Result<FileRecord> write_published(FileSystem& files, const std::string& directory,
                                   const std::string& path, const Pieces& pieces,
                                   const std::string& nonce);

/// Reads a sealed JSON file whole. A file above `bytes_max` is reported as corrupt.
/// @error not_found | corrupt | io
Result<std::string> read_sealed_text(FileSystem& files, const std::string& path,
                                     std::uint64_t bytes_max = 64U << 20U);

}  // namespace librarian::activation_store
