#include "base/journal.h"

#include <gtest/gtest.h>

#include "tests/support/memory_file_system.h"

namespace librarian {
namespace {

using testing::MemoryFileSystem;
using testing::Survival;

constexpr const char* kPath = "/journal";

std::string contents_of(MemoryFileSystem& files) { return files.snapshot()[kPath]; }

void overwrite(MemoryFileSystem& files, const std::string& text) {
  ASSERT_TRUE(replace_file(files, kPath, text));
}

class JournalTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto writer = JournalWriter::create(files_, kPath, {"zero", ""});
    ASSERT_TRUE(writer);
    ASSERT_TRUE(writer->append("two"));
    ASSERT_TRUE(writer->append(std::string(1000, 'x')));
  }
  MemoryFileSystem files_;
};

TEST_F(JournalTest, GivesBackWhatWasAppended) {
  const auto read = read_journal(files_, kPath);
  ASSERT_TRUE(read);
  EXPECT_EQ(read->records, (std::vector<std::string>{"zero", "", "two", std::string(1000, 'x')}));
  EXPECT_EQ(read->torn_bytes, 0U);
}

// Goal: a crash during the last append costs that record and nothing else.
// Method: cut the file at every byte; what is whole must stay and nothing may be invented.
TEST_F(JournalTest, KeepsTheWholeRecordsOfAFileCutAnywhere) {
  const std::string text = contents_of(files_);
  const auto all = read_journal(files_, kPath)->records;
  std::size_t last_count = 0;
  for (std::size_t size = 0; size <= text.size(); ++size) {
    overwrite(files_, text.substr(0, size));
    const auto read = read_journal(files_, kPath);
    ASSERT_TRUE(read) << size;
    ASSERT_LE(read->records.size(), all.size());
    EXPECT_TRUE(std::equal(read->records.begin(), read->records.end(), all.begin()));
    EXPECT_GE(read->records.size(), last_count);
    last_count = read->records.size();
  }
  EXPECT_EQ(last_count, all.size());
}

// Goal: damage in the middle is never mistaken for a torn tail, which would drop finished work.
TEST_F(JournalTest, RefusesEveryFlippedByteBeforeTheLastRecord) {
  const std::string text = contents_of(files_);
  const std::size_t last_frame = text.size() - (20 + 1000 + 4);
  for (std::size_t at = 0; at < text.size(); ++at) {
    std::string damaged = text;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    overwrite(files_, damaged);
    const auto read = read_journal(files_, kPath);
    if (at < last_frame) {
      ASSERT_FALSE(read) << at;
      EXPECT_EQ(read.error().code(), ErrorCode::corrupt);
    } else {
      ASSERT_TRUE(read) << at;
      EXPECT_EQ(read->records.size(), 3U);
      EXPECT_GT(read->torn_bytes, 0U);
    }
  }
}

TEST_F(JournalTest, AnAppendedRecordSurvivesAPowerCut) {
  files_.restart(Survival::durable_only);
  EXPECT_EQ(read_journal(files_, kPath)->records.size(), 4U);
}

// Goal: taking a journal over leaves the old or the new one, whenever the machine dies.
TEST_F(JournalTest, ReplacingIsAllOrNothing) {
  for (std::uint64_t operation = 1; operation <= 6; ++operation) {
    MemoryFileSystem files;
    ASSERT_TRUE(JournalWriter::create(files, kPath, {"old"}));
    files.crash_at(files.operations() + operation);
    static_cast<void>(JournalWriter::create(files, kPath, {"new", "newer"}));
    files.restart(Survival::durable_only);
    const auto read = read_journal(files, kPath);
    ASSERT_TRUE(read);
    EXPECT_TRUE(read->records == std::vector<std::string>{"old"} ||
                read->records == (std::vector<std::string>{"new", "newer"}));
  }
}

}  // namespace
}  // namespace librarian
