#include "activation_store/python/decoder/store_access.h"

#include <algorithm>

#include "activation_store/python/decoder/fp8.h"

namespace librarian::activation_store::python {
namespace {

struct TokenArray {
  const char* name;
  const char* dtype;
};
constexpr char kRowsPrefix[] = "rows_";
constexpr TokenArray kTokenArrays[] = {{"input_ids", "int32"},
                                       {"offsets", "int64"},
                                       {"sample_index", "int64"},
                                       {"loss_mask", "uint8"}};

}  // namespace

std::string PartAccess::facts() const {
  const PartFile& file = part().file;
  Json facts = {{"captures", file.captures},       {"aliases", file.aliases},
                {"groups", file.groups},           {"hidden_size", file.hidden_size},
                {"device_kind", file.device_kind}, {"verified", file.verified}};
  facts["arrays"] = Json::object();
  for (const ArrayRecord& array : file.arrays) {
    facts["arrays"][array.name] = {{"shape", array.shape}, {"dtype", array.dtype}};
  }
  return facts.dump();
}

Result<std::string> PartAccess::array_facts(const std::string& name) const {
  LIB_TRY(const ArrayReader* const array, reader_.array(0, name));
  const ArrayLayout& layout = array->layout();
  const ArrayAttributes& attributes = array->attributes();
  Json facts = {{"rows", layout.rows},
                {"width", layout.is_vector ? 0 : layout.width},
                {"dtype", stored_type_name(layout.type)},
                {"chunk_tokens", layout.chunk_tokens},
                {"shard_tokens", layout.shard_tokens},
                {"rows_array", nullptr},
                {"lossy", nullptr}};
  if (!attributes.rows.empty()) {
    facts["rows_array"] = attributes.rows;
  }
  if (attributes.keep_mantissa_bits != 0) {
    facts["lossy"] = {{"keep_mantissa_bits", attributes.keep_mantissa_bits}};
  } else if (layout.type == StoredType::f8_e4m3) {
    facts["lossy"] = {{"fp8", "e4m3fn"}, {"scales", scales_name(name)}};
  }
  return facts.dump();
}

Result<std::vector<std::byte>> PartAccess::tokens(const std::string& name) const {
  const bool is_rows = name.starts_with(kRowsPrefix);
  const auto* const known =
      std::find_if(std::begin(kTokenArrays), std::end(kTokenArrays),
                   [&](const TokenArray& array) { return name == array.name; });
  const auto& records = part().file.arrays;
  const auto record = std::find_if(records.begin(), records.end(), [&](const ArrayRecord& array) {
    return array.name == "tokens/" + name;
  });
  if ((known == std::end(kTokenArrays) && !is_rows) || record == records.end()) {
    return Error(ErrorCode::not_found, part().directory + ": it has no tokens/" + name);
  }
  LIB_TRY(auto bytes, read_token_array(posix_file_system(), part().directory, name,
                                       is_rows ? "int64" : known->dtype));
  if (bytes.size() != record->raw_bytes) {
    return Error(ErrorCode::corrupt, part().directory + "/tokens/" + name +
                                         ": its length is not the one that the manifest lists");
  }
  // What these hold is used as row numbers, so the reader's own checks are asked, too.
  if (name == "offsets") {
    LIB_TRY_VOID(reader_.offsets(0));
  } else if (is_rows) {
    LIB_TRY_VOID(reader_.kept_rows(0, record->name));
  }
  return bytes;
}

Result<void> PartAccess::read_rows(const std::string& name, std::uint64_t begin, std::uint64_t end,
                                   std::span<std::byte> into) const {
  LIB_TRY(const ArrayReader* const array, reader_.array(0, name));
  return array->read_rows(begin, end, into);
}

Result<void> PartAccess::read_dequantised(const std::string& name, std::uint64_t begin,
                                          std::uint64_t end, StoredType type,
                                          std::span<std::byte> into) const {
  LIB_TRY(const ArrayReader* const array, reader_.array(0, name));
  const ArrayLayout& layout = array->layout();
  if (layout.type != StoredType::f8_e4m3 || begin > end || end > layout.rows ||
      into.size() != (end - begin) * layout.width * element_bytes(type)) {
    return Error(ErrorCode::invalid_argument,
                 part().directory + "/" + name + ": not an fp8 array with such rows");
  }
  std::vector<std::byte> values((end - begin) * layout.width);
  std::vector<float> scales(end - begin);
  LIB_TRY_VOID(array->read_rows(begin, end, values));
  LIB_TRY_VOID(read_rows(scales_name(name), begin, end, std::as_writable_bytes(std::span(scales))));
  return dequantise_fp8(values, scales, type, into);
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
    const auto info =
        posix_file_system().info(directory_ + "/" + part_directory_name(index) + "/zarr.json");
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
  LIB_TRY(StoreReader reader, StoreReader::open_part(posix_file_system(), directory_, job_, index));
  return PartAccess(std::move(reader));
}

}  // namespace librarian::activation_store::python
