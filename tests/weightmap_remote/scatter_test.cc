#include "weightmap/remote/scatter.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

namespace librarian::weightmap::remote {
namespace {

std::vector<std::byte> counting(std::size_t size) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) {
    bytes[i] = static_cast<std::byte>(i * 7 + 1);
  }
  return bytes;
}

// Goal: however the stream is cut, each piece gets exactly its bytes and nothing beside it.
// Method: pieces with and without holes, and bytes after the last one; every cut size.
TEST(Scatter, PlacesTheSameBytesHoweverTheStreamIsCut) {
  const std::vector<std::byte> object = counting(200);
  const std::vector<ByteRange> ranges = {{20, 21}, {21, 60}, {90, 100}, {101, 150}};
  for (std::size_t cut = 1; cut <= 190; ++cut) {
    std::vector<std::byte> memory(300, std::byte{0xEE});
    std::vector<std::byte> expected = memory;
    std::vector<FetchPiece> pieces;
    std::size_t at = 3;
    for (const ByteRange& range : ranges) {
      pieces.push_back({range, memory.data() + at});
      std::copy_n(object.begin() + static_cast<std::ptrdiff_t>(range.begin), range.size(),
                  expected.begin() + static_cast<std::ptrdiff_t>(at));
      at += range.size() + 2;
    }
    Scatter scatter(10, pieces);
    for (std::size_t begin = 10; begin < 200; begin += cut) {
      EXPECT_EQ(scatter.position(), begin);
      scatter.append(std::span(object).subspan(begin, std::min(cut, 200 - begin)));
    }
    ASSERT_EQ(memory, expected) << "cut " << cut;
    EXPECT_EQ(scatter.position(), 200U);
    EXPECT_EQ(scatter.piece_bytes(), 99U);
  }
}

TEST(Scatter, ClippingMovesDestinationsAlong) {
  std::byte memory[100];
  const std::vector<FetchPiece> pieces = {{{0, 10}, &memory[0]}, {{20, 40}, &memory[50]}};
  const auto clipped = clip_pieces(pieces, 25, 30);
  ASSERT_EQ(clipped.size(), 1U);
  EXPECT_EQ(clipped[0].range, (ByteRange{25, 30}));
  EXPECT_EQ(clipped[0].destination, &memory[55]);
  EXPECT_EQ(clip_pieces(pieces, 0, 100).size(), 2U);
  EXPECT_TRUE(clip_pieces(pieces, 10, 20).empty());
}

}  // namespace
}  // namespace librarian::weightmap::remote
