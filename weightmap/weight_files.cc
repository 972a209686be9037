#include "weightmap/weight_files.h"

#include "base/digest.h"
#include "weightmap/weight_index.h"

namespace librarian::weightmap {
namespace {

constexpr std::uint64_t kIndexBytesMax = 256U << 20U;
constexpr std::size_t kWeightFilesMax = 100'000;
constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kSingleFileName = "model.safetensors";

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
  } else if (index.error().code() == ErrorCode::not_found) {
    list.names.insert(kSingleFileName);
  } else {
    return index.error();
  }
  if (list.names.size() > kWeightFilesMax) {
    return Error(ErrorCode::bad_input,
                 uri.display() + ": names " + std::to_string(list.names.size()) + " files");
  }
  return list;
}

Result<remote::Fetcher::Opened> open_weight_file(remote::Fetcher& fetcher,
                                                 const remote::Uri& directory,
                                                 const WeightFileList& list,
                                                 const std::string& name, std::uint64_t head_bytes,
                                                 const std::stop_token& stop) {
  const remote::Uri uri = directory.child(name);
  auto opened = fetcher.open(uri, head_bytes, stop);
  if (opened || opened.error().code() != ErrorCode::not_found) {
    return opened;
  }
  return Error(ErrorCode::bad_input,
               list.index_sha256.empty()
                   ? directory.display() + ": neither " + kIndexName + " nor " + kSingleFileName +
                         " is there: no weights to read"
                   : uri.display() + ": not there, though the index names it");
}

}  // namespace librarian::weightmap
