// Goal: no chunk, whoever made it, makes the decoder read or write outside its buffers.
// Method: the first byte picks a layout; the CRC32C is made right, so that the container behind it
// is reached. What decodes must decode to the same rows again.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "activation_store/blosc_chunk.h"
#include "base/digest.h"

using namespace librarian;
using namespace librarian::activation_store;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const ArrayLayout kLayouts[] = {{8, 64, StoredType::bf16, Codec::zstd, 8, 8},
                                         {1, 33, StoredType::bf16, Codec::zstd, 1, 1},
                                         {2, 150, StoredType::f32, Codec::zstd, 2, 2},
                                         {4, 20, StoredType::f32, Codec::zstd, 4, 4},
                                         {4, 8, StoredType::f16, Codec::none, 4, 4}};
  if (size == 0) {
    return 0;
  }
  const ArrayLayout& layout = kLayouts[data[0] % std::size(kLayouts)];
  std::vector<std::byte> encoded(size - 1 + 4);
  std::memcpy(encoded.data(), data + 1, size - 1);
  const std::uint32_t crc = crc32c(std::span(encoded).first(size - 1));
  std::memcpy(encoded.data() + size - 1, &crc, 4);
  // Exact allocations, so that the sanitizer sees one byte too far.
  std::vector<std::byte> first(chunk_bytes(layout));
  std::vector<std::byte> second(chunk_bytes(layout));
  ChunkDecoder decoder;
  const auto decoded = decoder.decode(layout, encoded, first);
  LIB_CHECK(decoded || decoded.error().code() == ErrorCode::corrupt);
  if (decoded) {
    LIB_CHECK(static_cast<bool>(ChunkDecoder().decode(layout, encoded, second)));
    LIB_CHECK(first == second);
  }
  return 0;
}
