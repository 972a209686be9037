// Goal: whatever a hub answers, its list names files once, and a next page's cursor can stand in a
// URL.
// Method: the input as a page, as its Link field, and as a second page.

#include <cctype>
#include <cstddef>
#include <cstdint>
#include <string>

#include "weightmap/remote/hub_listing.h"

using namespace librarian::weightmap::remote;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  HubListing listing;
  if (add_hub_page(text, "PAGE", listing) && !listing.empty()) {
    for (const auto& [path, file] : listing) {
      LIB_CHECK(file.sha256.empty() || file.sha256.size() == 64);
    }
    LIB_CHECK(!add_hub_page(text, "PAGE", listing));  // Each of its files is there already.
  }
  const auto cursor = next_hub_page(text);
  if (cursor && *cursor) {
    LIB_CHECK(!(*cursor)->empty());
    for (const char c : **cursor) {
      LIB_CHECK(std::isgraph(static_cast<unsigned char>(c)) != 0 && c != '&' && c != '#');
    }
  }
  return 0;
}
