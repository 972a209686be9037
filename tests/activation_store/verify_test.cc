#include "activation_store/verify.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>

#include "activation_store/blosc_chunk.h"
#include "activation_store/store_reader.h"
#include "tests/activation_store/store_fixtures.h"
#include "tests/support/memory_file_system.h"

namespace librarian::activation_store {
namespace {

using librarian::testing::MemoryFileSystem;
using ::testing::HasSubstr;
using testing::make_sample_rows;
using testing::StoreOptions;
using testing::write_store;

constexpr char kRoot[] = "/store/";

// Sanitizers make each of the thousands of verifications ten times slower; they look at a part.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::uint64_t kFlipStep = 13;
#else
constexpr std::uint64_t kFlipStep = 1;
#endif

/// One part, two shards per array, the last chunk incomplete.
StoreOptions one_part(Codec codec) {
  StoreOptions options;
  options.sample_lengths = {5, 9, 7};
  options.arrays = {"blocks.0.resid_post"};
  options.aliases = {{"blocks.1.resid_pre", "blocks.0.resid_post"}};
  options.codec = codec;
  return options;
}

std::string problems(const VerifyReport& report) {
  std::string text;
  for (const VerifyProblem& problem : report.problems) {
    text += problem.path + ": " + problem.message + "\n";
  }
  return text;
}

bool names(const VerifyReport& report, const std::string& path) {
  return std::any_of(report.problems.begin(), report.problems.end(),
                     [&](const VerifyProblem& problem) { return problem.path == path; });
}

/// Reads all samples; each must be right or an error. Returns how many were errors.
std::uint64_t count_read_errors(FileSystem& files, const StoreOptions& options) {
  const auto reader = StoreReader::open(files, "/store");
  if (!reader) {
    return options.sample_lengths.size();
  }
  std::uint64_t errors = 0;
  for (std::uint64_t sample = 0; sample < options.sample_lengths.size(); ++sample) {
    const auto rows = reader->sample("blocks.0.resid_post", sample);
    if (!rows) {
      ++errors;
      continue;
    }
    EXPECT_EQ(rows->bytes, make_sample_rows(options, "blocks.0.resid_post", sample, 1));
  }
  return errors;
}

void expect_damage_named(MemoryFileSystem& files, const std::string& path) {
  const auto report = verify_store(files, "/store", {});
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_EQ(report->state, StoreState::damaged) << path;
  EXPECT_TRUE(names(*report, path)) << path << " is not named in\n" << problems(*report);
}

TEST(VerifyStore, FindsNothingWrongWithAWholeStore) {
  for (const Codec codec : {Codec::none, Codec::zstd}) {
    for (const StoredType type : {StoredType::bf16, StoredType::f16, StoredType::f32}) {
      MemoryFileSystem files;
      StoreOptions options;
      options.codec = codec;
      options.type = type;
      ASSERT_TRUE(write_store(files, "/store", options));
      const auto report = verify_store(files, "/store", {});
      ASSERT_TRUE(report) << report.error().message();
      EXPECT_EQ(report->state, StoreState::complete) << problems(*report);
      EXPECT_EQ(report->parts_complete, 3U);
      EXPECT_EQ(report->parts_total, 3U);
      EXPECT_EQ(report->files_checked, files.snapshot().size() - 5) << "all but 5 zarr/job.json";
    }
  }
}

TEST(VerifyStore, FindsNothingWrongWithAWholeStoreOfEveryKind) {
  MemoryFileSystem files;
  StoreOptions options;
  options.every_kind = true;
  ASSERT_TRUE(write_store(files, "/store", options));
  const auto report = verify_store(files, "/store", {});
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_EQ(report->state, StoreState::complete) << problems(*report);
  EXPECT_EQ(report->files_checked, files.snapshot().size() - 5) << "all but 5 zarr/job.json";
}

// Catches: a kind of array whose files nobody checks.
TEST(VerifyStore, NamesTheFileOfAByteFlippedInAnyKindOfArray) {
  MemoryFileSystem files;
  StoreOptions options;
  options.every_kind = true;
  options.part_tokens = 1000;
  ASSERT_TRUE(write_store(files, "/store", options));
  for (const auto& [path, content] : files.snapshot()) {
    const std::uint64_t at = content.size() / 2;
    files.corrupt(path, at, std::byte{0x10});
    expect_damage_named(files, path.substr(sizeof kRoot - 1));
    files.corrupt(path, at, std::byte{0x10});
  }
}

// Goal: no byte of a store can change unseen: verify names the file, and what a reader returns is
// right or an error.
// Method: a store of one part; every byte of every file is flipped in turn and put back.
TEST(VerifyStore, NamesTheFileOfEveryFlippedByte) {
  const StoreOptions options = one_part(Codec::zstd);
  MemoryFileSystem files;
  ASSERT_TRUE(write_store(files, "/store", options));
  std::uint64_t flips = 0;
  std::uint64_t read_errors = 0;
  for (const auto& [path, content] : files.snapshot()) {
    const std::string relative = path.substr(sizeof kRoot - 1);
    for (std::uint64_t at = 0; at < content.size(); at += kFlipStep) {
      const auto flip = static_cast<std::byte>(1U << ((at * 5 + flips) % 8));
      files.corrupt(path, at, flip);
      expect_damage_named(files, relative);
      if (flips % 5 == 0) {
        read_errors += count_read_errors(files, options);
      }
      files.corrupt(path, at, flip);
      ++flips;
      if (HasFailure()) {
        FAIL() << path << " byte " << at;
      }
    }
  }
  EXPECT_GT(flips, 8000U / kFlipStep);
  EXPECT_GT(read_errors, 1000U / kFlipStep);
  EXPECT_EQ(verify_store(files, "/store", {})->state, StoreState::complete);
}

// Goal: the same for payload that no codec stands between, and for larger chunks.
// Method: 1,000 flips spread over the shard files of uncompressed and compressed stores.
TEST(VerifyStore, NamesTheShardOfAThousandFlippedPayloadBytes) {
  for (const Codec codec : {Codec::none, Codec::zstd}) {
    StoreOptions options = one_part(codec);
    options.width = 400;
    MemoryFileSystem files;
    ASSERT_TRUE(write_store(files, "/store", options));
    std::vector<std::pair<std::string, std::uint64_t>> shards;
    for (const auto& [path, content] : files.snapshot()) {
      if (path.find("resid_post/c/") != std::string::npos) {
        shards.emplace_back(path, content.size());
      }
    }
    ASSERT_EQ(shards.size(), 2U);
    std::uint64_t state = 12345;
    for (std::uint64_t i = 0; i < 500 / kFlipStep; ++i) {
      state = state * 6364136223846793005U + 1442695040888963407U;
      const auto& [path, size] = shards[(state >> 33U) % shards.size()];
      const std::uint64_t at = (state >> 20U) % size;
      const auto flip = static_cast<std::byte>(1U << ((state >> 60U) % 8));
      files.corrupt(path, at, flip);
      expect_damage_named(files, path.substr(sizeof kRoot - 1));
      EXPECT_GT(count_read_errors(files, options), 0U);
      files.corrupt(path, at, flip);
      ASSERT_FALSE(HasFailure()) << path << " byte " << at;
    }
  }
}

void truncate_to(FileSystem& files, const std::string& path, std::uint64_t size) {
  auto file = files.open_append(path, false);
  ASSERT_TRUE(file);
  ASSERT_TRUE((*file)->truncate(size));
}

// Goal: a file that is gone, cut or grown is named.
TEST(VerifyStore, NamesEveryMissingTruncatedAndGrownFile) {
  const StoreOptions options = one_part(Codec::zstd);
  MemoryFileSystem intact;
  ASSERT_TRUE(write_store(intact, "/store", options));
  for (const auto& [path, content] : intact.snapshot()) {
    const std::string relative = path.substr(sizeof kRoot - 1);
    for (const std::uint64_t size : {content.size() / 2, content.size() - 1, content.size() + 1}) {
      MemoryFileSystem files;
      ASSERT_TRUE(write_store(files, "/store", options));
      truncate_to(files, path, size);
      expect_damage_named(files, relative);
      count_read_errors(files, options);
    }
    MemoryFileSystem files;
    ASSERT_TRUE(write_store(files, "/store", options));
    ASSERT_TRUE(files.remove_file(path));
    count_read_errors(files, options);
    if (relative == "part-00000/zarr.json") {
      // Without it the part is not complete, and there is no journal that explains its arrays.
      expect_damage_named(files, "part-00000/blocks.0.resid_post");
    } else {
      expect_damage_named(files, relative);
    }
  }
}

TEST(VerifyStore, NamesFilesThatNoManifestLists) {
  for (const char* const extra :
       {"part-00000/blocks.0.resid_post/c/2/0", "part-00000/note.txt", "part-00000/tokens/x",
        "part-00000/blocks.0.resid_post/zarr.json.partial-ab", "part-00000/embed/zarr.json"}) {
    MemoryFileSystem files;
    ASSERT_TRUE(write_store(files, "/store", one_part(Codec::zstd)));
    ASSERT_TRUE(make_directories(files, parent_path(kRoot + std::string(extra))));
    ASSERT_TRUE(files.create(kRoot + std::string(extra)));
    expect_damage_named(files, extra);
  }
  MemoryFileSystem files;
  ASSERT_TRUE(write_store(files, "/store", one_part(Codec::zstd)));
  ASSERT_TRUE(files.make_directory("/store/part-00001"));
  expect_damage_named(files, "part-00001");
}

// Goal: what surrounds the data of a finished or running job is no damage.
TEST(VerifyStore, AcceptsLocksJournalsReportsAndScratch) {
  MemoryFileSystem files;
  ASSERT_TRUE(write_store(files, "/store", one_part(Codec::zstd)));
  for (const char* const name :
       {".lock", "report.json", "part-00000/.lock", "part-00000/.journal",
        "part-00000/zarr.json.partial-12ab", "scratch/librarian-0123/part-00000/state"}) {
    ASSERT_TRUE(make_directories(files, parent_path(kRoot + std::string(name))));
    ASSERT_TRUE(files.create(kRoot + std::string(name)));
  }
  EXPECT_EQ(verify_store(files, "/store", {})->state, StoreState::complete);
}

// Goal: exchanged shards are found, although each is whole in itself and even the CRC32C of the two
// files is the same (a file of pieces that end in their own CRC32C has one that says nothing).
TEST(VerifyStore, NamesTheArrayWhoseShardsWereExchanged) {
  StoreOptions options = one_part(Codec::none);
  options.sample_lengths = {16, 16};  // two shards of the same size
  options.part_tokens = 32;
  MemoryFileSystem files;
  ASSERT_TRUE(write_store(files, "/store", options));
  const std::string c = "/store/part-00000/blocks.0.resid_post/c";
  ASSERT_TRUE(files.rename(c + "/0/0", c + "/keep"));
  ASSERT_TRUE(files.rename(c + "/1/0", c + "/0/0"));
  ASSERT_TRUE(files.rename(c + "/keep", c + "/1/0"));
  expect_damage_named(files, "part-00000/blocks.0.resid_post");
}

// Goal: a manifest with right files and wrong claims about the rows is not believed.
// Method: the part's zarr.json is written anew, sealed, with one field of the record changed.
TEST(VerifyStore, ComparesRowsAndLayoutWithTheManifest) {
  const auto damaged_by = [](auto change) {
    MemoryFileSystem files;
    StoreOptions options = one_part(Codec::zstd);
    options.every_kind = true;
    EXPECT_TRUE(write_store(files, "/store", options));
    PartFile part = read_part_file(files, "/store/part-00000").value();
    change(part);
    EXPECT_TRUE(replace_file(files, "/store/part-00000/zarr.json", part_file_text(part)));
    return verify_store(files, "/store", {})->state == StoreState::damaged;
  };
  const auto named = [](PartFile& part, const char* name) {
    return std::find_if(part.arrays.begin(), part.arrays.end(),
                        [&](const ArrayRecord& record) { return record.name == name; });
  };
  const auto array = [&](PartFile& part) -> ArrayRecord& {
    return *named(part, "blocks.0.resid_post");
  };
  const auto tokens = [](PartFile& part) -> ArrayRecord& { return part.arrays.front(); };
  EXPECT_FALSE(damaged_by([&](PartFile& p) { p.verified = "sha256"; }));
  EXPECT_TRUE(damaged_by([&](PartFile& p) { array(p).rows_xxh3.low ^= 1U; }));
  EXPECT_TRUE(damaged_by([&](PartFile& p) { tokens(p).rows_xxh3.high ^= 1U; }));
  EXPECT_TRUE(damaged_by([&](PartFile& p) { ++array(p).nan_count; }));
  EXPECT_TRUE(damaged_by([&](PartFile& p) { ++array(p).inf_count; }));
  EXPECT_TRUE(damaged_by([&](PartFile& p) { ++array(p).raw_bytes; }));
  EXPECT_TRUE(damaged_by([&](PartFile& p) { ++array(p).stored_bytes; }));
  EXPECT_TRUE(damaged_by([&](PartFile& p) { ++array(p).shape[1]; }));
  EXPECT_TRUE(damaged_by([&](PartFile& p) { array(p).dtype = "float16"; }));
  EXPECT_TRUE(damaged_by([&](PartFile& p) { p.captures.push_back("blocks.9.resid_post"); }));
  EXPECT_TRUE(damaged_by([&](PartFile& p) { p.arrays.erase(named(p, "tokens/rows_loss")); }));
  EXPECT_TRUE(
      damaged_by([&](PartFile& p) { p.arrays.erase(named(p, "blocks.2.resid_post.scales")); }));
  EXPECT_TRUE(damaged_by([&](PartFile& p) { --named(p, "tokens/rows_loss")->shape[0]; }));
  EXPECT_TRUE(damaged_by([&](PartFile& p) { named(p, "logits.topk.logsumexp")->shape = {1, 1}; }));
  EXPECT_TRUE(damaged_by([&](PartFile& p) { p.groups["logits.topk"]["ids"] = "nowhere"; }));
  EXPECT_TRUE(damaged_by([&](PartFile& p) { p.groups.clear(); }));
  EXPECT_TRUE(damaged_by([&](PartFile& p) { ++p.range.tokens; }));
  EXPECT_TRUE(damaged_by([&](PartFile& p) { ++p.range.samples; }));
  EXPECT_TRUE(damaged_by([&](PartFile& p) { p.files.pop_back(); }));
}

TEST(VerifyStore, CallsAnUnfinishedStoreIncompleteAndNotDamaged) {
  MemoryFileSystem files;
  StoreOptions options;
  options.parts_to_write = 2;
  ASSERT_TRUE(write_store(files, "/store", options));
  auto report = verify_store(files, "/store", {});
  ASSERT_TRUE(report);
  EXPECT_EQ(report->state, StoreState::incomplete);
  EXPECT_EQ(report->parts_complete, 2U);
  EXPECT_EQ(report->parts_total, 3U);
  // A part that is being written: arrays and a journal, no zarr.json yet.
  ASSERT_TRUE(files.remove_file("/store/part-00001/zarr.json"));
  ASSERT_TRUE(files.create("/store/part-00001/.journal"));
  report = verify_store(files, "/store", {});
  EXPECT_EQ(report->state, StoreState::incomplete) << problems(*report);
  EXPECT_EQ(report->parts_complete, 1U);
  // Arrays that no journal explains.
  ASSERT_TRUE(files.remove_file("/store/part-00001/.journal"));
  expect_damage_named(files, "part-00001/blocks.0.resid_post");
}

TEST(VerifyStore, StopsWhenAskedAndRefusesWhatIsNoStore) {
  MemoryFileSystem files;
  ASSERT_TRUE(files.make_directory("/store"));
  EXPECT_EQ(verify_store(files, "/store", {}).error().code(), ErrorCode::not_found);
  EXPECT_EQ(verify_store(files, "/nowhere", {}).error().code(), ErrorCode::not_found);
  ASSERT_TRUE(write_store(files, "/store", StoreOptions{}));
  std::stop_source source;
  std::uint64_t seen = 0;
  const auto stopped = verify_store(files, "/store", source.get_token(), [&](std::uint64_t bytes) {
    EXPECT_GT(bytes, seen);
    seen = bytes;
    if (bytes > 2000) {
      source.request_stop();
    }
  });
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code(), ErrorCode::cancelled);
}

}  // namespace
}  // namespace librarian::activation_store
