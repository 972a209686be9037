#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "activation_store/array_reader.h"
#include "activation_store/array_writer.h"
#include "activation_store/blosc_chunk.h"
#include "base/random.h"
#include "tests/activation_store/store_fixtures.h"
#include "tests/support/memory_file_system.h"

namespace librarian::activation_store {
namespace {

using librarian::testing::MemoryFileSystem;
using testing::make_rows;
using testing::read_array;
using testing::RowKind;
using testing::write_array;

constexpr char kName[] = "blocks.3.resid_post";

std::string label(const ArrayLayout& layout, RowKind kind, std::uint64_t append_rows) {
  return std::string(stored_type_name(layout.type)) + " codec " +
         std::to_string(static_cast<int>(layout.codec)) + " rows " + std::to_string(layout.rows) +
         " width " + std::to_string(layout.width) + " chunk " +
         std::to_string(layout.chunk_tokens) + " shard " + std::to_string(layout.shard_tokens) +
         " kind " + std::to_string(static_cast<int>(kind)) + " appended by " +
         std::to_string(append_rows);
}

void expect_round_trip(const ArrayLayout& layout, RowKind kind, std::uint64_t append_rows) {
  SCOPED_TRACE(label(layout, kind, append_rows));
  MemoryFileSystem files;
  ASSERT_TRUE(files.make_directory("/part"));
  const auto rows = make_rows(layout, kind, 1 + layout.rows);
  const auto record = write_array(files, "/part", kName, layout, rows, append_rows);
  ASSERT_TRUE(record) << record.error().message();
  const auto read = read_array(files, std::string("/part/") + kName);
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(*read, rows);

  EXPECT_EQ(record->name, kName);
  EXPECT_EQ(record->shape, layout.is_vector
                               ? (std::vector<std::uint64_t>{layout.rows})
                               : (std::vector<std::uint64_t>{layout.rows, layout.width}));
  EXPECT_EQ(record->dtype, stored_type_name(layout.type));
  EXPECT_EQ(record->rows_xxh3, xxh3_128(rows));
  EXPECT_EQ(record->raw_bytes, rows.size());
  EXPECT_EQ(record->files.size(), shard_count(layout) + 1);
  std::uint64_t stored = 0;
  const auto snapshot = files.snapshot();
  EXPECT_EQ(snapshot.size(), record->files.size());
  for (const FileRecord& file : record->files) {
    ASSERT_EQ(snapshot.count("/part/" + file.path), 1U) << file.path;
    const std::string& content = snapshot.at("/part/" + file.path);
    EXPECT_EQ(file.size, content.size());
    EXPECT_EQ(file.crc32c, crc32c(std::as_bytes(std::span(content))));
    stored += file.size;
  }
  EXPECT_EQ(record->stored_bytes, stored);
}

// Goal: every type, codec, width and chunk shape comes back bit for bit, however rows arrive.
// Method: all combinations on a memory file system; appends of 1, 5 and all rows cross chunks.
TEST(ArrayRoundTrip, GivesBackTheSameBitsForEveryTypeCodecAndShape) {
  for (const StoredType type :
       {StoredType::bf16, StoredType::f16, StoredType::f32, StoredType::f8_e4m3, StoredType::i32}) {
    for (const Codec codec : {Codec::none, Codec::zstd}) {
      for (const auto& [chunk, shard] : {std::pair{1U, 1U}, {1U, 4U}, {8U, 16U}, {256U, 512U}}) {
        for (const std::uint64_t rows : {1U, 16U, 37U, 1000U}) {
          ArrayLayout vector{rows, 1, type, codec, chunk, shard};
          vector.is_vector = true;
          expect_round_trip(vector, RowKind::activations, 5);
          expect_round_trip(vector, RowKind::noise, 0);
        }
      }
      for (const std::uint64_t width : {33U, 64U, 384U}) {
        for (const auto& [chunk, shard] : {std::pair{1U, 1U}, {1U, 4U}, {2U, 2U}, {8U, 16U}}) {
          for (const std::uint64_t rows : {1U, 15U, 16U, 17U, 37U}) {
            const ArrayLayout layout{rows, width, type, codec, chunk, shard};
            expect_round_trip(layout, RowKind::activations, rows == 37 ? 1 : 5);
          }
          expect_round_trip({21, width, type, codec, chunk, shard}, RowKind::noise, 0);
          expect_round_trip({21, width, type, codec, chunk, shard}, RowKind::special, 2);
        }
      }
    }
  }
}

// Goal: any range of rows can be read, not only whole chunks or the whole array.
// Method: every pair (begin, end) of an array of 2 shards with an incomplete last chunk.
TEST(ArrayRoundTrip, ReadsEveryRangeOfRows) {
  MemoryFileSystem files;
  ASSERT_TRUE(files.make_directory("/part"));
  const ArrayLayout layout{29, 33, StoredType::bf16, Codec::zstd, 4, 16};
  const auto rows = make_rows(layout, RowKind::activations, 7);
  ASSERT_TRUE(write_array(files, "/part", kName, layout, rows));
  const auto reader = ArrayReader::open(files, std::string("/part/") + kName);
  ASSERT_TRUE(reader) << reader.error().message();
  const std::uint64_t row = row_bytes(layout);
  for (std::uint64_t begin = 0; begin <= layout.rows; ++begin) {
    for (std::uint64_t end = begin; end <= layout.rows; ++end) {
      std::vector<std::byte> got((end - begin) * row);
      ASSERT_TRUE(reader->read_rows(begin, end, got));
      ASSERT_TRUE(std::equal(got.begin(), got.end(),
                             rows.begin() + static_cast<std::ptrdiff_t>(begin * row)));
    }
  }
  std::vector<std::byte> two(2 * row);
  EXPECT_EQ(reader->read_rows(28, 30, two).error().code(), ErrorCode::invalid_argument);
  EXPECT_EQ(reader->read_rows(1, 2, two).error().code(), ErrorCode::invalid_argument);
  EXPECT_EQ(reader->read_rows(2, 1, {}).error().code(), ErrorCode::invalid_argument);
}

/// A directory in memory, of the real file system: there files have views.
class ArrayOnTmpfs : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(posix_file_system().make_directory(part_)); }
  void TearDown() override { std::filesystem::remove_all(part_); }
  std::string array() const { return part_ + "/" + kName; }

  const std::string part_ = "/dev/shm/librarian-array-" + random_hex(12);
};

// Goal: rows of wide chunks, which are decoded from views, are those written, and what is wrong
// with a shard is an error as elsewhere.
// Method: ranges within a chunk, over chunks, shards and more than one view holds, of an incomplete
// last chunk; then a byte changed, and the file cut after its index was read.
TEST_F(ArrayOnTmpfs, ReadsRangesFromViewsAndReportsDamage) {
  FileSystem& files = posix_file_system();
  for (const Codec codec : {Codec::none, Codec::zstd}) {
    SCOPED_TRACE(static_cast<int>(codec));
    const ArrayLayout layout{6000, 1024, StoredType::f32, codec, 256, 5120};
    const auto rows = make_rows(layout, RowKind::noise, 3);
    ASSERT_TRUE(write_array(files, part_, kName, layout, rows));
    const auto reader = ArrayReader::open(files, array());
    ASSERT_TRUE(reader) << reader.error().message();
    const std::uint64_t row = row_bytes(layout);
    const auto expect_rows = [&](std::uint64_t begin, std::uint64_t end) {
      std::vector<std::byte> got((end - begin) * row);
      const auto read = reader->read_rows(begin, end, got);
      ASSERT_TRUE(read) << read.error().message();
      EXPECT_TRUE(std::equal(got.begin(), got.end(),
                             rows.begin() + static_cast<std::ptrdiff_t>(begin * row)))
          << begin;
    };
    for (const auto& [begin, end] : {std::pair{0U, 6000U},
                                     {3U, 4U},
                                     {200U, 600U},
                                     {255U, 257U},
                                     {4000U, 5500U},
                                     {5119U, 5121U},
                                     {5999U, 6000U}}) {
      expect_rows(begin, end);
    }
    const std::string shard = array() + "/c/0/0";
    const auto error_of = [&](std::uint64_t begin, std::uint64_t end) {
      std::vector<std::byte> got((end - begin) * row);
      const auto read = reader->read_rows(begin, end, got);
      return read ? std::string() : read.error().message();
    };
    std::fstream(shard, std::ios::in | std::ios::out | std::ios::binary).seekp(300'000).put('?');
    EXPECT_EQ(error_of(0, 1), shard + ", chunk 0: its CRC32C does not fit");
    expect_rows(600, 700);
    std::filesystem::resize_file(shard, 3'000'000);
    EXPECT_NE(error_of(600, 1000).find(", chunk 2: it: ends at byte 3000000"), std::string::npos)
        << error_of(600, 1000);
    std::filesystem::remove_all(array());
  }
}

// Goal: the stored bytes are a function of the rows, not of how they came or were scheduled.
// Method: the same rows with other append sizes, threads and slots give the same files.
TEST(ArrayRoundTrip, StoresTheSameBytesHoweverRowsArrive) {
  const ArrayLayout layout{100, 64, StoredType::bf16, Codec::zstd, 8, 32};
  const auto rows = make_rows(layout, RowKind::activations, 3);
  std::map<std::string, std::string> first;
  for (const std::uint64_t append_rows : {1U, 7U, 8U, 100U}) {
    for (const int threads : {1, 4}) {
      MemoryFileSystem files;
      ASSERT_TRUE(files.make_directory("/part"));
      EncodePool pool(real_clock(), {.threads = threads,
                                     .slots = static_cast<std::uint64_t>(threads) * 2,
                                     .chunk_bytes_max = chunk_bytes(layout) + 100});
      auto writer = ArrayWriter::create(files, pool, "/part", kName, layout, "ab");
      ASSERT_TRUE(writer);
      for (std::uint64_t begin = 0; begin < layout.rows; begin += append_rows) {
        const std::uint64_t count = std::min(append_rows, layout.rows - begin);
        ASSERT_TRUE(writer->append(
            std::span(rows).subspan(begin * row_bytes(layout), count * row_bytes(layout)), {}));
      }
      ASSERT_TRUE(writer->finish({}));
      ASSERT_TRUE(writer->publish());
      if (first.empty()) {
        first = files.snapshot();
      }
      EXPECT_EQ(files.snapshot(), first);
    }
  }
}

// Goal: activations shrink, and what does not shrink costs a few bytes per chunk at most.
// Method: sizes of one shard of each kind.
TEST(ArrayRoundTrip, CompressesActivationsAndNeverGrowsNoiseByMoreThanHeaders) {
  const ArrayLayout layout{1024, 512, StoredType::bf16, Codec::zstd, 512, 1024};
  MemoryFileSystem files;
  ASSERT_TRUE(files.make_directory("/part"));
  const auto activations = make_rows(layout, RowKind::activations, 1);
  const auto noise = make_rows(layout, RowKind::noise, 1);
  const auto small = write_array(files, "/part", "embed", layout, activations);
  const auto large = write_array(files, "/part", kName, layout, noise);
  ASSERT_TRUE(small && large);
  EXPECT_LT(static_cast<double>(small->stored_bytes), 0.78 * static_cast<double>(small->raw_bytes));
  EXPECT_LT(large->stored_bytes, large->raw_bytes + 4096);
}

// Goal: NaN and infinity counts are exact and ignore the padding, which is NaN itself.
// Method: known numbers of each in rows that leave most of the last chunk empty.
TEST(ArrayRoundTrip, CountsNaNsAndInfinitiesOfTheRowsAlone) {
  for (const StoredType type : {StoredType::bf16, StoredType::f16, StoredType::f32}) {
    const ArrayLayout layout{9, 33, type, Codec::zstd, 8, 8};
    std::vector<std::byte> rows(layout.rows * row_bytes(layout));
    const auto put = [&](std::uint64_t element, std::uint32_t bits) {
      std::memcpy(rows.data() + element * element_bytes(type), &bits, element_bytes(type));
    };
    const std::uint32_t inf = type == StoredType::bf16  ? 0x7F80
                              : type == StoredType::f16 ? 0x7C00
                                                        : 0x7F800000;
    const std::uint32_t sign = type == StoredType::f32 ? 0x80000000 : 0x8000;
    put(0, inf);
    put(40, inf | sign);
    put(296, inf | 1);
    put(270, inf | sign | 0x40);
    put(100, inf - 1);  // the largest finite value
    put(101, inf | 3);
    MemoryFileSystem files;
    ASSERT_TRUE(files.make_directory("/part"));
    const auto record = write_array(files, "/part", kName, layout, rows, 2);
    ASSERT_TRUE(record);
    EXPECT_EQ(record->nan_count, 3U);
    EXPECT_EQ(record->inf_count, 2U);
  }
}

// Goal: the automatic chunk is the power of two of rows nearest to 1 MiB.
TEST(DefaultChunkTokens, IsThePowerOfTwoNearestToOneMebibyte) {
  EXPECT_EQ(default_chunk_tokens(4096, StoredType::bf16), 128U);
  EXPECT_EQ(default_chunk_tokens(8192, StoredType::bf16), 64U);
  EXPECT_EQ(default_chunk_tokens(2048, StoredType::f32), 128U);
  EXPECT_EQ(default_chunk_tokens(2880, StoredType::bf16), 256U);  // 182.04: log2 = 7.508
  EXPECT_EQ(default_chunk_tokens(5120, StoredType::bf16), 128U);  // 102.4: log2 = 6.68
  EXPECT_EQ(default_chunk_tokens(1U << 20U, StoredType::f32), 1U);
  EXPECT_EQ(default_chunk_tokens(~0U, StoredType::f32), 1U);
  EXPECT_EQ(default_chunk_tokens(1, StoredType::bf16), 1U << 19U);
}

}  // namespace
}  // namespace librarian::activation_store
