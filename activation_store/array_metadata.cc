#include "activation_store/array_metadata.h"

#include <algorithm>
#include <limits>

#include "activation_store/blosc_chunk.h"
#include "activation_store/store_files.h"

namespace librarian::activation_store {
namespace {

constexpr std::uint64_t kTokenChunkMax = 1U << 20U;

Json codec(const char* name, Json configuration) {
  return Json{{"name", name}, {"configuration", std::move(configuration)}};
}
Json codec(const char* name) { return Json{{"name", name}}; }
Json bytes_codec() { return codec("bytes", {{"endian", "little"}}); }

Json fill_value(StoredType type) {
  // Zarr spells a float's quiet NaN "NaN"; bf16 is kept as uint16, whose 0x7FC0 is that NaN.
  return type == StoredType::bf16 ? Json(0x7FC0) : Json("NaN");
}

Json array_document(const char* data_type, Json shape, Json chunk_shape, Json fill) {
  Json document;
  document["zarr_format"] = 3;
  document["node_type"] = "array";
  document["shape"] = std::move(shape);
  document["data_type"] = data_type;
  document["chunk_grid"] = codec("regular", {{"chunk_shape", std::move(chunk_shape)}});
  document["chunk_key_encoding"] = codec("default", {{"separator", "/"}});
  document["fill_value"] = std::move(fill);
  return document;
}

/// The document without the seal and with `attributes` emptied of all we do not know.
Json capture_document(const std::string& name, const ArrayLayout& layout) {
  Json inner = Json::array({bytes_codec()});
  if (layout.codec == Codec::zstd) {
    inner.push_back(codec("blosc", {{"cname", "zstd"},
                                    {"clevel", 1},
                                    {"shuffle", "shuffle"},
                                    {"typesize", element_bytes(layout.type)},
                                    {"blocksize", blosc_block_bytes(layout)}}));
  }
  inner.push_back(codec("crc32c"));
  const char* const data_type =
      layout.type == StoredType::bf16 ? "uint16" : stored_type_name(layout.type);
  Json document =
      array_document(data_type, Json::array({layout.rows, layout.width}),
                     Json::array({layout.shard_tokens, layout.width}), fill_value(layout.type));
  Json sharding;
  sharding["chunk_shape"] = Json::array({layout.chunk_tokens, layout.width});
  sharding["codecs"] = std::move(inner);
  sharding["index_codecs"] = Json::array({bytes_codec(), codec("crc32c")});
  sharding["index_location"] = "end";
  document["codecs"] = Json::array({codec("sharding_indexed", std::move(sharding))});
  document["dimension_names"] = Json::array({"token", "hidden"});
  document["attributes"] = {
      {"dtype", stored_type_name(layout.type)}, {"capture", name}, {"lossy", nullptr}};
  return document;
}

Json token_document(const TokenArrayLayout& layout) {
  Json document =
      array_document(layout.dtype.c_str(), Json::array({layout.length}),
                     Json::array({layout.chunk_length()}), layout.dtype == "uint8" ? 255 : -1);
  document["codecs"] =
      Json::array({layout.dtype == "uint8" ? codec("bytes") : bytes_codec(), codec("crc32c")});
  document["attributes"] = {{"dtype", layout.dtype}};
  return document;
}

Error unusable(const std::string& what, const std::string& reason) {
  return Error(ErrorCode::corrupt, what + ": " + reason);
}

/// The value at a path of keys and indices, or null where the path does not lead.
Json at_path(const Json& document, std::initializer_list<const char*> path) {
  const Json* at = &document;
  for (const char* const step : path) {
    if (at->is_object() && at->contains(step)) {
      at = &at->at(step);
    } else if (at->is_array() && *step >= '0' && *step <= '9' &&
               static_cast<std::size_t>(*step - '0') < at->size()) {
      at = &at->at(static_cast<std::size_t>(*step - '0'));
    } else {
      return nullptr;
    }
  }
  return *at;
}

std::uint64_t uint_at(const Json& document, std::initializer_list<const char*> path) {
  const Json value = at_path(document, path);
  return value.is_number_unsigned() ? value.get<std::uint64_t>() : 0;
}

std::string string_at(const Json& document, std::initializer_list<const char*> path) {
  const Json value = at_path(document, path);
  return value.is_string() ? value.get<std::string>() : "";
}

/// Equal but for attributes that `expected` does not have: later versions may add some.
bool says_the_same(const Json& document, const Json& expected) {
  Json reduced = document;
  if (!reduced.contains("attributes") || !reduced["attributes"].is_object()) {
    return false;
  }
  Json attributes = Json::object();
  for (const auto& [key, value] : expected["attributes"].items()) {
    if (reduced["attributes"].contains(key)) {
      attributes[key] = reduced["attributes"][key];
    }
  }
  reduced["attributes"] = std::move(attributes);
  return reduced == expected;
}

}  // namespace

std::string array_metadata_text(const std::string& name, const ArrayLayout& layout) {
  return seal_json(capture_document(name, layout));
}

Result<ArrayMetadata> parse_array_metadata(std::string_view text, const std::string& what) {
  LIB_TRY(const Json document, open_sealed_json(text, what));
  ArrayMetadata metadata;
  ArrayLayout& layout = metadata.layout;
  layout.rows = uint_at(document, {"shape", "0"});
  layout.width = uint_at(document, {"shape", "1"});
  layout.shard_tokens = uint_at(document, {"chunk_grid", "configuration", "chunk_shape", "0"});
  layout.chunk_tokens = uint_at(document, {"codecs", "0", "configuration", "chunk_shape", "0"});
  const Json inner = at_path(document, {"codecs", "0", "configuration", "codecs"});
  layout.codec = inner.is_array() && inner.size() == 3 ? Codec::zstd : Codec::none;
  const auto type = parse_stored_type(string_at(document, {"attributes", "dtype"}));
  if (!type) {
    return unusable(what, "attribute 'dtype' is not one that the format has");
  }
  layout.type = *type;
  metadata.capture = string_at(document, {"attributes", "capture"});
  if (auto checked = check_layout(layout); !checked) {
    return unusable(what, checked.error().message());
  }
  if (!says_the_same(document, capture_document(metadata.capture, layout))) {
    return unusable(what, "not the metadata of an array that this format has");
  }
  return metadata;
}

std::uint64_t TokenArrayLayout::chunk_length() const { return std::min(length, kTokenChunkMax); }

std::uint64_t TokenArrayLayout::element_bytes() const {
  return dtype == "int64" ? 8 : dtype == "int32" ? 4 : 1;
}

std::string token_array_metadata_text(const TokenArrayLayout& layout) {
  return seal_json(token_document(layout));
}

Result<TokenArrayLayout> parse_token_array_metadata(std::string_view text,
                                                    const std::string& what) {
  LIB_TRY(const Json document, open_sealed_json(text, what));
  TokenArrayLayout layout{string_at(document, {"data_type"}), uint_at(document, {"shape", "0"})};
  if ((layout.dtype != "int32" && layout.dtype != "int64" && layout.dtype != "uint8") ||
      layout.length == 0 || layout.length > std::numeric_limits<std::uint64_t>::max() / 16 ||
      !says_the_same(document, token_document(layout))) {
    return unusable(what, "not the metadata of a token array that this format has");
  }
  return layout;
}

std::string group_metadata_text(Json attributes) {
  Json document;
  document["zarr_format"] = 3;
  document["node_type"] = "group";
  document["attributes"] = std::move(attributes);
  return seal_json(document);
}

Result<Json> parse_group_metadata(std::string_view text, const std::string& what) {
  LIB_TRY(Json document, open_sealed_json(text, what));
  if (uint_at(document, {"zarr_format"}) != 3 || string_at(document, {"node_type"}) != "group" ||
      !document.contains("attributes") || !document["attributes"].is_object()) {
    return unusable(what, "not a Zarr v3 group");
  }
  return std::move(document["attributes"]);
}

}  // namespace librarian::activation_store
