// Goal: whatever text is given, strict reading ends with a document or an error; a document is
// within the limits and reads the same again.
// Method: the first byte picks tight or wide limits.

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/json.h"

using namespace librarian;

namespace {

void check(const Json& value, std::size_t depth, const JsonLimits& limits) {
  LIB_CHECK(depth <= limits.depth_max);
  if (value.is_string()) {
    LIB_CHECK(value.get_ref<const std::string&>().size() <= limits.string_bytes_max);
  } else if (value.is_object()) {
    for (const auto& [key, member] : value.items()) {
      LIB_CHECK(key.size() <= limits.key_bytes_max);
      check(member, depth + (member.is_structured() ? 1 : 0), limits);
    }
  } else if (value.is_array()) {
    for (const Json& member : value) {
      check(member, depth + (member.is_structured() ? 1 : 0), limits);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) {
    return 0;
  }
  JsonLimits limits;
  if (data[0] % 2 == 0) {
    limits = {64, 8, 3, 4, 6};
  }
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto document = parse_json(text, "DOC", limits);
  if (!document) {
    return 0;
  }
  LIB_CHECK(document->is_object() && text.size() <= limits.text_bytes_max);
  check(*document, 1, limits);
  const std::string again = document->dump();
  const auto second = parse_json(again, "DOC");
  LIB_CHECK(second.has_value());
  LIB_CHECK(second->dump() == again);
  return 0;
}
