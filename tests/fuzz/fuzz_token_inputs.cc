// Goal: what a user gives as tokens or captures becomes data that keeps its promises, or an error.
// Method: the first byte picks the format; the rest is the file, or the --capture argument.

#include <cstddef>
#include <cstdint>
#include <string>

#include "ingest/capture_list.h"
#include "ingest/npy.h"
#include "ingest/token_file.h"
#include "tests/support/memory_file_system.h"

using namespace librarian;
using namespace librarian::ingest;

namespace {

constexpr std::int32_t kLayers = 8;

void check_tokens(const std::string& name, const std::string& text) {
  testing::MemoryFileSystem files;
  LIB_CHECK(replace_file(files, name, text).has_value());
  TokenLimits limits;
  limits.vocab_size = 1000;
  const auto data = read_token_file(files, name, limits);
  if (!data) {
    return;
  }
  LIB_CHECK(data->offsets.size() >= 2 && data->offsets.front() == 0);
  LIB_CHECK(data->offsets.back() == static_cast<std::int64_t>(data->input_ids.size()));
  for (std::size_t i = 0; i + 1 < data->offsets.size(); ++i) {
    LIB_CHECK(data->offsets[i] < data->offsets[i + 1]);
  }
  for (const std::int32_t id : data->input_ids) {
    LIB_CHECK(id >= 0 && id < 1000);
  }
  LIB_CHECK(!data->loss_mask || data->loss_mask->size() == data->input_ids.size());
}

void check_captures(const std::string& text) {
  const auto list = parse_captures({text}, {kLayers});
  if (!list) {
    return;
  }
  LIB_CHECK(!list->requested.empty() && list->array_count() > 0);
  LIB_CHECK(list->last_layer() >= -1 && list->last_layer() <= kLayers);
  for (const std::string& name : list->requested) {
    // A canonical name is a capture again, and means itself.
    const auto again = parse_captures({name}, {kLayers});
    LIB_CHECK(again.has_value() && again->requested.size() == 1 && again->requested[0] == name);
    static_cast<void>(capture_notations(name, {kLayers}));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) {
    return 0;
  }
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 5) {
    case 0:
      check_captures(text);
      break;
    case 1:
      check_tokens("/t.jsonl", text);
      break;
    case 2: {
      const auto header = parse_npy_header(text, "NPY");
      LIB_CHECK(!header || (header->data_begin <= text.size() && header->shape.size() <= 8));
      // Rows without columns cost memory that the file does not have.
      if (header && !header->shape.empty() && header->shape[0] < 1U << 20U) {
        check_tokens("/t.npy", text);
      }
      break;
    }
    case 3:
      check_tokens("/t.safetensors", text);
      break;
    default:  // A right header before any bytes, so that more than the header is tried.
      check_tokens("/t.npy", npy_header_text("<i2", {text.size() / 2}) + text);
      break;
  }
  return 0;
}
