#include "activation_store/python/decoder/store_access.h"

#include <algorithm>

namespace librarian::activation_store::python {
namespace {

struct TokenArray {
  const char* name;
  const char* dtype;
};
constexpr TokenArray kTokenArrays[] = {{"input_ids", "int32"},
                                       {"offsets", "int64"},
                                       {"sample_index", "int64"},
                                       {"loss_mask", "uint8"}};

}  // namespace

std::string PartAccess::facts() const {
  const PartFile& file = part().file;
  Json facts = {{"captures", file.captures},
                {"aliases", file.aliases},
                {"hidden_size", file.hidden_size},
                {"device_kind", file.device_kind},
                {"verified", file.verified}};
  facts["arrays"] = Json::object();
  for (const ArrayRecord& array : file.arrays) {
    facts["arrays"][array.name] = {{"shape", array.shape}, {"dtype", array.dtype}};
  }
  return facts.dump();
}

Result<std::string> PartAccess::array_facts(const std::string& name) const {
  LIB_TRY(const ArrayReader* const array, reader_.array(0, name));
  const ArrayLayout& layout = array->layout();
  return Json{{"rows", layout.rows},
              {"width", layout.width},
              {"dtype", stored_type_name(layout.type)},
              {"chunk_tokens", layout.chunk_tokens},
              {"shard_tokens", layout.shard_tokens}}
      .dump();
}

Result<std::vector<std::byte>> PartAccess::tokens(const std::string& name) const {
  const auto* const known = std::find_if(std::begin(kTokenArrays), std::end(kTokenArrays),
                                         [&](const TokenArray& array) { return name == array.name; });
  const auto& records = part().file.arrays;
  const auto record = std::find_if(records.begin(), records.end(), [&](const ArrayRecord& array) {
    return array.name == "tokens/" + name;
  });
  if (known == std::end(kTokenArrays) || record == records.end()) {
    return Error(ErrorCode::not_found, part().directory + ": it has no tokens/" + name);
  }
  LIB_TRY(auto bytes, read_token_array(posix_file_system(), part().directory, name, known->dtype));
  if (bytes.size() != record->raw_bytes) {
    return Error(ErrorCode::corrupt, part().directory + "/tokens/" + name +
                                         ": its length is not the one that the manifest lists");
  }
  if (name == "offsets") {
    LIB_TRY_VOID(reader_.offsets(0));  // checks that they rise to the part's tokens
  }
  return bytes;
}

Result<void> PartAccess::read_rows(const std::string& name, std::uint64_t begin, std::uint64_t end,
                                   std::span<std::byte> into) const {
  LIB_TRY(const ArrayReader* const array, reader_.array(0, name));
  return array->read_rows(begin, end, into);
}

JobAccess::JobAccess(std::string directory, JobFile job)
    : directory_(std::move(directory)), job_(std::make_shared<const JobFile>(std::move(job))) {}

Result<JobAccess> JobAccess::open(const std::string& directory) {
  auto job = read_job_file(posix_file_system(), directory);
  if (!job) {
    return job.error().code() == ErrorCode::not_found
               ? Error(ErrorCode::not_found,
                       directory + ": not an activation store (it has no job.json)")
               : job.error();
  }
  return JobAccess(directory, *std::move(job));
}

std::string JobAccess::facts() const {
  Json parts = Json::array();
  for (const PartRange& part : job_->parts) {
    parts.push_back({part.first_sample, part.samples, part.tokens});
  }
  return Json{{"identity_digest", job_->identity_digest},
              {"identity", job_->identity},
              {"parts", std::move(parts)}}
      .dump();
}

Result<std::vector<std::uint64_t>> JobAccess::complete_parts() const {
  std::vector<std::uint64_t> complete;
  for (std::uint64_t index = 0; index < job_->parts.size(); ++index) {
    const auto info = posix_file_system().info(directory_ + "/" + part_directory_name(index) +
                                               "/zarr.json");
    if (info) {
      complete.push_back(index);
    } else if (info.error().code() != ErrorCode::not_found) {
      return info.error();
    }
  }
  return complete;
}

Result<PartAccess> JobAccess::open_part(std::uint64_t index) const {
  if (index >= job_->parts.size()) {
    return Error(ErrorCode::not_found, directory_ + ": no part " + std::to_string(index));
  }
  LIB_TRY(StoreReader reader,
          StoreReader::open_part(posix_file_system(), directory_, job_, index));
  return PartAccess(std::move(reader));
}

}  // namespace librarian::activation_store::python
