#include "activation_store/store_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "activation_store/compare_rows.h"
#include "activation_store/diff.h"
#include "tests/activation_store/store_fixtures.h"
#include "tests/support/memory_file_system.h"

namespace librarian::activation_store {
namespace {

using librarian::testing::MemoryFileSystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::make_sample_rows;
using testing::StoreOptions;
using testing::write_store;

TEST(StoreReader, GivesSamplesByNameAndByAlias) {
  const StoreOptions options;
  MemoryFileSystem files;
  ASSERT_TRUE(write_store(files, "/a", options));
  const auto store = StoreReader::open(files, "/a");
  ASSERT_TRUE(store) << store.error().message();
  EXPECT_EQ(store->parts_total(), 3U);
  EXPECT_EQ(store->samples_total(), 8U);
  EXPECT_TRUE(store->numerics_uniform());
  EXPECT_THAT(store->captures(),
              ElementsAre("blocks.0.resid_post", "blocks.1.resid_post", "blocks.1.resid_pre"));
  for (std::uint64_t sample = 0; sample < 8; ++sample) {
    for (const auto& [name, array] : {std::pair{"blocks.0.resid_post", "blocks.0.resid_post"},
                                      {"blocks.1.resid_pre", "blocks.0.resid_post"},
                                      {"blocks.1.resid_post", "blocks.1.resid_post"}}) {
      const auto rows = store->sample(name, sample);
      ASSERT_TRUE(rows) << rows.error().message();
      EXPECT_EQ(rows->tokens, options.sample_lengths[sample]);
      EXPECT_EQ(rows->width, options.width);
      EXPECT_EQ(rows->bytes, make_sample_rows(options, array, sample, 1));
    }
    EXPECT_EQ(store->sample_tokens(sample)->size(), options.sample_lengths[sample]);
    EXPECT_EQ(store->sample_tokens(sample)->front(),
              static_cast<std::int32_t>(sample * 1009 % 32000));
  }
  const auto unknown = store->sample("blocks.7.resid_post", 0);
  EXPECT_EQ(unknown.error().code(), ErrorCode::not_found);
  EXPECT_THAT(unknown.error().message(), HasSubstr("blocks.1.resid_pre"));
  EXPECT_EQ(store->sample("tokens/offsets", 0).error().code(), ErrorCode::not_found);
  EXPECT_EQ(store->sample("blocks.0.resid_post", 8).error().code(), ErrorCode::not_found);
}

TEST(StoreReader, ReadsThePartsThatAreCompleteWhileOthersAreNot) {
  StoreOptions options;
  options.parts_to_write = 1;
  MemoryFileSystem files;
  ASSERT_TRUE(write_store(files, "/a", options));
  const auto store = StoreReader::open(files, "/a");
  ASSERT_TRUE(store);
  EXPECT_EQ(store->parts().size(), 1U);
  EXPECT_TRUE(store->sample("blocks.0.resid_post", 0));
  const auto later = store->sample("blocks.0.resid_post", 7);
  EXPECT_EQ(later.error().code(), ErrorCode::not_found);
  EXPECT_THAT(later.error().message(), HasSubstr("not complete"));
}

TEST(StoreReader, RefusesAPartOfAnotherJob) {
  MemoryFileSystem files;
  StoreOptions options;
  ASSERT_TRUE(write_store(files, "/a", options));
  options.part_tokens = 1000;
  ASSERT_TRUE(write_store(files, "/b", options));
  ASSERT_TRUE(replace_file(files, "/a/part-00000/zarr.json",
                           read_small_file(files, "/b/part-00000/zarr.json", 1U << 20U).value()));
  EXPECT_EQ(StoreReader::open(files, "/a").error().code(), ErrorCode::corrupt);
}

TEST(StoreReader, MayBeUsedByManyThreads) {
  const StoreOptions options;
  MemoryFileSystem files;
  ASSERT_TRUE(write_store(files, "/a", options));
  const auto store = StoreReader::open(files, "/a");
  ASSERT_TRUE(store);
  std::vector<std::jthread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&] {
      for (std::uint64_t round = 0; round < 40; ++round) {
        const auto rows = store->sample("blocks.1.resid_post", round % 8);
        EXPECT_TRUE(rows &&
                    rows->bytes == make_sample_rows(options, "blocks.1.resid_post", round % 8, 1));
      }
    });
  }
}

DiffReport diff(FileSystem& files, const char* a, const char* b) {
  const auto store_a = StoreReader::open(files, a);
  const auto store_b = StoreReader::open(files, b);
  EXPECT_TRUE(store_a && store_b);
  auto report = diff_stores(*store_a, *store_b, {});
  EXPECT_TRUE(report);
  return *std::move(report);
}

// Goal: equality is of samples and captures, not of files.
// Method: other partitions, chunk sizes and codecs; one store keeps an array under another name.
TEST(DiffStores, FindsStoresEqualOverAnyPartitionCodecAndAlias) {
  MemoryFileSystem files;
  StoreOptions options;
  ASSERT_TRUE(write_store(files, "/a", options));
  for (const std::uint64_t part_tokens : {12U, 40U, 1000U}) {
    StoreOptions other = options;
    other.part_tokens = part_tokens;
    other.codec = Codec::none;
    other.chunk_tokens = 4;
    other.shard_tokens = 4;
    const std::string directory = "/b" + std::to_string(part_tokens);
    ASSERT_TRUE(write_store(files, directory, other));
    const DiffReport report = diff(files, "/a", directory.c_str());
    EXPECT_TRUE(report.equal());
    EXPECT_EQ(report.samples_compared, 8U);
    ASSERT_EQ(report.captures.size(), 2U);
    EXPECT_EQ(report.captures[0].rows, 53U);
    EXPECT_EQ(report.captures[0].elements, 53U * options.width);
    EXPECT_EQ(report.captures[0].worst_sample, -1);
  }
}

// Goal: one flipped bit in one element is found, counted and placed.
TEST(DiffStores, PlacesOneDifferentElement) {
  MemoryFileSystem files;
  StoreOptions options;
  ASSERT_TRUE(write_store(files, "/a", options));
  options.tamper_sample = 6;
  options.tamper_position = 9;
  options.tamper_xor = 1;
  options.part_tokens = 30;
  ASSERT_TRUE(write_store(files, "/b", options));
  const DiffReport report = diff(files, "/a", "/b");
  EXPECT_FALSE(report.equal());
  for (const CaptureDiff& capture : report.captures) {
    EXPECT_EQ(capture.elements_different, 1U);
    EXPECT_EQ(capture.rows_different, 1U);
    EXPECT_EQ(capture.worst_sample, 6);
    EXPECT_EQ(capture.worst_position, 9);
    EXPECT_GT(capture.relative_error_max, 0);
    EXPECT_LT(capture.relative_error_max, 0.01);
    EXPECT_GT(capture.cosine_min, 0.999);
    EXPECT_LT(capture.cosine_min, 1);
  }
}

TEST(DiffStores, ListsSamplesAndCapturesOfOneStoreOnly) {
  MemoryFileSystem files;
  StoreOptions options;
  ASSERT_TRUE(write_store(files, "/a", options));
  options.sample_lengths.resize(6);
  options.arrays = {"blocks.0.resid_post", "embed"};
  ASSERT_TRUE(write_store(files, "/b", options));
  const DiffReport report = diff(files, "/a", "/b");
  EXPECT_FALSE(report.equal());
  EXPECT_THAT(report.samples_only_a, ElementsAre(6, 7));
  EXPECT_TRUE(report.samples_only_b.empty());
  EXPECT_EQ(report.samples_compared, 6U);
  EXPECT_THAT(report.captures_only_a, ElementsAre("blocks.1.resid_post"));
  EXPECT_THAT(report.captures_only_b, ElementsAre("embed"));
  ASSERT_EQ(report.captures.size(), 1U);
  EXPECT_TRUE(report.captures[0].equal());
}

// Goal: a capture that one store has as an array and the other as an alias is compared.
TEST(DiffStores, JoinsAnArrayWithAnAlias) {
  MemoryFileSystem files;
  StoreOptions options;
  options.arrays = {"blocks.0.resid_post"};
  options.aliases = {{"embed", "blocks.0.resid_post"}};
  ASSERT_TRUE(write_store(files, "/a", options));
  options.arrays = {"embed"};
  options.aliases = {};
  ASSERT_TRUE(write_store(files, "/b", options));
  const DiffReport report = diff(files, "/a", "/b");
  ASSERT_EQ(report.captures.size(), 1U);
  EXPECT_EQ(report.captures[0].name_a, "blocks.0.resid_post");
  EXPECT_EQ(report.captures[0].name_b, "embed");
  EXPECT_FALSE(report.captures[0].equal());  // the fixture's rows depend on the array's name
  EXPECT_GT(report.captures[0].relative_error_max, 0.5);
}

// Goal: types are compared as numbers, and stores of other types are never called equal.
TEST(DiffStores, ComparesOtherTypesByValue) {
  MemoryFileSystem files;
  StoreOptions options;
  options.type = StoredType::f32;
  ASSERT_TRUE(write_store(files, "/a", options));
  options.type = StoredType::bf16;  // the fixture cuts mantissas off: errors below 2^-7
  ASSERT_TRUE(write_store(files, "/b", options));
  const DiffReport report = diff(files, "/a", "/b");
  EXPECT_FALSE(report.equal());
  EXPECT_GT(report.captures[0].elements_different, 1000U);
  EXPECT_GT(report.captures[0].relative_error_max, 1e-3);
  EXPECT_LT(report.captures[0].relative_error_max, 1.0 / 128);
  options.width = 41;
  ASSERT_TRUE(write_store(files, "/c", options));
  EXPECT_THAT(diff(files, "/a", "/c").captures[0].incomparable, HasSubstr("41"));
}

TEST(DiffStores, StopsWhenAsked) {
  MemoryFileSystem files;
  ASSERT_TRUE(write_store(files, "/a", StoreOptions{}));
  const auto store = StoreReader::open(files, "/a");
  std::stop_source source;
  source.request_stop();
  EXPECT_EQ(diff_stores(*store, *store, source.get_token()).error().code(), ErrorCode::cancelled);
}

// Goal: f16 values are decoded exactly over their whole range.
TEST(ElementValue, DecodesSpecialHalfs) {
  const auto value = [](std::uint16_t bits) {
    return element_value(StoredType::f16, reinterpret_cast<const std::byte*>(&bits));
  };
  EXPECT_EQ(value(0x3C00), 1.0F);
  EXPECT_EQ(value(0xC000), -2.0F);
  EXPECT_EQ(value(0x7BFF), 65504.0F);
  EXPECT_EQ(value(0x0001), 0x1p-24F);
  EXPECT_EQ(value(0x03FF), 0x1.FF8p-15F);
  EXPECT_EQ(value(0x0400), 0x1p-14F);
  EXPECT_TRUE(std::signbit(value(0x8000)));
  EXPECT_TRUE(std::isinf(value(0xFC00)));
  EXPECT_TRUE(std::isnan(value(0x7E00)));
}

}  // namespace
}  // namespace librarian::activation_store
