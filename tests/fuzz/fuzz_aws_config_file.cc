// Goal: no file in place of ~/.aws/config crashes us or becomes more than it is.
// Method: parse the input; the names and values kept must not be longer than it.

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "weightmap/remote/aws_config_file.h"

using namespace librarian::weightmap::remote;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto file = parse_aws_config_file(text);
  if (!file) {
    LIB_CHECK(file.error().message().size() < 100);
    return 0;
  }
  std::size_t value_bytes = 0;
  for (const auto& [section, settings] : *file) {
    LIB_CHECK(!section.empty());
    for (const auto& [name, value] : settings) {
      LIB_CHECK(!name.empty() && value.find('\n') == std::string::npos);
      value_bytes += value.size();
    }
  }
  LIB_CHECK(value_bytes <= size);
  return 0;
}
