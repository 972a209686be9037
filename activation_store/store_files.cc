#include "activation_store/store_files.h"

#include <limits>
#include <set>

#include "activation_store/array_metadata.h"
#include "activation_store/published_file.h"
#include "activation_store/store_names.h"

namespace librarian::activation_store {
namespace {

constexpr std::uint64_t kFormatVersion = 1;

Error corrupt(const std::string& what, const std::string& reason) {
  return Error(ErrorCode::corrupt, what + ": " + reason);
}

/// json.h reports what a stranger's document lacks; in a sealed file of ours it is damage.
template <typename T>
Result<T> ours(Result<T> value) {
  if (!value) {
    return value.error().with_code(ErrorCode::corrupt);
  }
  return value;
}

Result<const Json*> member(const Json& object, const char* key, Json::value_t type,
                           const std::string& what) {
  if (!object.is_object() || !object.contains(key) || object.at(key).type() != type) {
    return corrupt(what, std::string("'") + key + "' is missing or of another type");
  }
  return &object.at(key);
}

/// 1 for now. A later format is a reason to update this program, not damage.
Result<void> check_version(const Json& object, const char* key, const std::string& what) {
  LIB_TRY(const std::uint64_t version, ours(json_uint(object, key, what)));
  if (version > kFormatVersion) {
    return Error(ErrorCode::bad_input, what + ": written in version " + std::to_string(version) +
                                           " of the format; this program knows version 1");
  }
  return version == kFormatVersion ? Result<void>() : corrupt(what, "format version 0");
}

Json range_json(const PartRange& range) {
  return {
      {"first_sample", range.first_sample}, {"samples", range.samples}, {"tokens", range.tokens}};
}

Result<PartRange> parse_range(const Json& object, const std::string& what) {
  PartRange range;
  LIB_TRY(range.first_sample, ours(json_uint(object, "first_sample", what)));
  LIB_TRY(range.samples, ours(json_uint(object, "samples", what)));
  LIB_TRY(range.tokens, ours(json_uint(object, "tokens", what)));
  if (range.samples == 0 || range.tokens < range.samples ||
      range.first_sample > std::numeric_limits<std::uint64_t>::max() / 2 ||
      range.samples > std::numeric_limits<std::uint64_t>::max() / 2) {
    return corrupt(what, "a part's samples and tokens cannot be right");
  }
  return range;
}

Json record_json(const FileRecord& file) {
  return {{"path", file.path}, {"size", file.size}, {"crc32c", file.crc32c}};
}

Result<FileRecord> parse_file_record(const Json& object, const std::string& what) {
  FileRecord file;
  LIB_TRY(file.path, ours(json_string(object, "path", what)));
  LIB_TRY(file.size, ours(json_uint(object, "size", what)));
  LIB_TRY(const std::uint64_t crc, ours(json_uint(object, "crc32c", what)));
  if (!is_safe_relative_path(file.path) || crc > std::numeric_limits<std::uint32_t>::max()) {
    return corrupt(what, "the manifest's entry for '" + file.path + "' cannot be right");
  }
  file.crc32c = static_cast<std::uint32_t>(crc);
  return file;
}

Json record_json(const ArrayRecord& array) {
  return {{"name", array.name},           {"shape", array.shape},
          {"dtype", array.dtype},         {"xxh3", array.rows_xxh3.hex()},
          {"nan_count", array.nan_count}, {"inf_count", array.inf_count},
          {"raw_bytes", array.raw_bytes}, {"stored_bytes", array.stored_bytes}};
}

Result<ArrayRecord> parse_array_record(const Json& object, const std::string& what) {
  ArrayRecord array;
  LIB_TRY(array.name, ours(json_string(object, "name", what)));
  LIB_TRY(const Json* const shape, member(object, "shape", Json::value_t::array, what));
  for (const Json& extent : *shape) {
    if (!extent.is_number_unsigned()) {
      return corrupt(what, "the shape of '" + array.name + "' has a member that is no size");
    }
    array.shape.push_back(extent.get<std::uint64_t>());
  }
  LIB_TRY(array.dtype, ours(json_string(object, "dtype", what)));
  LIB_TRY(const std::string digest, ours(json_string(object, "xxh3", what)));
  LIB_TRY(array.rows_xxh3, ours(Digest128::from_hex(digest)));
  LIB_TRY(array.nan_count, ours(json_uint(object, "nan_count", what)));
  LIB_TRY(array.inf_count, ours(json_uint(object, "inf_count", what)));
  LIB_TRY(array.raw_bytes, ours(json_uint(object, "raw_bytes", what)));
  LIB_TRY(array.stored_bytes, ours(json_uint(object, "stored_bytes", what)));
  if (!is_safe_relative_path(array.name)) {
    return corrupt(what, "'" + array.name + "' is not the name of an array");
  }
  return array;
}

Result<void> parse_groups(const Json& attributes, const std::string& what, PartFile& part) {
  if (!attributes.contains("groups")) {
    return {};
  }
  LIB_TRY(const Json* const groups, member(attributes, "groups", Json::value_t::object, what));
  for (const auto& [name, members] : groups->items()) {
    if (!members.is_object() || members.empty()) {
      return corrupt(what, "group '" + name + "' has no arrays");
    }
    for (const auto& [short_name, target] : members.items()) {
      if (!target.is_string()) {
        return corrupt(what, "group '" + name + "' does not lead to names");
      }
      part.groups[name][short_name] = target.get<std::string>();
    }
  }
  return {};
}

Result<void> parse_manifest(const Json& attributes, const std::string& what, PartFile& part) {
  LIB_TRY(const Json* const manifest, member(attributes, "manifest", Json::value_t::object, what));
  LIB_TRY(const Json* const files, member(*manifest, "files", Json::value_t::array, what));
  std::set<std::string> names;
  for (const Json& entry : *files) {
    LIB_TRY(FileRecord file, parse_file_record(entry, what));
    if (!names.insert(file.path).second) {
      return corrupt(what, "'" + file.path + "' stands twice in the manifest");
    }
    part.files.push_back(std::move(file));
  }
  names.clear();
  LIB_TRY(const Json* const arrays, member(*manifest, "arrays", Json::value_t::array, what));
  for (const Json& entry : *arrays) {
    LIB_TRY(ArrayRecord array, parse_array_record(entry, what));
    if (!names.insert(array.name).second) {
      return corrupt(what, "'" + array.name + "' stands twice in the manifest");
    }
    part.arrays.push_back(std::move(array));
  }
  for (const auto& [group, members] : part.groups) {
    for (const auto& [member, target] : members) {
      if (names.count(target) == 0) {
        return corrupt(what, "group '" + group + "' has '" + target + "', which is not there");
      }
    }
  }
  for (const auto& [alias, target] : part.aliases) {
    if (names.count(target) == 0) {
      return corrupt(what, "alias '" + alias + "' leads to '" + target + "', which is not there");
    }
  }
  return {};
}

}  // namespace

std::string job_file_text(const JobFile& job) {
  Json parts = Json::array();
  for (const PartRange& part : job.parts) {
    parts.push_back(range_json(part));
  }
  Json document;
  document["librarian_job"] = kFormatVersion;
  document["identity_digest"] = job.identity_digest;
  document["identity"] = job.identity;
  document["parts"] = std::move(parts);
  if (job.skeleton) {
    document["skeleton"] = true;
  }
  return seal_json(document);
}

Result<JobFile> read_job_file(FileSystem& files, const std::string& store_directory) {
  const std::string path = store_directory + "/job.json";
  LIB_TRY(const std::string text, read_sealed_text(files, path));
  LIB_TRY(const Json document, open_sealed_json(text, path));
  LIB_TRY_VOID(check_version(document, "librarian_job", path));
  JobFile job;
  LIB_TRY(job.identity_digest, ours(json_string(document, "identity_digest", path)));
  LIB_TRY(const Json* const identity, member(document, "identity", Json::value_t::object, path));
  job.identity = *identity;
  LIB_TRY(const Json* const parts, member(document, "parts", Json::value_t::array, path));
  std::uint64_t next_sample = 0;
  for (const Json& entry : *parts) {
    LIB_TRY(const PartRange range, parse_range(entry, path));
    if (range.first_sample != next_sample) {
      return corrupt(path, "the parts do not follow each other");
    }
    next_sample += range.samples;
    job.parts.push_back(range);
  }
  if (document.contains("skeleton")) {
    LIB_TRY(job.skeleton, ours(json_bool(document, "skeleton", path)));
  }
  return job;
}

std::string store_group_text(const Json& identity) {
  return group_metadata_text({{"librarian_store", kFormatVersion}, {"identity", identity}});
}

std::string part_file_text(const PartFile& part) {
  Json attributes = {{"librarian_part", kFormatVersion}};
  attributes.update(range_json(part.range));
  attributes["hidden_size"] = part.hidden_size;
  attributes["captures"] = part.captures;
  attributes["aliases"] = Json::object();
  for (const auto& [alias, target] : part.aliases) {
    attributes["aliases"][alias] = target;
  }
  if (!part.groups.empty()) {
    attributes["groups"] = part.groups;
  }
  attributes["device_kind"] = part.device_kind;
  if (!part.products.empty()) {
    attributes["products"] = part.products;
  }
  attributes["zstd_version"] = part.zstd_version;
  attributes["verified"] = part.verified;
  Json manifest;
  manifest["files"] = Json::array();
  for (const FileRecord& file : part.files) {
    manifest["files"].push_back(record_json(file));
  }
  manifest["arrays"] = Json::array();
  for (const ArrayRecord& array : part.arrays) {
    manifest["arrays"].push_back(record_json(array));
  }
  attributes["manifest"] = std::move(manifest);
  return group_metadata_text(std::move(attributes));
}

std::uint64_t rows_of(const PartFile& part, const ArrayAttributes& attributes) {
  if (attributes.rows.empty()) {
    return part.range.tokens;
  }
  for (const ArrayRecord& array : part.arrays) {
    if (array.name == attributes.rows && array.shape.size() == 1) {
      return array.shape[0];
    }
  }
  return std::numeric_limits<std::uint64_t>::max();
}

Result<PartFile> read_part_file(FileSystem& files, const std::string& part_directory) {
  const std::string path = part_directory + "/zarr.json";
  LIB_TRY(const std::string text, read_sealed_text(files, path));
  LIB_TRY(const Json attributes, parse_group_metadata(text, path));
  LIB_TRY_VOID(check_version(attributes, "librarian_part", path));
  PartFile part;
  LIB_TRY(part.range, parse_range(attributes, path));
  LIB_TRY(part.hidden_size, ours(json_uint(attributes, "hidden_size", path)));
  LIB_TRY(const Json* const captures, member(attributes, "captures", Json::value_t::array, path));
  for (const Json& capture : *captures) {
    if (!capture.is_string()) {
      return corrupt(path, "a capture is not a name");
    }
    part.captures.push_back(capture.get<std::string>());
  }
  LIB_TRY(const Json* const aliases, member(attributes, "aliases", Json::value_t::object, path));
  for (const auto& [alias, target] : aliases->items()) {
    if (!target.is_string()) {
      return corrupt(path, "alias '" + alias + "' does not lead to a name");
    }
    part.aliases[alias] = target.get<std::string>();
  }
  LIB_TRY_VOID(parse_groups(attributes, path, part));
  LIB_TRY(part.device_kind, ours(json_string(attributes, "device_kind", path)));
  LIB_TRY(part.zstd_version, ours(json_string(attributes, "zstd_version", path)));
  LIB_TRY(part.verified, ours(json_string(attributes, "verified", path)));
  LIB_TRY_VOID(parse_manifest(attributes, path, part));
  return part;
}

}  // namespace librarian::activation_store
