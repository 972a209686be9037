#include "weightmap/checkpoint.h"

#include <algorithm>
#include <utility>

#include "base/digest.h"
#include "weightmap/remote/fetcher.h"
#include "weightmap/weight_files.h"

namespace librarian::weightmap {
namespace {

constexpr std::uint64_t kConfigBytesMax = 16U << 20U;
constexpr std::size_t kOpenTogether = 64;
constexpr const char* kConfigName = "config.json";

}  // namespace

Result<Checkpoint> Checkpoint::open(remote::Fetcher& fetcher, const remote::Uri& directory,
                                    const std::stop_token& stop) {
  Checkpoint checkpoint;
  checkpoint.directory_ = directory;
  LIB_TRY_VOID(checkpoint.read_config(fetcher, stop));
  LIB_TRY_VOID(checkpoint.read_headers(fetcher, stop));
  return checkpoint;
}

Result<void> Checkpoint::read_config(remote::Fetcher& fetcher, const std::stop_token& stop) {
  const remote::Uri uri = directory_.child(kConfigName);
  auto text = remote::read_object(fetcher, uri, kConfigBytesMax, stop);
  if (!text) {
    if (text.error().code() == ErrorCode::not_found) {
      return Error(ErrorCode::bad_input,
                   uri.display() + ": not there, so " + directory_.display() +
                       " is not a model directory; give the directory that holds config.json");
    }
    return text.error();
  }
  metadata_bytes_ += text->size();
  config_sha256_ = sha256_hex(*text);
  LIB_TRY(config_, parse_model_config(*text, uri.display()));
  return {};
}

Result<void> Checkpoint::read_headers(remote::Fetcher& fetcher, const std::stop_token& stop) {
  LIB_TRY(WeightFileList list, list_weight_files(fetcher, directory_, stop));
  index_sha256_ = list.index_sha256;
  metadata_bytes_ += list.index_bytes;

  std::vector<std::pair<std::uint32_t, TensorInfo>> tensors;
  const std::vector<std::string> ordered(list.names.begin(), list.names.end());
  for (std::size_t begin = 0; begin < ordered.size(); begin += kOpenTogether) {
    const std::size_t end = std::min(ordered.size(), begin + kOpenTogether);
    LIB_TRY_VOID(read_headers_of(fetcher, std::span(ordered).subspan(begin, end - begin), list,
                                 tensors, stop));
  }
  if (!index_sha256_.empty() && !list.file_of.empty()) {
    return Error(ErrorCode::bad_input, directory_.display() + ": the index says tensor '" +
                                           list.file_of.begin()->first + "' is in " +
                                           list.file_of.begin()->second + ", and it is not");
  }
  return plan_layers(std::move(tensors));
}

/// Opens files side by side and reads their headers.
/// @param list  Tensors that are found leave it.
Result<void> Checkpoint::read_headers_of(remote::Fetcher& fetcher,
                                         std::span<const std::string> names, WeightFileList& list,
                                         std::vector<std::pair<std::uint32_t, TensorInfo>>& tensors,
                                         const std::stop_token& stop) {
  LIB_TRY(const std::vector<remote::Fetcher::Opened> all,
          open_weight_files(fetcher, directory_, list, names, kWeightHeadBytes, stop));
  for (std::size_t i = 0; i < names.size(); ++i) {
    const std::string uri = directory_.child(names[i]).display();
    const remote::Fetcher::Opened& opened = all[i];
    LIB_TRY(const std::string header, read_header_json(fetcher, opened, uri, stop));
    metadata_bytes_ += kHeaderPrefixBytes + header.size();
    LIB_TRY(std::vector<TensorInfo> found, parse_safetensors_header(header, opened.info.size, uri));
    const auto file = static_cast<std::uint32_t>(files_.size());
    files_.push_back({names[i], opened.id, opened.info, sha256_hex(header)});
    for (TensorInfo& tensor : found) {
      const auto listed = list.file_of.find(tensor.name);
      if (!index_sha256_.empty() && (listed == list.file_of.end() || listed->second != names[i])) {
        return Error(ErrorCode::bad_input, uri + ": holds tensor '" + tensor.name +
                                               "', which the index does not expect there");
      }
      list.file_of.erase(tensor.name);
      tensors.emplace_back(file, std::move(tensor));
    }
  }
  return {};
}

}  // namespace librarian::weightmap
