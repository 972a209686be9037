#include "activation_store/shard_index.h"

#include "activation_store/little_endian.h"
#include "base/digest.h"

namespace librarian::activation_store {
namespace {

constexpr std::uint64_t kPlaceBytes = 16;
constexpr std::uint64_t kChecksumBytes = 4;
constexpr std::uint64_t kAbsent = ~std::uint64_t{0};

}  // namespace

std::uint64_t shard_index_bytes(std::uint64_t chunks) {
  return chunks * kPlaceBytes + kChecksumBytes;
}

std::vector<std::byte> encode_shard_index(std::span<const ChunkPlace> places,
                                          std::uint64_t chunks) {
  LIB_CHECK(places.size() <= chunks);
  std::vector<std::byte> bytes(shard_index_bytes(chunks));
  for (std::uint64_t i = 0; i < chunks; ++i) {
    const ChunkPlace place = i < places.size() ? places[i] : ChunkPlace{kAbsent, kAbsent};
    store_le(bytes.data() + i * kPlaceBytes, place.offset);
    store_le(bytes.data() + i * kPlaceBytes + 8, place.size);
  }
  const std::span<std::byte> pairs = std::span(bytes).first(chunks * kPlaceBytes);
  store_le(bytes.data() + pairs.size(), crc32c(pairs));
  return bytes;
}

Result<std::vector<ChunkPlace>> decode_shard_index(std::span<const std::byte> index,
                                                   std::uint64_t chunks, std::uint64_t present,
                                                   std::uint64_t file_bytes) {
  const auto damaged = [](const std::string& reason) {
    return Error(ErrorCode::corrupt, "shard index: " + reason);
  };
  LIB_CHECK(present >= 1 && present <= chunks);
  if (file_bytes < index.size() || index.size() < kChecksumBytes ||
      (index.size() - kChecksumBytes) / kPlaceBytes != chunks ||
      (index.size() - kChecksumBytes) % kPlaceBytes != 0) {
    return damaged("the file is too short to hold it");
  }
  const std::span<const std::byte> pairs = index.first(index.size() - kChecksumBytes);
  if (load_le<std::uint32_t>(pairs.data() + pairs.size()) != crc32c(pairs)) {
    return damaged("its CRC32C does not fit");
  }
  const std::uint64_t data_bytes = file_bytes - index.size();
  std::vector<ChunkPlace> places(present);
  std::uint64_t at = 0;
  for (std::uint64_t i = 0; i < chunks; ++i) {
    const ChunkPlace place{load_le<std::uint64_t>(pairs.data() + i * kPlaceBytes),
                           load_le<std::uint64_t>(pairs.data() + i * kPlaceBytes + 8)};
    if (i >= present) {
      if (place != ChunkPlace{kAbsent, kAbsent}) {
        return damaged("chunk " + std::to_string(i) + " is beyond the array's rows");
      }
      continue;
    }
    if (place.offset != at || place.size == 0 || place.size > data_bytes - at) {
      return damaged("chunk " + std::to_string(i) + " is missing or out of place");
    }
    at += place.size;
    places[i] = place;
  }
  if (at != data_bytes) {
    return damaged("bytes lie between the last chunk and the index");
  }
  return places;
}

}  // namespace librarian::activation_store
