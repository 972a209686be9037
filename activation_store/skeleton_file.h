#pragma once
/// What STORE/model/ holds: a small checkpoint of the teacher without its layers, for trainers.
/// Functions here keep no state: any may be called concurrently for different paths.

#include <cstdint>
#include <map>
#include <stop_token>
#include <string>
#include <vector>

#include "activation_store/verify.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/file_system.h"

namespace librarian::activation_store {

/// Directory of the skeleton in a store, and the file in it that is written last.
inline constexpr const char* kSkeletonDirectory = "model";
inline constexpr const char* kSkeletonFileName = "librarian.json";

/// One file beside librarian.json.
struct SkeletonEntry {
  std::string name;
  std::uint64_t size = 0;
  Digest128 xxh3;  ///< Of all its bytes.
};
/// librarian.json: the skeleton is there if and only if this file is.
struct SkeletonFile {
  std::string identity_digest;                 ///< As in job.json.
  std::vector<SkeletonEntry> entries;          ///< By name.
  std::map<std::string, std::string> tensors;  ///< XXH3-128 of each in model.safetensors, hex.
};
/// Sealed; a function of its argument alone.
std::string skeleton_file_text(const SkeletonFile& skeleton);
/// @error not_found  There is no skeleton. @error corrupt | io | bad_input (a later version)
Result<SkeletonFile> read_skeleton_file(FileSystem& files, const std::string& store_directory);

/// Compares a skeleton that is there with what it must be: the job's, and every file of the size
/// that librarian.json states. @error corrupt  Says what to do. @error io
Result<void> check_skeleton_sizes(FileSystem& files, const std::string& store_directory,
                                  const SkeletonFile& skeleton, const std::string& identity_digest);

/// As verify_store() for this directory alone: reads every byte; problems, counts and the state of
/// the skeleton go into `report`.
/// @param identity_digest  Of job.json; empty: not known, so not compared.
/// @param asked            Whether job.json says that there should be one.
/// @error cancelled | io | bad_input (a later version)
Result<void> verify_skeleton(FileSystem& files, const std::string& store_directory,
                             const std::string& identity_digest, bool asked, VerifyReport& report,
                             const std::stop_token& stop);

}  // namespace librarian::activation_store
