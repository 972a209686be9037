// Goal: whatever zarr.json says, an array that is accepted has a layout we can trust in arithmetic.
// Method: the input is parsed as it is, and again with a right seal put on it, so that what lies
// behind the seal is reached.

#include <cstddef>
#include <cstdint>
#include <string>

#include "activation_store/array_metadata.h"
#include "activation_store/store_files.h"

using namespace librarian;
using namespace librarian::activation_store;

namespace {

void check(const std::string& text) {
  if (const auto array = parse_array_metadata(text, "input")) {
    LIB_CHECK(static_cast<bool>(check_layout(array->layout)));
    LIB_CHECK(chunk_bytes(array->layout) <= kChunkBytesMax);
  }
  if (const auto array = parse_token_array_metadata(text, "input")) {
    LIB_CHECK(array->chunk_length() > 0);
    LIB_CHECK(array->length == 0 || array->chunk_length() <= array->length);
  }
  static_cast<void>(parse_group_metadata(text, "input"));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  check(text);
  auto document = parse_json(text, "input");
  if (document) {
    Json& holder = document->contains("attributes") ? document->at("attributes") : *document;
    if (holder.is_object()) {
      holder.erase("xxh3");
      check(seal_json(*document));
    }
  }
  return 0;
}
