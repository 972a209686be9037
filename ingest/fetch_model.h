#pragma once
/// A model's weight files fetched and hashed without running a job.

#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>
#include <vector>

#include "base/error.h"
#include "ingest/job.h"
#include "ingest/job_options.h"

namespace librarian::ingest {

/// What became of one weight file.
struct FetchedFile {
  enum class Verified : std::uint8_t {
    not_tried,           ///< Only the head was read.
    yes,                 ///< The bytes have the digests that the origin states.
    no,                  ///< They have not, twice.
    nothing_to_compare,  ///< The origin states none.
  };
  std::string name;
  std::uint64_t bytes = 0;
  std::string sha256;          ///< By us; empty: not tried.
  std::string offered_sha256;  ///< By the origin; empty: none.
  std::string offered_crc;     ///< As ObjectInfo::crc.
  std::string validator;       ///< ETag or the like; empty: none.
  bool validator_is_strong = false;
  Verified verified = Verified::not_tried;
  bool kept = false;     ///< In the cache, complete.
  bool fetched = false;  ///< False: it was in the cache already, or not asked for.
};
/// "not tried", "yes", "no", "nothing to compare".
const char* verified_name(FetchedFile::Verified verified);

struct FetchModelOptions {
  bool heads_only = false;
  /// Called after each file.
  std::function<void(const FetchedFile&)> on_file;
};

/// Fetches every weight file of options.model: into options.weights_cache where one is given and
/// has room, else through memory, of which it takes connections x 8 MiB, within
/// options.host_memory_bytes. A file whose hash is wrong does not end the others.
/// @error invalid_argument | bad_input | does_not_fit | no_space | io | unavailable |
///        source_changed | cancelled
Result<std::vector<FetchedFile>> fetch_model(const JobOptions& options,
                                             const JobEnvironment& environment,
                                             const FetchModelOptions& how,
                                             const std::stop_token& stop);

}  // namespace librarian::ingest
