#include "ingest/part_journal.h"

#include "base/json.h"

namespace librarian::ingest {
namespace {

using activation_store::ArrayRecord;
using activation_store::FileRecord;

constexpr std::uint64_t kJournalVersion = 1;
constexpr std::int64_t kLayersMax = 1 << 20;

JsonLimits record_limits() {
  JsonLimits limits;
  limits.text_bytes_max = 256U << 20U;
  limits.values_max = 32U << 20U;
  return limits;
}

Json array_to_json(const ArrayRecord& array) {
  Json files = Json::array();
  for (const FileRecord& file : array.files) {
    files.push_back(Json::array({file.path, file.size, file.crc32c}));
  }
  return {{"name", array.name},
          {"shape", array.shape},
          {"dtype", array.dtype},
          {"xxh3", array.rows_xxh3.hex()},
          {"nan", array.nan_count},
          {"inf", array.inf_count},
          {"raw_bytes", array.raw_bytes},
          {"stored_bytes", array.stored_bytes},
          {"files", files}};
}

Json arrays_to_json(const std::vector<ArrayRecord>& arrays) {
  Json list = Json::array();
  for (const ArrayRecord& array : arrays) {
    list.push_back(array_to_json(array));
  }
  return list;
}

Json weights_to_json(const std::map<std::string, std::string>& weights) {
  Json json = Json::object();
  for (const auto& [name, digest] : weights) {
    json[name] = digest;
  }
  return json;
}

Error damaged(const std::string& what, const std::string& reason) {
  return Error(ErrorCode::corrupt, what + ": " + reason);
}

Result<ArrayRecord> array_from_json(const Json& json, const std::string& what) {
  ArrayRecord array;
  LIB_TRY(array.name, json_string(json, "name", what));
  LIB_TRY(array.dtype, json_string(json, "dtype", what));
  LIB_TRY(const std::string xxh3, json_string(json, "xxh3", what));
  auto digest = Digest128::from_hex(xxh3);
  if (!digest) {
    return damaged(what, digest.error().message());
  }
  array.rows_xxh3 = *digest;
  LIB_TRY(array.nan_count, json_uint(json, "nan", what));
  LIB_TRY(array.inf_count, json_uint(json, "inf", what));
  LIB_TRY(array.raw_bytes, json_uint(json, "raw_bytes", what));
  LIB_TRY(array.stored_bytes, json_uint(json, "stored_bytes", what));
  if (!json.contains("shape") || !json["shape"].is_array() || !json.contains("files") ||
      !json["files"].is_array()) {
    return damaged(what, "an array record without shape or files");
  }
  for (const Json& extent : json["shape"]) {
    if (!extent.is_number_unsigned()) {
      return damaged(what, "an array record with a strange shape");
    }
    array.shape.push_back(extent.get<std::uint64_t>());
  }
  for (const Json& file : json["files"]) {
    if (!file.is_array() || file.size() != 3 || !file[0].is_string() ||
        !file[1].is_number_unsigned() || !file[2].is_number_unsigned()) {
      return damaged(what, "an array record with a strange file entry");
    }
    array.files.push_back({file[0].get<std::string>(), file[1].get<std::uint64_t>(),
                           static_cast<std::uint32_t>(file[2].get<std::uint64_t>())});
  }
  return array;
}

Result<std::vector<ArrayRecord>> arrays_from_json(const Json& json, const std::string& what) {
  std::vector<ArrayRecord> arrays;
  if (!json.contains("arrays") || !json["arrays"].is_array()) {
    return damaged(what, "a record without arrays");
  }
  for (const Json& entry : json["arrays"]) {
    LIB_TRY(ArrayRecord array, array_from_json(entry, what));
    arrays.push_back(std::move(array));
  }
  return arrays;
}

Result<SourceRecord> source_from_json(const Json& json, const std::string& what) {
  SourceRecord source;
  LIB_TRY(source.uri, json_string(json, "uri", what));
  if (!json.contains("files") || !json["files"].is_object()) {
    return damaged(what, "a source record without files");
  }
  for (const auto& [name, entry] : json["files"].items()) {
    LIB_TRY(const std::string validator, json_string(entry, "validator", what));
    LIB_TRY(const bool strong, json_bool(entry, "strong", what));
    source.files[name] = {validator, strong};
  }
  return source;
}

Result<std::map<std::string, std::string>> weights_from_json(const Json& json,
                                                             const std::string& what) {
  std::map<std::string, std::string> weights;
  if (!json.contains("weights") || !json["weights"].is_object()) {
    return damaged(what, "a record without weights");
  }
  for (const auto& [name, digest] : json["weights"].items()) {
    if (!digest.is_string()) {
      return damaged(what, "a strange weight digest");
    }
    weights[name] = digest.get<std::string>();
  }
  return weights;
}

Result<LayerRecord> layer_from_json(const Json& json, const std::string& what) {
  LayerRecord layer;
  if (!json.contains("layer") || !json["layer"].is_number_integer() || !json.contains("state")) {
    return damaged(what, "a layer record without layer or state");
  }
  const auto number = json["layer"].get<std::int64_t>();
  if (number < -1 || number > kLayersMax) {
    return damaged(what, "layer " + std::to_string(number));
  }
  layer.layer = static_cast<std::int32_t>(number);
  LIB_TRY(layer.arrays, arrays_from_json(json, what));
  LIB_TRY(layer.weights, weights_from_json(json, what));
  auto state = StatePlace::from_json(json["state"]);
  if (!state) {
    return damaged(what, state.error().message());
  }
  layer.state = *state;
  if (json.contains("verified")) {
    LIB_TRY(layer.verified, json_string(json, "verified", what));
    if (layer.verified != "none" && layer.verified != "stream" && layer.verified != "sha256") {
      return damaged(what, "verified '" + layer.verified + "'");
    }
  }
  return layer;
}

std::string header_text(const PartHeader& header) {
  const Json json = {{"type", "part"},
                     {"version", kJournalVersion},
                     {"identity", header.identity_digest},
                     {"part", header.part},
                     {"device_kind", header.device_kind}};
  return json.dump();
}

Result<PartHeader> header_from_json(const Json& json, const std::string& what) {
  PartHeader header;
  LIB_TRY(const std::uint64_t version, json_uint(json, "version", what));
  if (version != kJournalVersion) {
    return Error(ErrorCode::conflict, what + ": written by another version of librarian");
  }
  LIB_TRY(header.identity_digest, json_string(json, "identity", what));
  LIB_TRY(header.part, json_uint(json, "part", what));
  LIB_TRY(header.device_kind, json_string(json, "device_kind", what));
  return header;
}

/// Adds what one record says. @error bad_input | corrupt | conflict
Result<void> add_record(const Json& json, const std::string& what, bool& has_header,
                        PartProgress& progress) {
  LIB_TRY(const std::string type, json_string(json, "type", what));
  if (type == "part" && !has_header) {
    LIB_TRY(progress.header, header_from_json(json, what));
    has_header = true;
  } else if (type == "source" && has_header) {
    LIB_TRY(SourceRecord source, source_from_json(json, what));
    progress.sources.push_back(std::move(source));
  } else if (type == "tokens" && has_header) {
    LIB_TRY(progress.tokens, arrays_from_json(json, what));
  } else if (type == "weights" && has_header) {
    LIB_TRY(progress.seen_weights, weights_from_json(json, what));
  } else if (type == "layer" && has_header) {
    LIB_TRY(LayerRecord layer, layer_from_json(json, what));
    if (layer.layer != static_cast<std::int32_t>(progress.layers.size()) - 1) {
      return damaged(what, "layers out of order");
    }
    progress.layers.push_back(std::move(layer));
  } else {
    return damaged(what, "unexpected type '" + type + "'");
  }
  return {};
}

}  // namespace

std::string source_record_text(const SourceRecord& source) {
  Json files = Json::object();
  for (const auto& [name, file] : source.files) {
    files[name] = {{"validator", file.validator}, {"strong", file.strong}};
  }
  const Json json = {{"type", "source"}, {"uri", source.uri}, {"files", files}};
  return json.dump();
}

std::string tokens_record_text(const std::vector<ArrayRecord>& arrays) {
  const Json json = {{"type", "tokens"}, {"arrays", arrays_to_json(arrays)}};
  return json.dump();
}

std::string layer_record_text(const LayerRecord& layer) {
  Json json = {{"type", "layer"},
               {"layer", layer.layer},
               {"arrays", arrays_to_json(layer.arrays)},
               {"weights", weights_to_json(layer.weights)},
               {"state", layer.state.to_json()}};
  if (!layer.verified.empty()) {
    json["verified"] = layer.verified;
  }
  return json.dump();
}

std::vector<std::string> journal_records(const PartProgress& progress) {
  std::vector<std::string> records{header_text(progress.header)};
  for (const SourceRecord& source : progress.sources) {
    records.push_back(source_record_text(source));
  }
  if (!progress.tokens.empty()) {
    records.push_back(tokens_record_text(progress.tokens));
  }
  if (!progress.seen_weights.empty()) {
    const Json json = {{"type", "weights"}, {"weights", weights_to_json(progress.seen_weights)}};
    records.push_back(json.dump());
  }
  for (const LayerRecord& layer : progress.layers) {
    records.push_back(layer_record_text(layer));
  }
  return records;
}

Result<PartProgress> read_part_journal(FileSystem& files, const std::string& part_directory) {
  const std::string path = part_directory + "/" + kJournalName;
  LIB_TRY(const JournalContents contents, read_journal(files, path));
  PartProgress progress;
  bool has_header = false;
  for (std::size_t i = 0; i < contents.records.size(); ++i) {
    const std::string what = path + ": record " + std::to_string(i);
    auto json = parse_json(contents.records[i], what, record_limits());
    if (!json) {
      return json.error().with_code(ErrorCode::corrupt);
    }
    auto added = add_record(*json, what, has_header, progress);
    if (!added) {
      return added.error().code() == ErrorCode::bad_input
                 ? added.error().with_code(ErrorCode::corrupt)
                 : added.error();
    }
  }
  if (!has_header) {
    return Error(ErrorCode::corrupt, path + ": holds no record of whose part this is");
  }
  return progress;
}
std::size_t finished_layers(const PartProgress& progress, std::int32_t last_layer) {
  if (!progress.layers.empty() && progress.layers.back().layer == last_layer) {
    return progress.layers.size();
  }
  for (std::size_t count = progress.layers.size(); count > 0; --count) {
    if (progress.layers[count - 1].state.kind != StatePlace::Kind::none) {
      return count;
    }
  }
  return 0;
}

}  // namespace librarian::ingest
