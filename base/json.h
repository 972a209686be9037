#pragma once
/// JSON from strangers: parsed under limits that hold while reading, not after.

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/error.h"

namespace librarian {

/// Keys keep the order of the text; duplicates never get this far.
using Json = nlohmann::ordered_json;

/// What a document may at most contain; reading stops at the first excess.
struct JsonLimits {
  std::size_t text_bytes_max = 16U << 20U;
  std::size_t values_max = 100'000;  ///< Scalars, arrays and objects together.
  std::size_t depth_max = 16;
  std::size_t key_bytes_max = 512;
  std::size_t string_bytes_max = 1U << 20U;
};

/// Parses `text` strictly: UTF-8, no duplicate keys at any level, nothing before `{` or after `}`
/// but white space behind it, top level an object.
/// @param what  Names the document in errors, e.g. its URI.
/// @error bad_input  Not such a document, or beyond a limit.
Result<Json> parse_json(std::string_view text, const std::string& what, const JsonLimits& = {});
/// The same with an array as top level.
Result<Json> parse_json_array(std::string_view text, const std::string& what,
                              const JsonLimits& = {});

/// A member of `object` with the asked type, or an error naming `what` and the key.
/// @error bad_input  Absent, or of another type; for integers also: negative or fractional.
Result<std::uint64_t> json_uint(const Json& object, const char* key, const std::string& what);
Result<std::string> json_string(const Json& object, const char* key, const std::string& what);
Result<bool> json_bool(const Json& object, const char* key, const std::string& what);

}  // namespace librarian
