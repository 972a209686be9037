#pragma once
/// One array of a published part, checked against the part's manifest in a single reading.

#include <functional>
#include <map>
#include <stop_token>
#include <string>
#include <vector>

#include "activation_store/store_files.h"
#include "activation_store/verify.h"
#include "base/error.h"
#include "base/file_system.h"

namespace librarian::activation_store {

/// What the checks of one part share.
struct PartCheck {
  FileSystem& files;
  std::string directory;  ///< Of the part, full path.
  std::string name;       ///< Of the part, as problems name it.
  const PartFile& part;
  std::map<std::string, FileRecord> manifest;  ///< By path relative to the part.
  VerifyReport& report;
  std::stop_token stop;
  std::function<void(std::uint64_t)> progress;

  void problem(const std::string& path, const std::string& message);
  /// Counts bytes read. @error cancelled
  Result<void> advance(std::uint64_t bytes);
};

/// Size and CRC32C of one file against its record; a problem if they do not fit.
/// @return True if the file is right. @error cancelled | io
Result<bool> check_file(PartCheck& check, const FileRecord& record);

/// Files, metadata, every chunk, and the rows' digest of a capture array. Reads each shard once.
Result<void> check_capture_array(PartCheck& check, const ArrayRecord& record);

/// The same for an array below tokens/.
Result<void> check_token_array(PartCheck& check, const ArrayRecord& record);

}  // namespace librarian::activation_store
