#include "activation_store/array_metadata.h"

#include <algorithm>
#include <limits>

#include "activation_store/blosc_chunk.h"
#include "activation_store/store_files.h"
#include "activation_store/store_names.h"

namespace librarian::activation_store {
namespace {

constexpr std::uint64_t kTokenChunkMax = 1U << 20U;

Json codec(const char* name, Json configuration) {
  return Json{{"name", name}, {"configuration", std::move(configuration)}};
}
Json codec(const char* name) { return Json{{"name", name}}; }
Json bytes_codec() { return codec("bytes", {{"endian", "little"}}); }
/// Bytes of one element have no order.
Json bytes_codec(std::uint64_t element_bytes) {
  return element_bytes == 1 ? codec("bytes") : bytes_codec();
}

/// Whether a row holds the likeliest tokens or experts, not a hidden state.
bool is_ranked(const std::string& name) {
  return name.starts_with("logits.") || name.find(".router.") != std::string::npos;
}

constexpr std::uint32_t kMantissaBitsMin = 3;
constexpr std::uint32_t kMantissaBitsMax = 6;

Json fill_value(StoredType type) {
  switch (type) {
    case StoredType::bf16:
      return 0x7FC0;  // kept as uint16, whose 0x7FC0 is the quiet NaN
    case StoredType::f8_e4m3:
      return 0x7F;
    case StoredType::i32:
      return -1;
    case StoredType::f16:
    case StoredType::f32:
      return "NaN";  // how Zarr spells a float's quiet NaN
  }
  LIB_CHECK(false);
}

const char* data_type(StoredType type) {
  return type == StoredType::bf16      ? "uint16"
         : type == StoredType::f8_e4m3 ? "uint8"
                                       : stored_type_name(type);
}

Json lossy(const std::string& name, StoredType type, const ArrayAttributes& attributes) {
  if (type == StoredType::f8_e4m3) {
    return {{"fp8", "e4m3fn"}, {"scales", scales_name(name)}};
  }
  if (attributes.keep_mantissa_bits != 0) {
    return {{"keep_mantissa_bits", attributes.keep_mantissa_bits}};
  }
  return nullptr;
}

/// [rows] or [rows, width], as shape or as that of a chunk.
Json extents(const ArrayLayout& layout, std::uint64_t rows) {
  return layout.is_vector ? Json::array({rows}) : Json::array({rows, layout.width});
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
Json capture_document(const std::string& name, const ArrayLayout& layout,
                      const ArrayAttributes& attributes) {
  Json inner = Json::array({bytes_codec(element_bytes(layout.type))});
  if (layout.codec == Codec::zstd) {
    inner.push_back(codec("blosc", {{"cname", "zstd"},
                                    {"clevel", 1},
                                    {"shuffle", "shuffle"},
                                    {"typesize", element_bytes(layout.type)},
                                    {"blocksize", blosc_block_bytes(layout)}}));
  }
  inner.push_back(codec("crc32c"));
  Json document = array_document(data_type(layout.type), extents(layout, layout.rows),
                                 extents(layout, layout.shard_tokens), fill_value(layout.type));
  Json sharding;
  sharding["chunk_shape"] = extents(layout, layout.chunk_tokens);
  sharding["codecs"] = std::move(inner);
  sharding["index_codecs"] = Json::array({bytes_codec(), codec("crc32c")});
  sharding["index_location"] = "end";
  document["codecs"] = Json::array({codec("sharding_indexed", std::move(sharding))});
  document["dimension_names"] = Json::array({"token"});
  if (!layout.is_vector) {
    document["dimension_names"].push_back(is_ranked(name) ? "rank" : "hidden");
  }
  document["attributes"] = {{"dtype", stored_type_name(layout.type)},
                            {"capture", name},
                            {"lossy", lossy(name, layout.type, attributes)}};
  if (!attributes.rows.empty()) {
    document["attributes"]["rows"] = attributes.rows;
  }
  return document;
}

Json token_document(const TokenArrayLayout& layout) {
  Json document =
      array_document(layout.dtype.c_str(), Json::array({layout.length}),
                     Json::array({layout.chunk_length()}), layout.dtype == "uint8" ? 255 : -1);
  document["codecs"] = Json::array({bytes_codec(layout.element_bytes()), codec("crc32c")});
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

ArrayAttributes attributes_of(const Json& document) {
  ArrayAttributes attributes;
  attributes.rows = string_at(document, {"attributes", "rows"});
  attributes.keep_mantissa_bits = static_cast<std::uint32_t>(std::min<std::uint64_t>(
      uint_at(document, {"attributes", "lossy", "keep_mantissa_bits"}), kMantissaBitsMax + 1));
  return attributes;
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

std::string array_metadata_text(const std::string& name, const ArrayLayout& layout,
                                const ArrayAttributes& attributes) {
  return seal_json(capture_document(name, layout, attributes));
}

Result<void> check_attributes(const ArrayLayout& layout, const ArrayAttributes& attributes) {
  const auto refuse = [](const char* reason) {
    return Error(ErrorCode::invalid_argument, std::string("array attributes: ") + reason);
  };
  if (!attributes.rows.empty() && !is_rows_path(attributes.rows)) {
    return refuse("'rows' is not the path of an array of rows");
  }
  if (layout.rows == 0 && attributes.rows.empty()) {
    return refuse("an array that keeps all rows has at least one");
  }
  const bool rounds = layout.type != StoredType::f8_e4m3 && layout.type != StoredType::i32;
  if (attributes.keep_mantissa_bits != 0 &&
      (!rounds || attributes.keep_mantissa_bits < kMantissaBitsMin ||
       attributes.keep_mantissa_bits > kMantissaBitsMax)) {
    return refuse("no array of this type is rounded to so many bits of mantissa");
  }
  return {};
}

Result<ArrayMetadata> parse_array_metadata(std::string_view text, const std::string& what) {
  LIB_TRY(const Json document, open_sealed_json(text, what));
  ArrayMetadata metadata;
  ArrayLayout& layout = metadata.layout;
  layout.rows = uint_at(document, {"shape", "0"});
  const Json shape = at_path(document, {"shape"});
  layout.is_vector = shape.is_array() && shape.size() == 1;
  layout.width = layout.is_vector ? 1 : uint_at(document, {"shape", "1"});
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
  metadata.attributes = attributes_of(document);
  if (auto checked = check_attributes(layout, metadata.attributes); !checked) {
    return unusable(what, checked.error().message());
  }
  if (document.contains("attributes") && document["attributes"].contains("rows") &&
      metadata.attributes.rows.empty()) {
    return unusable(what, "attribute 'rows' is not a path");
  }
  if (!says_the_same(document, capture_document(metadata.capture, layout, metadata.attributes))) {
    return unusable(what, "not the metadata of an array that this format has");
  }
  return metadata;
}

std::uint64_t TokenArrayLayout::chunk_length() const {
  return std::clamp<std::uint64_t>(length, 1, kTokenChunkMax);
}

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
      (layout.length == 0 && layout.dtype != "int64") ||
      layout.length > std::numeric_limits<std::uint64_t>::max() / 16 ||
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
