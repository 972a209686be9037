#include "ingest/known_weights.h"

#include "activation_store/store_files.h"
#include "base/units.h"

namespace librarian::ingest {
namespace {

constexpr std::uint64_t kWeightsBytesMax = 256 * kMiB;
constexpr const char* kDigestsKey = "xxh3_of_tensors";

Result<WeightDigests> read_weights_file(FileSystem& files, const std::string& path) {
  LIB_TRY(const std::string text, read_small_file(files, path, kWeightsBytesMax));
  LIB_TRY(const Json document, activation_store::open_sealed_json(text, path));
  if (!document.contains(kDigestsKey) || !document[kDigestsKey].is_object()) {
    return Error(ErrorCode::corrupt, path + ": holds no digests");
  }
  WeightDigests digests;
  for (const auto& [tensor, xxh3] : document[kDigestsKey].items()) {
    if (!xxh3.is_string()) {
      return Error(ErrorCode::corrupt, path + ": a digest that is not a string");
    }
    digests[tensor] = xxh3.get<std::string>();
  }
  return digests;
}

}  // namespace

std::string weights_file_text(const WeightDigests& digests) {
  Json tensors = Json::object();
  // The names differ, and a look-up of each takes as long as there are tensors.
  auto& members = tensors.get_ref<Json::object_t&>();
  for (const auto& [name, xxh3] : digests) {
    members.Json::object_t::Container::emplace_back(name, xxh3);
  }
  return activation_store::seal_json({{kDigestsKey, tensors}});
}

Result<void> KnownWeights::check(const WeightDigests& digests) {
  if (const std::optional<std::string> tensor = contradiction(digests)) {
    return Error(ErrorCode::source_changed,
                 "tensor '" + *tensor +
                     "' has other bytes than another part of this store was computed with: the "
                     "model at the source was replaced; restore it, or start a new job in another "
                     "directory");
  }
  const std::lock_guard<std::mutex> guard(mutex_);
  digests_.insert(digests.begin(), digests.end());
  return {};
}

std::optional<std::string> KnownWeights::contradiction(const WeightDigests& digests) const {
  const std::lock_guard<std::mutex> guard(mutex_);
  for (const auto& [tensor, xxh3] : digests) {
    const auto known = digests_.find(tensor);
    if (known != digests_.end() && known->second != xxh3) {
      return tensor;
    }
  }
  return std::nullopt;
}

Result<void> KnownWeights::read_published(FileSystem& files, const std::string& store_directory,
                                          std::uint64_t part_count) {
  for (std::uint64_t part = 0; part < part_count; ++part) {
    const std::string directory =
        store_directory + "/" + activation_store::part_directory_name(part);
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      if (parts_read_.contains(part)) {
        continue;
      }
    }
    if (!files.info(directory + "/zarr.json")) {
      continue;
    }
    LIB_TRY(const WeightDigests digests,
            read_weights_file(files, directory + "/" + kWeightsFileName));
    LIB_TRY_VOID(check(digests));
    const std::lock_guard<std::mutex> guard(mutex_);
    parts_read_.insert(part);
  }
  return {};
}

}  // namespace librarian::ingest
