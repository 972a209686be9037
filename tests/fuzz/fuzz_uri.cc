// Goal: whatever is given as a place or a redirect becomes a checked Uri or an error.
// Method: parse the input as both; what is accepted must keep the promises of Uri.

#include <cstddef>
#include <cstdint>
#include <string>

#include "weightmap/remote/transport.h"
#include "weightmap/remote/uri_parts.h"

using namespace librarian::weightmap::remote;

namespace {

void check(const Uri& uri) {
  LIB_CHECK(uri.scheme == "http" || uri.scheme == "https" || uri.scheme == "file" ||
            uri.scheme == "hf" || uri.scheme == "s3");
  LIB_CHECK(!uri.text.empty() && uri.text.find('\0') == std::string::npos);
  if (uri.scheme != "file") {
    LIB_CHECK(uri.text.rfind(uri.scheme + "://", 0) == 0);
    LIB_CHECK(uri.scheme == "s3" || uri.display().find('?') == std::string::npos);
    LIB_CHECK(uri.origin().find('@') == std::string::npos);
    // Normal already: reading it again changes nothing.
    LIB_CHECK(parse_uri(uri.text) == uri);
  }
  uri.child("model.safetensors");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  if (const auto uri = parse_uri(text)) {
    check(*uri);
  }
  static const Uri kBase = *parse_uri("https://host/dir/file?query");
  if (const auto target = resolve_location(kBase, text)) {
    check(*target);
    LIB_CHECK(target->scheme == "https");
  }
  return 0;
}
