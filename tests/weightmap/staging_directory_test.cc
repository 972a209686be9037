// Goal: many users of one directory never take each other's files, never exceed its limit, and find
// what another has brought.
// Method: several StagingDirectory objects on one file system in memory, each as a process would
// have one; objects are made complete by hand.
#include "weightmap/remote/staging_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/digest.h"
#include "base/journal.h"
#include "base/random.h"
#include "tests/weightmap/staging_files.h"

namespace librarian::weightmap::remote {
namespace {

using librarian::testing::MemoryFileSystem;
using testing::kStagingPath;
using testing::open_staging;
using State = StagingDirectory::State;

constexpr std::uint64_t kSegment = 100;

std::string key(int number) { return "stream-" + xxh3_128(std::to_string(number)).hex(); }

std::uint64_t room_for(std::uint64_t objects, std::uint64_t bytes) {
  return objects * staging_footprint_bytes(bytes, kSegment);
}

/// Takes an object that is not there and makes it complete; its hold, shared.
StagingHold bring(FileSystem& files, StagingDirectory& directory, int number, std::uint64_t bytes) {
  auto taken = directory.take(key(number), bytes, {}, {});
  LIB_CHECK(taken && taken->state == State::staging);
  auto journal = JournalWriter::create(files, taken->hold->journal_path(),
                                       {staging_header_record(bytes, kSegment)});
  LIB_CHECK(journal && journal->append(staging_complete_record(std::string(64, 'a'))));
  LIB_CHECK(directory.completed(*taken->hold, {}).has_value());
  return *std::move(taken->hold);
}

State state_of(StagingDirectory& directory, int number, std::uint64_t bytes,
               const std::set<std::string>& keep = {}) {
  auto taken = directory.take(key(number), bytes, keep, {});
  LIB_CHECK(taken.has_value());
  return taken->state;
}

TEST(StagingKey, IsTheHashOrWhatIdentifiesTheBytes) {
  const Uri uri = parse_uri("https://host.test/m/a.safetensors").value();
  const ObjectInfo plain{10, "\"v1\"", true, ""};
  const std::string one = staging_key(uri, plain);
  EXPECT_EQ(one, staging_key(uri, plain));
  EXPECT_EQ(one.size(), 39U);
  EXPECT_NE(one, staging_key(parse_uri("https://host.test/m/b.safetensors").value(), plain));
  EXPECT_NE(one, staging_key(uri, {11, "\"v1\"", true, ""}));
  EXPECT_NE(one, staging_key(uri, {10, "\"v2\"", true, ""}));
  const ObjectInfo hashed{10, "\"v1\"", true, std::string(64, 'c')};
  EXPECT_EQ(staging_key(uri, hashed), "sha256-" + std::string(64, 'c'));
  const ObjectInfo nameless{10, "", false, ""};
  EXPECT_NE(staging_key(uri, nameless), staging_key(uri, nameless)) << "nobody can know it again";
}

TEST(StagingDirectory, OneStagesOthersWaitThenShare) {
  MemoryFileSystem files;
  const auto one = open_staging(files, room_for(2, 250), kSegment);
  const auto two = open_staging(files, room_for(2, 250), kSegment);
  {
    const auto taken = one->take(key(1), 250, {}, {});
    ASSERT_EQ(taken->state, State::staging);
    EXPECT_EQ(state_of(*two, 1, 250), State::busy);
    EXPECT_EQ(state_of(*one, 1, 250), State::busy);
  }
  EXPECT_EQ(state_of(*two, 1, 250), State::staging) << "its owner died: another goes on";
  const StagingHold hold = bring(files, *one, 1, 250);
  EXPECT_EQ(state_of(*two, 1, 250), State::complete);
  EXPECT_EQ(state_of(*one, 1, 250), State::complete);
  EXPECT_EQ(state_of(*two, 1, 251), State::busy) << "held, and not that object";
}

TEST(StagingDirectory, WhatIsThereWithoutAWholeJournalIsNotComplete) {
  for (const char* damage : {"none", "journal", "size"}) {
    MemoryFileSystem files;
    const auto directory = open_staging(files, room_for(2, 250), kSegment);
    const std::string journal = bring(files, *directory, 1, 250).journal_path();
    if (std::string(damage) == "journal") {
      // Inside the first record, with a whole one behind it.
      files.corrupt(journal, 30, std::byte{1});
    }
    const std::uint64_t bytes = std::string(damage) == "size" ? 240 : 250;
    EXPECT_EQ(state_of(*directory, 1, bytes),
              std::string(damage) == "none" ? State::complete : State::staging)
        << damage;
  }
}

TEST(StagingDirectory, MakesRoomByLeastRecentUseAndNeverFromWhatIsHeldOrKept) {
  MemoryFileSystem files;
  const auto one = open_staging(files, room_for(3, 250), kSegment);
  const auto two = open_staging(files, room_for(3, 250), kSegment);
  for (const int number : {1, 2, 3}) {
    bring(files, *one, number, 250);
  }
  EXPECT_EQ(state_of(*one, 1, 250), State::complete);  // 2 is now the one used least recently.
  const StagingHold fourth = bring(files, *two, 4, 250);
  EXPECT_EQ(state_of(*one, 1, 250), State::complete);
  EXPECT_EQ(state_of(*one, 3, 250), State::complete);
  EXPECT_FALSE(files.info(fourth.data_path().substr(0, fourth.data_path().rfind('/') + 1) + key(2) +
                          ".weights"));

  const auto first = one->take(key(1), 250, {}, {});
  ASSERT_EQ(first->state, State::complete);
  EXPECT_EQ(state_of(*two, 5, 250, {key(3)}), State::no_room) << "1 and 4 are held, 3 is kept";
  EXPECT_EQ(state_of(*two, 1, 250), State::complete) << "nothing went for nothing";
  EXPECT_EQ(state_of(*two, 4, 250), State::complete);
  EXPECT_EQ(state_of(*two, 5, 250), State::staging);
  EXPECT_LE(one->used_bytes().value(), room_for(3, 250));
  EXPECT_EQ(state_of(*two, 6, 4000), State::no_room) << "it would never fit";
}

TEST(StagingDirectory, RemovesOnlyWhatNobodyElseHolds) {
  MemoryFileSystem files;
  const auto one = open_staging(files, room_for(4, 250), kSegment);
  const auto two = open_staging(files, room_for(4, 250), kSegment);
  StagingHold ours = bring(files, *one, 1, 250);
  auto theirs = two->take(key(1), 250, {}, {});
  EXPECT_FALSE(one->remove(std::move(ours), {}).value());
  EXPECT_FALSE(one->remove_idle(key(1), {}).value());
  ASSERT_TRUE(one->clear({}));
  EXPECT_EQ(state_of(*one, 1, 250), State::complete) << "it is still theirs";
  EXPECT_TRUE(two->remove(*std::move(theirs->hold), {}).value());
  EXPECT_EQ(one->used_bytes().value(), 0U);
  bring(files, *one, 2, 250);
  EXPECT_TRUE(two->remove_idle(key(2), {}).value());
  EXPECT_FALSE(two->remove_idle(key(2), {}).value());
}

TEST(StagingDirectory, LeavesTheFilesOfStrangersAlone) {
  MemoryFileSystem files;
  const auto directory = open_staging(files, room_for(1, 250), kSegment);
  const std::string path = std::string(kStagingPath) + "/";
  const std::vector<std::string> strangers = {"model.safetensors", "stream-12.weights",
                                              "sha256-" + std::string(64, 'g') + ".weights",
                                              key(1) + ".weights.bak", "lock.partial-0a"};
  for (const std::string& name : strangers) {
    ASSERT_TRUE(replace_file(files, path + name, std::string(5000, 'x')));
  }
  bring(files, *directory, 1, 250);
  bring(files, *directory, 2, 250);
  ASSERT_TRUE(directory->clear({}));
  std::vector<std::string> left = files.list(kStagingPath).value();
  EXPECT_THAT(left, ::testing::UnorderedElementsAreArray([&] {
                std::vector<std::string> names = strangers;
                names.emplace_back("lock");
                return names;
              }()));
  for (const std::string& name : strangers) {
    ASSERT_TRUE(files.remove_file(path + name));
  }
  ASSERT_TRUE(directory->clear({}));
  EXPECT_FALSE(files.info(kStagingPath)) << "empty, so it goes, too";
}

TEST(StagingDirectory, AFullDiskIsSaidAndLeavesNothingBehind) {
  MemoryFileSystem files;
  const auto directory = open_staging(files, room_for(4, 5000), kSegment);
  files.set_free_bytes(1000);
  const auto taken = directory->take(key(1), 5000, {}, {});
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().code(), ErrorCode::no_space);
  EXPECT_EQ(directory->used_bytes().value(), 0U);
  EXPECT_EQ(state_of(*directory, 2, 500), State::staging);
}

TEST(StagingDirectory, OnARealDiskIsPrivateAndLocksBetweenOpenFiles) {
  FileSystem& files = posix_file_system();
  const std::string root =
      std::filesystem::temp_directory_path() / ("librarian-staging-" + random_hex(12));
  const StagingDirectory::Options options{root + "/weights", room_for(1, 250), kSegment};
  auto one = StagingDirectory::open(files, real_clock(), options).value();
  auto two = StagingDirectory::open(files, real_clock(), options).value();
  EXPECT_EQ(std::filesystem::status(root + "/weights").permissions(),
            std::filesystem::perms::owner_all);
  {
    const StagingHold hold = bring(files, *one, 1, 250);
    EXPECT_EQ(state_of(*two, 1, 250), State::complete);
    EXPECT_EQ(state_of(*two, 2, 250), State::no_room);
  }
  bring(files, *two, 2, 250);
  EXPECT_FALSE(files.info(root + "/weights/" + key(1) + ".weights"));
  ASSERT_TRUE(two->clear({}));
  EXPECT_FALSE(files.info(root + "/weights"));
  std::filesystem::remove_all(root);
}

}  // namespace
}  // namespace librarian::weightmap::remote
