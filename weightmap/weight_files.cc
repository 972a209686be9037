#include "weightmap/weight_files.h"

#include <algorithm>
#include <utility>

#include "base/digest.h"
#include "weightmap/safetensors_header.h"
#include "weightmap/weight_index.h"

namespace librarian::weightmap {
namespace {

constexpr std::uint64_t kIndexBytesMax = 256U << 20U;
constexpr std::size_t kWeightFilesMax = 100'000;
constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kSingleFileName = "model.safetensors";

Error not_there(const remote::Uri& file) {
  return {ErrorCode::bad_input, file.display() + ": not there, though the index names it"};
}

/// S3 says "forbidden" of objects that are not there to who may not list the bucket.
bool looks_missing(const remote::Uri& directory, const Result<std::string>& index) {
  return directory.scheme == "s3" && index.error().code() == ErrorCode::bad_input;
}

}  // namespace

Result<WeightFileList> list_weight_files(remote::Fetcher& fetcher, const remote::Uri& directory,
                                         const std::stop_token& stop) {
  WeightFileList list;
  const remote::Uri uri = directory.child(kIndexName);
  auto index = remote::read_object(fetcher, uri, kIndexBytesMax, stop);
  if (index) {
    list.index_bytes = index->size();
    list.index_sha256 = sha256_hex(*index);
    LIB_TRY(list.file_of, parse_weight_index(*index, uri.display()));
    for (const auto& [tensor, file] : list.file_of) {
      list.names.insert(file);
    }
  } else if (index.error().code() == ErrorCode::not_found || looks_missing(directory, index)) {
    list.names.insert(kSingleFileName);
  } else {
    return index.error();
  }
  if (list.names.size() > kWeightFilesMax) {
    return Error(ErrorCode::bad_input,
                 uri.display() + ": names " + std::to_string(list.names.size()) + " files");
  }
  if (directory.scheme == "hf") {
    LIB_TRY(list.listing, remote::list_hub_files(fetcher, directory, stop));
  }
  if (list.listing && !list.index_sha256.empty()) {
    for (const std::string& name : list.names) {
      if (!list.listing->contains(name)) {
        return not_there(directory.child(name));
      }
    }
  }
  return list;
}

Result<std::vector<remote::Fetcher::Opened>> open_weight_files(
    remote::Fetcher& fetcher, const remote::Uri& directory, const WeightFileList& list,
    std::span<const std::string> names, std::uint64_t head_bytes, const std::stop_token& stop) {
  std::vector<remote::Uri> uris;
  for (const std::string& name : names) {
    uris.push_back(directory.child(name));
  }
  std::vector<Result<remote::Fetcher::Opened>> all = fetcher.open_all(uris, head_bytes, stop);
  // When one fails the others are cancelled: the one that failed says why.
  const auto cause = std::find_if(all.begin(), all.end(), [](const auto& opened) {
    return !opened && opened.error().code() != ErrorCode::cancelled;
  });
  if (cause != all.end() && cause->error().code() == ErrorCode::not_found) {
    const auto index = static_cast<std::size_t>(cause - all.begin());
    return Error(ErrorCode::bad_input, list.index_sha256.empty()
                                           ? directory.display() + ": neither " + kIndexName +
                                                 " nor " + kSingleFileName +
                                                 " is there: no weights to read"
                                           : not_there(uris[index]).message());
  }
  if (cause != all.end()) {
    return cause->error();
  }
  std::vector<remote::Fetcher::Opened> opened;
  for (std::size_t i = 0; i < all.size(); ++i) {
    LIB_TRY(remote::Fetcher::Opened file, std::move(all[i]));
    if (list.listing && list.listing->contains(names[i])) {
      if (auto same = check_against_listing(list.listing->at(names[i]), file.info); !same) {
        return same.error().with_context(uris[i].display());
      }
    }
    opened.push_back(std::move(file));
  }
  return opened;
}

Result<std::string> read_header_json(remote::Fetcher& fetcher,
                                     const remote::Fetcher::Opened& opened, const std::string& what,
                                     const std::stop_token& stop) {
  LIB_TRY(const std::uint64_t json_bytes, header_json_bytes(opened.head, opened.info.size, what));
  std::string header = opened.head.substr(kHeaderPrefixBytes, json_bytes);
  const std::size_t have = header.size();
  if (have < json_bytes) {
    header.resize(json_bytes);
    remote::FetchRequest rest{opened.id,
                              {{{kHeaderPrefixBytes + have, kHeaderPrefixBytes + json_bytes},
                                reinterpret_cast<std::byte*>(header.data() + have)}}};
    LIB_TRY_VOID(fetcher.fetch(std::move(rest), stop));
  }
  return header;
}

}  // namespace librarian::weightmap
