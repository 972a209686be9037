// Goal: a header that is accepted gives every byte of data to exactly one tensor.
// Method: the first two bytes pick how many bytes of data follow the header.

#include <cstddef>
#include <cstdint>
#include <string>

#include "weightmap/safetensors_header.h"

using namespace librarian::weightmap;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) {
    return 0;
  }
  const std::uint64_t data_bytes = data[0] + 256U * (data[1] % 4);
  const std::string json(reinterpret_cast<const char*>(data) + 2, size - 2);
  const std::uint64_t file_bytes = kHeaderPrefixBytes + json.size() + data_bytes;
  static_cast<void>(header_json_bytes(json, file_bytes, "FILE"));
  const auto tensors = parse_safetensors_header(json, file_bytes, "FILE");
  if (!tensors) {
    return 0;
  }
  std::uint64_t at = kHeaderPrefixBytes + json.size();
  for (const TensorInfo& tensor : *tensors) {
    LIB_CHECK(tensor.bytes.begin == at && tensor.bytes.end >= at);
    at = tensor.bytes.end;
    LIB_CHECK(!tensor.name.empty() && tensor.name.size() <= kTensorNameBytesMax);
    LIB_CHECK(tensor.shape.size() <= kTensorRankMax);
    std::uint64_t bits = dtype_bits(tensor.dtype);
    LIB_CHECK(bits > 0);
    for (const std::uint64_t extent : tensor.shape) {
      bits *= extent;
    }
    LIB_CHECK(bits == tensor.bytes.size() * 8);
  }
  LIB_CHECK(at == file_bytes);
  return 0;
}
