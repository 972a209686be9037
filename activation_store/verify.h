#pragma once
/// Is everything that a store promises there, and right? Reads every byte, and decodes it.

#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file_system.h"

namespace librarian::activation_store {

enum class StoreState : std::uint8_t {
  complete,    ///< Every part of job.json is there and right.
  incomplete,  ///< What is there is right; parts or the skeleton are missing or being written.
  damaged,     ///< At least one problem.
};
/// "complete", "incomplete", "damaged".
const char* store_state_name(StoreState state);

/// What became of STORE/model/.
enum class SkeletonState : std::uint8_t {
  not_asked_for,  ///< And not there.
  complete,
  missing,  ///< The job asks for it, and nobody has finished it.
  damaged,
};
/// "not asked for", "complete", "missing", "damaged".
const char* skeleton_state_name(SkeletonState state);

struct VerifyProblem {
  std::string path;     ///< Relative to the store, e.g. "part-00000/embed/c/0/0".
  std::string message;  ///< What is wrong with it.
};

struct VerifyReport {
  StoreState state = StoreState::incomplete;
  std::uint64_t parts_complete = 0;  ///< Parts that are published, damaged ones included.
  std::uint64_t parts_total = 0;     ///< 0 if job.json cannot be read.
  SkeletonState skeleton = SkeletonState::not_asked_for;
  std::uint64_t files_checked = 0;
  std::uint64_t bytes_checked = 0;
  std::vector<VerifyProblem> problems;  ///< In the order of parts and manifests.
};

/// Checks size and CRC32C of every file against its part's manifest, the seal of every JSON file,
/// missing and extra files, every chunk of every array by decoding it, XXH3-128 and NaN and Inf
/// counts of every array's rows, size and XXH3-128 of the skeleton's files. Memory: a few chunks,
/// and the tokens of one part. A part directory without zarr.json is merely unfinished if its
/// `.journal` is there; arrays in one without a journal are damage.
/// @param progress  If set, called now and then with bytes_checked. Same thread.
/// @error not_found  There is no store: neither job.json nor a part.
/// @error bad_input  A later version of the format.
/// @error cancelled  `stop` was requested; looked at every 4 MiB.
/// @error io         The disk failed in another way than by missing or wrong data.
Result<VerifyReport> verify_store(FileSystem& files, const std::string& store_directory,
                                  const std::stop_token& stop,
                                  const std::function<void(std::uint64_t)>& progress = {});

}  // namespace librarian::activation_store
