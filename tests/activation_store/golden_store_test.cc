#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "activation_store/blosc_chunk.h"
#include "activation_store/diff.h"
#include "activation_store/store_reader.h"
#include "activation_store/verify.h"
#include "tests/activation_store/store_fixtures.h"
#include "tests/support/memory_file_system.h"

namespace librarian::activation_store {
namespace {

using librarian::testing::MemoryFileSystem;
using testing::golden_kinds_options;
using testing::golden_options;
using testing::make_sample_rows;
using testing::StoreOptions;

constexpr char kGolden[] = LIBRARIAN_GOLDEN_STORE;
constexpr char kGoldenKinds[] = LIBRARIAN_GOLDEN_STORE "_kinds";

std::map<std::string, std::string> committed_files(const std::string& golden) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(golden)) {
    if (entry.is_regular_file()) {
      std::ifstream stream(entry.path(), std::ios::binary);
      files["/golden/" + std::filesystem::relative(entry.path(), golden).string()] =
          std::string(std::istreambuf_iterator<char>(stream), {});
    }
  }
  return files;
}

void expect_written_today(const std::string& directory, const StoreOptions& options) {
  MemoryFileSystem files;
  ASSERT_TRUE(write_store(files, "/golden", options));
  const auto committed = committed_files(directory);
  const auto written = files.snapshot();
  ASSERT_GT(committed.size(), 30U) << directory;
  const auto golden = StoreReader::open(posix_file_system(), directory);
  ASSERT_TRUE(golden) << golden.error().message();
  if (golden->parts().at(0).file.zstd_version == zstd_version()) {
    EXPECT_EQ(written.size(), committed.size());
    for (const auto& [path, content] : written) {
      ASSERT_EQ(committed.count(path), 1U) << path;
      EXPECT_TRUE(committed.at(path) == content) << path << " has other bytes";
    }
    return;
  }
  const auto today = StoreReader::open(files, "/golden");
  ASSERT_TRUE(today);
  EXPECT_TRUE(diff_stores(*golden, *today, {})->equal());
}

// Goal: the bytes of the format do not change by accident.
// Method: the stores that are committed are written anew. Another zstd may compress otherwise: then
// names must be the same, and values are compared instead of bytes.
TEST(GoldenStore, IsWhatTheWriterWritesToday) {
  expect_written_today(kGolden, golden_options());
  expect_written_today(kGoldenKinds, golden_kinds_options());
}

// Goal: what captures with parameters leave is read back bit for bit, each row with its place.
TEST(GoldenStore, OfEveryKindIsReadAndVerified) {
  const StoreOptions options = golden_kinds_options();
  const auto report = verify_store(posix_file_system(), kGoldenKinds, {});
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_EQ(report->state, StoreState::complete);
  const auto golden = StoreReader::open(posix_file_system(), kGoldenKinds);
  ASSERT_TRUE(golden);
  for (const CompletePart& part : golden->parts()) {
    const auto kept = testing::kind_rows(options, part.file.range);
    const auto offsets = golden->offsets(part.index);
    ASSERT_TRUE(offsets);
    for (const auto& kind : testing::kind_arrays(options, part.file.range)) {
      std::vector<std::byte> rows;
      std::vector<std::int64_t> places;
      for (std::uint64_t i = 0; i < part.file.range.samples; ++i) {
        const auto sample = golden->sample(kind.name, part.file.range.first_sample + i);
        ASSERT_TRUE(sample) << kind.name << ": " << sample.error().message();
        rows.insert(rows.end(), sample->bytes.begin(), sample->bytes.end());
        EXPECT_EQ(sample->positions.has_value(), !kind.attributes.rows.empty()) << kind.name;
        if (sample->positions) {
          EXPECT_EQ(sample->positions->size(), sample->tokens);
          for (const std::int64_t position : *sample->positions) {
            places.push_back((**offsets)[i] + position);
          }
        }
      }
      EXPECT_EQ(rows, kind.rows) << kind.name;
      if (!kind.attributes.rows.empty()) {
        EXPECT_EQ(places, kept.at(kind.attributes.rows.substr(7))) << kind.name;
      }
    }
  }
  EXPECT_EQ(golden->parts()[0].file.arrays.back().name, "logits.topk.gold_log_prob");
  EXPECT_FALSE(golden->sample("logits.topk", 0));
}

TEST(GoldenStore, IsReadAndVerified) {
  const StoreOptions options = golden_options();
  const auto report = verify_store(posix_file_system(), kGolden, {});
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_EQ(report->state, StoreState::complete);
  const auto golden = StoreReader::open(posix_file_system(), kGolden);
  ASSERT_TRUE(golden);
  for (std::uint64_t sample = 0; sample < options.sample_lengths.size(); ++sample) {
    for (const std::string& array : options.arrays) {
      const auto rows = golden->sample(array, sample);
      ASSERT_TRUE(rows) << rows.error().message();
      EXPECT_EQ(rows->bytes, make_sample_rows(options, array, sample, 1));
    }
  }
}

}  // namespace
}  // namespace librarian::activation_store
