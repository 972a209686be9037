#pragma once
/// Which weight files a model directory has, whatever model it is.

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "base/error.h"
#include "weightmap/remote/fetcher.h"
#include "weightmap/remote/hub_listing.h"

namespace librarian::weightmap {

/// Enough for the whole header of nearly every published file, so one request opens it.
inline constexpr std::uint64_t kWeightHeadBytes = 128U << 10U;

struct WeightFileList {
  std::set<std::string> names;
  std::map<std::string, std::string> file_of;  ///< Tensor -> file, as the index says.
  std::string index_sha256;                    ///< Empty: one file without an index.
  std::uint64_t index_bytes = 0;
  /// What the origin lists, where it lists files.
  std::optional<remote::HubListing> listing;
};

/// Reads `model.safetensors.index.json`, or takes the one `model.safetensors` where there is none.
/// @error bad_input (also: the index names a file that the origin does not list) | unavailable |
///        cancelled
Result<WeightFileList> list_weight_files(remote::Fetcher& fetcher, const remote::Uri& directory,
                                         const std::stop_token& stop);

/// Opens some of them side by side and reads their first bytes, in the order of `names`.
/// @error bad_input  One is not there, so this is no model, or not the one the index speaks of.
///        source_changed  One is not what the origin lists.
///        Else as Fetcher::open(), of the first that failed.
Result<std::vector<remote::Fetcher::Opened>> open_weight_files(
    remote::Fetcher& fetcher, const remote::Uri& directory, const WeightFileList& list,
    std::span<const std::string> names, std::uint64_t head_bytes, const std::stop_token& stop);

/// The header of an opened weight file, without its length; fetches what its head lacks of it.
/// @param what  Names the file in errors.
/// @error bad_input (see header_json_bytes()) | unavailable | cancelled
Result<std::string> read_header_json(remote::Fetcher& fetcher,
                                     const remote::Fetcher::Opened& opened, const std::string& what,
                                     const std::stop_token& stop);

}  // namespace librarian::weightmap
