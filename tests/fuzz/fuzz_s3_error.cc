// Goal: whatever an error's body holds, a message gets a short plain word of it or nothing.
// Method: parse the input as a body; look at every byte that is kept.

#include <cctype>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "weightmap/remote/s3_error.h"

using namespace librarian::weightmap::remote;

namespace {

void check(const std::string& word) {
  LIB_CHECK(word.size() <= 64);
  for (const char c : word) {
    LIB_CHECK(std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '.' || c == '_');
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const S3Error error = parse_s3_error({reinterpret_cast<const char*>(data), size});
  check(error.code);
  check(error.region);
  return 0;
}
