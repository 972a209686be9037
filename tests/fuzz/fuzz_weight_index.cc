// Goal: an index that is accepted names only files that lie beside it.
// Method: the input as the index, and as one name.

#include <cstddef>
#include <cstdint>
#include <string>

#include "weightmap/weight_index.h"

using namespace librarian::weightmap;

namespace {

void check_name(const std::string& name) {
  LIB_CHECK(name.find('/') == std::string::npos && name.find('\\') == std::string::npos);
  LIB_CHECK(name.find('\0') == std::string::npos && name.front() != '.');
  LIB_CHECK(name.ends_with(".safetensors") && name.size() <= 255);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  if (is_weight_file_name(text)) {
    check_name(text);
  }
  const auto files = parse_weight_index(text, "INDEX");
  if (files) {
    LIB_CHECK(!files->empty());
    for (const auto& [tensor, file] : *files) {
      check_name(file);
    }
  }
  return 0;
}
