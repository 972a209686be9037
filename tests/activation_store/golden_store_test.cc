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
using testing::golden_options;
using testing::make_sample_rows;
using testing::StoreOptions;

constexpr char kGolden[] = LIBRARIAN_GOLDEN_STORE;

std::map<std::string, std::string> committed_files() {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(kGolden)) {
    if (entry.is_regular_file()) {
      std::ifstream stream(entry.path(), std::ios::binary);
      files["/golden/" + std::filesystem::relative(entry.path(), kGolden).string()] =
          std::string(std::istreambuf_iterator<char>(stream), {});
    }
  }
  return files;
}

// Goal: the bytes of the format do not change by accident.
// Method: the store that is committed is written anew. Another zstd may compress otherwise: then
// names must be the same, and values are compared instead of bytes.
TEST(GoldenStore, IsWhatTheWriterWritesToday) {
  MemoryFileSystem files;
  ASSERT_TRUE(write_store(files, "/golden", golden_options()));
  const auto committed = committed_files();
  const auto written = files.snapshot();
  ASSERT_GT(committed.size(), 30U) << kGolden;
  const auto golden = StoreReader::open(posix_file_system(), kGolden);
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
