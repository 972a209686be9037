#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "activation_store/blosc_chunk.h"
#include "activation_store/shard_index.h"
#include "base/digest.h"
#include "tests/activation_store/store_fixtures.h"

namespace librarian::activation_store {
namespace {

using testing::make_rows;
using testing::RowKind;

std::vector<std::byte> encode(const ArrayLayout& layout, const std::vector<std::byte>& rows) {
  ChunkEncoder encoder(rows.size());
  std::vector<std::byte> out(encoded_bytes_max(rows.size()));
  out.resize(encoder.encode(layout, rows, out));
  return out;
}

/// Makes the CRC32C right again after a test has changed the bytes before it.
void reseal(std::vector<std::byte>& encoded) {
  const std::uint32_t crc = crc32c(std::span(encoded).first(encoded.size() - 4));
  std::memcpy(encoded.data() + encoded.size() - 4, &crc, 4);
}

std::uint32_t word(const std::vector<std::byte>& bytes, std::size_t at) {
  std::uint32_t value = 0;
  std::memcpy(&value, bytes.data() + at, 4);
  return value;
}

// Goal: the container is the one that FORMAT.md describes, byte by byte.
// Method: header, block offsets and streams of a chunk of two blocks are read by hand.
TEST(ChunkCodec, WritesTheBloscContainerThatTheFormatDescribes) {
  const ArrayLayout layout{8, 128, StoredType::bf16, Codec::zstd, 8, 8};
  const auto rows = make_rows(layout, RowKind::activations, 5);
  const auto encoded = encode(layout, rows);
  EXPECT_EQ(word(encoded, 0), 0x02810102U);  // 02 01 81 02
  EXPECT_EQ(word(encoded, 4), rows.size());
  EXPECT_EQ(word(encoded, 8), rows.size() / 2);
  EXPECT_EQ(word(encoded, 12), encoded.size() - 4);
  EXPECT_EQ(word(encoded, 16), 24U);
  std::size_t at = 24;
  for (int stream = 0; stream < 4; ++stream) {
    if (stream == 2) {
      EXPECT_EQ(word(encoded, 20), at);
    }
    const std::uint32_t size = word(encoded, at);
    ASSERT_LE(size, rows.size() / 4);
    if (size < rows.size() / 4) {
      EXPECT_EQ(word(encoded, at + 4), 0xFD2FB528U);  // a zstd frame
    } else {
      EXPECT_EQ(encoded[at + 4], rows[stream < 2 ? 0 : rows.size() / 2]);  // the raw low plane
    }
    at += 4 + size;
  }
  EXPECT_EQ(at, encoded.size() - 4);
  EXPECT_EQ(word(encoded, at), crc32c(std::span(encoded).first(at)));
}

// Goal: blocks too small for c-blosc to split are one stream, and say so.
TEST(ChunkCodec, KeepsPlanesOfTinyBlocksInOneStream) {
  const ArrayLayout one_row{1, 33, StoredType::bf16, Codec::zstd, 1, 1};
  auto encoded = encode(one_row, make_rows(one_row, RowKind::activations, 5));
  EXPECT_EQ(word(encoded, 0), 0x02910102U);
  EXPECT_EQ(word(encoded, 8), 66U);
  EXPECT_EQ(20U + 4 + word(encoded, 20) + 4, encoded.size());
  const ArrayLayout two_rows{2, 127, StoredType::f32, Codec::zstd, 2, 2};
  encoded = encode(two_rows, make_rows(two_rows, RowKind::activations, 5));
  EXPECT_EQ(word(encoded, 0), 0x04910102U);
  const ArrayLayout at_limit{2, 128, StoredType::f32, Codec::zstd, 2, 2};
  encoded = encode(at_limit, make_rows(at_limit, RowKind::activations, 5));
  EXPECT_EQ(word(encoded, 0), 0x04810102U);
}

// Goal: an encoder never needs more memory than it says and never writes past its bound.
// Method: noise, which does not shrink, in all shapes; the bound is reached within its 4 bytes.
TEST(ChunkCodec, StaysWithinItsBoundOnNoise) {
  for (const StoredType type : {StoredType::bf16, StoredType::f32}) {
    for (const std::uint64_t chunk : {1U, 2U, 64U}) {
      const ArrayLayout layout{chunk, 150, type, Codec::zstd, chunk, chunk};
      const auto rows = make_rows(layout, RowKind::noise, 5);
      EXPECT_LE(encode(layout, rows).size(), encoded_bytes_max(rows.size()));
    }
  }
  EXPECT_LT(ChunkEncoder::memory_bytes(1U << 20U), 4U << 20U);
}

// Goal: no flipped byte passes the checksum.
// Method: every byte of an encoded chunk, one of its bits each.
TEST(ChunkCodec, RefusesEveryFlippedByte) {
  for (const Codec codec : {Codec::none, Codec::zstd}) {
    const ArrayLayout layout{4, 64, StoredType::bf16, codec, 4, 4};
    const auto rows = make_rows(layout, RowKind::activations, 5);
    const auto encoded = encode(layout, rows);
    ChunkDecoder decoder;
    std::vector<std::byte> raw(rows.size());
    ASSERT_TRUE(decoder.decode(layout, encoded, raw));
    EXPECT_EQ(raw, rows);
    for (std::size_t i = 0; i < encoded.size(); ++i) {
      auto damaged = encoded;
      damaged[i] ^= static_cast<std::byte>(1U << (i % 8));
      const auto result = decoder.decode(layout, damaged, raw);
      ASSERT_FALSE(result) << i;
      EXPECT_EQ(result.error().code(), ErrorCode::corrupt);
    }
    for (std::size_t size = 0; size < encoded.size(); ++size) {
      EXPECT_FALSE(decoder.decode(layout, std::span(encoded).first(size), raw));
    }
  }
}

// Goal: a chunk made by someone else, with a right checksum, cannot make the decoder read or write
// outside its buffers or accept a container that is not ours.
// Method: header, block offset and stream size fields take hostile values; the CRC is made right.
TEST(ChunkCodec, RefusesHostileContainersWithRightChecksums) {
  const ArrayLayout layout{8, 64, StoredType::bf16, Codec::zstd, 8, 8};
  const auto encoded = encode(layout, make_rows(layout, RowKind::activations, 5));
  ChunkDecoder decoder;
  std::vector<std::byte> raw(chunk_bytes(layout));
  const auto refused = [&](std::vector<std::byte> bytes) {
    reseal(bytes);
    return !decoder.decode(layout, bytes, raw);
  };
  EXPECT_FALSE(refused(encoded));
  for (const std::size_t field : {0U, 4U, 8U, 12U, 16U, 20U, 24U}) {
    for (const std::uint32_t value : {0U, 1U, 23U, 255U, 0x7FFFFFFFU, 0x80000000U, 0xFFFFFFFFU}) {
      auto hostile = encoded;
      std::memcpy(hostile.data() + field, &value, 4);
      EXPECT_TRUE(refused(hostile)) << field << " " << value;
    }
  }
  auto longer = encoded;  // bytes after the last stream, header total adjusted
  longer.insert(longer.end() - 4, std::byte{7});
  const auto total = static_cast<std::uint32_t>(longer.size() - 4);
  std::memcpy(longer.data() + 12, &total, 4);
  EXPECT_TRUE(refused(longer));
}

// Goal: a shard index says exactly where each chunk is, or it is refused.
// Method: a good index round trips; each hostile variant has a right CRC32C.
TEST(ShardIndex, AcceptsOnlyChunksThatFollowEachOtherUpToTheIndex) {
  const std::vector<ChunkPlace> places = {{0, 10}, {10, 5}, {15, 7}};
  const auto index = encode_shard_index(places, 4);
  ASSERT_EQ(index.size(), shard_index_bytes(4));
  EXPECT_EQ(decode_shard_index(index, 4, 3, 22 + index.size()).value(), places);
  EXPECT_FALSE(decode_shard_index(index, 4, 2, 22 + index.size()));  // one too many
  EXPECT_FALSE(decode_shard_index(index, 4, 4, 22 + index.size()));  // one missing
  EXPECT_FALSE(decode_shard_index(index, 4, 3, 23 + index.size()));  // a gap before the index
  EXPECT_FALSE(decode_shard_index(index, 4, 3, 21 + index.size()));
  EXPECT_FALSE(decode_shard_index(index, 5, 3, 22 + index.size()));
  const std::vector<std::vector<ChunkPlace>> hostile = {{{0, 10}, {10, ~std::uint64_t{0}}, {9, 13}},
                                                        {{0, 10}, {11, 4}, {15, 7}},
                                                        {{0, 0}, {0, 15}, {15, 7}},
                                                        {{~std::uint64_t{0}, 10}, {10, 5}, {15, 7}},
                                                        {{0, 10}, {10, 5}, {10, 12}}};
  for (const auto& bad : hostile) {
    const auto bytes = encode_shard_index(bad, 4);
    EXPECT_FALSE(decode_shard_index(bytes, 4, 3, 22 + bytes.size()));
  }
  for (std::size_t i = 0; i < index.size(); ++i) {
    auto damaged = index;
    damaged[i] ^= std::byte{0x40};
    EXPECT_EQ(decode_shard_index(damaged, 4, 3, 22 + index.size()).error().code(),
              ErrorCode::corrupt);
  }
}

}  // namespace
}  // namespace librarian::activation_store
