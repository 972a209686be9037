// Goal: a shard index that is accepted names only bytes inside its file, in order and without gaps.
// Method: the first bytes pick the numbers of chunks and the file size; the CRC32C is made right.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "activation_store/shard_index.h"
#include "base/digest.h"

using namespace librarian;
using namespace librarian::activation_store;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::size_t kHead = 10;
  if (size < kHead) {
    return 0;
  }
  const std::uint64_t chunks = 1 + data[0] % 8;
  const std::uint64_t present = 1 + data[1] % chunks;
  std::uint64_t file_bytes = 0;
  std::memcpy(&file_bytes, data + 2, 8);
  std::vector<std::byte> index(size - kHead + 4);
  std::memcpy(index.data(), data + kHead, size - kHead);
  const std::uint32_t crc = crc32c(std::span(index).first(size - kHead));
  std::memcpy(index.data() + size - kHead, &crc, 4);
  const auto places = decode_shard_index(index, chunks, present, file_bytes);
  if (places) {
    LIB_CHECK(places->size() == present);
    std::uint64_t at = 0;
    for (const ChunkPlace& place : *places) {
      LIB_CHECK(place.offset == at && place.size > 0 && place.size <= file_bytes - at);
      at += place.size;
    }
    LIB_CHECK(at + index.size() == file_bytes);
    LIB_CHECK(encode_shard_index(*places, chunks) == index);
  }
  return 0;
}
