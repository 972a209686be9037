#include "weightmap/remote/scatter.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "base/digest.h"

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

// Goal: what arrived can be told from what is in memory later, however the stream was cut.
// Method: pieces that touch, with holes and longer than a run, cut in many ways: runs, joined, are
// the checksums of the object's own bytes, and no run crosses where another transfer may begin.
TEST(Scatter, SumsWhatArrivesInRuns) {
  const std::vector<std::byte> object = counting(5 * kCrcRunBytes);
  const std::vector<ByteRange> ranges = {{10, 11},
                                         {11, 700},
                                         {kCrcRunBytes - 5, 3 * kCrcRunBytes + 9},
                                         {3 * kCrcRunBytes + 9, 4 * kCrcRunBytes}};
  std::vector<std::byte> memory(object.size());
  std::vector<FetchPiece> pieces(ranges.size());
  std::transform(ranges.begin(), ranges.end(), pieces.begin(), [&](const ByteRange& range) {
    return FetchPiece{range, memory.data() + range.begin};
  });
  CrcRuns first;
  for (const std::size_t cut : {1UL, 3UL, 700UL, 16384UL, 65535UL, 65536UL, 100000UL, 400000UL}) {
    Scatter scatter(0, pieces);
    for (std::size_t begin = 0; begin < object.size(); begin += cut) {
      scatter.append(std::span(object).subspan(begin, std::min(cut, object.size() - begin)));
    }
    for (const ByteRange& range : ranges) {
      EXPECT_EQ(crc_of(scatter.crcs(), range),
                crc32c(std::span(object).subspan(range.begin, range.size())))
          << cut << " " << range.begin;
    }
    for (const CrcRun& run : scatter.crcs()) {
      EXPECT_EQ(run.range.begin / kCrcRunBytes, (run.range.end - 1) / kCrcRunBytes);
    }
    first = first.empty() ? scatter.crcs() : first;
    EXPECT_EQ(scatter.crcs(), first) << cut;
  }
}

// Goal: a transfer that ends early says what it has brought, and another can go on from there.
TEST(Scatter, RunsOfTwoTransfersJoin) {
  const std::vector<std::byte> object = counting(3 * kCrcRunBytes);
  std::vector<std::byte> memory(object.size());
  const ByteRange all{5, object.size()};
  for (const std::uint64_t end : {6UL, 700UL, kCrcRunBytes, kCrcRunBytes + 1, 2 * kCrcRunBytes}) {
    CrcRuns runs;
    for (const ByteRange part : {ByteRange{5, end}, ByteRange{end, object.size()}}) {
      Scatter scatter(part.begin, clip_pieces({{all, memory.data() + 5}}, part.begin, all.end));
      scatter.append(std::span(object).subspan(part.begin, part.size()));
      append_runs(runs, scatter.crcs(), part.end);
    }
    EXPECT_EQ(crc_of(runs, all), crc32c(std::span(object).subspan(5))) << end;
  }
}

// Catches: a checksum of bytes that are not all there.
TEST(CrcRuns, SayNothingOfWhatTheyDoNotCover) {
  const CrcRuns runs = {{{10, 20}, 1}, {{20, 30}, 2}, {{40, 50}, 3}};
  EXPECT_TRUE(crc_of(runs, {10, 30}));
  EXPECT_TRUE(crc_of(runs, {20, 30}));
  for (const ByteRange& range : {ByteRange{9, 20}, ByteRange{10, 19}, ByteRange{11, 20},
                                 ByteRange{10, 31}, ByteRange{10, 50}, ByteRange{40, 51}}) {
    EXPECT_FALSE(crc_of(runs, range)) << range.begin << " " << range.end;
  }
  CrcRuns begun;
  append_runs(begun, runs, 29);
  EXPECT_EQ(begun, (CrcRuns{{{10, 20}, 1}}));
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
