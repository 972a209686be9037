// Goal: one holder at a time; a dead one's lock is free; a live one elsewhere is respected until it
// has been silent for two minutes; who lost its lock notices.
// Method: real files, whose times are set by hand; no test waits.
#include "ingest/directory_lock.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <ctime>

#include "base/json.h"

namespace librarian::ingest {
namespace {

class DirectoryLockTest : public ::testing::Test {
 protected:
  DirectoryLockTest() {
    std::string pattern = ::testing::TempDir() + "librarian-lock-XXXXXX";
    directory_ = ::mkdtemp(pattern.data());
    path_ = directory_ + "/.lock";
  }
  ~DirectoryLockTest() override {
    ::unlink(path_.c_str());
    ::rmdir(directory_.c_str());
  }

  DirectoryLock::Outcome try_lock() {
    auto outcome = DirectoryLock::try_acquire(posix_file_system(), real_clock(), directory_);
    EXPECT_TRUE(outcome) << outcome.error().message();
    return outcome ? *std::move(outcome) : DirectoryLock::Outcome{};
  }
  /// A lock file of another process, last renewed `seconds` ago.
  void plant(const Json& holder, std::time_t seconds) {
    ASSERT_TRUE(replace_file(posix_file_system(), path_, holder.dump()));
    const timespec then{std::time(nullptr) - seconds, 0};
    const timespec times[2] = {then, then};
    ASSERT_EQ(::utimensat(AT_FDCWD, path_.c_str(), times, 0), 0);
  }
  static Json holder(const char* host, const char* boot) {
    return {{"host", host},
            {"boot_id", boot},
            {"pid", 4711},
            {"start", "x"},
            {"nonce", "0123456789abcdef"}};
  }

  std::string directory_;
  std::string path_;
};

TEST_F(DirectoryLockTest, HasOneHolderAtATime) {
  const DirectoryLock::Outcome first = try_lock();
  ASSERT_TRUE(first.lock);
  EXPECT_TRUE(first.lock->check_still_held());
  const DirectoryLock::Outcome second = try_lock();
  EXPECT_FALSE(second.lock);
  EXPECT_NE(second.holder.find("process " + std::to_string(::getpid())), std::string::npos)
      << second.holder;
  EXPECT_TRUE(first.lock->check_still_held()) << "a failed try changes nothing";
}

TEST_F(DirectoryLockTest, IsFreeAfterItsHolderWithAndWithoutTheFile) {
  { ASSERT_TRUE(try_lock().lock); }
  struct stat info {};
  ASSERT_EQ(::stat(path_.c_str(), &info), 0) << "the file stays unless it is removed";
  {
    const DirectoryLock::Outcome again = try_lock();
    ASSERT_TRUE(again.lock) << "a dead holder of this boot";
    EXPECT_TRUE(again.lock->remove());
    EXPECT_NE(::stat(path_.c_str(), &info), 0);
    const DirectoryLock::Outcome after = try_lock();
    ASSERT_TRUE(after.lock) << "removed: the next one makes its own file";
    EXPECT_TRUE(after.lock->check_still_held());
    EXPECT_FALSE(again.lock->check_still_held());
  }
}

TEST_F(DirectoryLockTest, OfAnotherMachineOrBootIsRespectedForTwoMinutes) {
  for (const Json& other : {holder("elsewhere", "other-boot"), holder("elsewhere", "")}) {
    ASSERT_NO_FATAL_FAILURE(plant(other, 100));
    const DirectoryLock::Outcome fresh = try_lock();
    EXPECT_FALSE(fresh.lock) << "renewed 100 s ago";
    EXPECT_NE(fresh.holder.find("4711"), std::string::npos) << fresh.holder;
    EXPECT_NE(fresh.holder.find("elsewhere"), std::string::npos) << fresh.holder;
    ASSERT_NO_FATAL_FAILURE(plant(other, 130));
    EXPECT_TRUE(try_lock().lock) << "silent for 130 s";
  }
}

TEST_F(DirectoryLockTest, WithUnreadableContentIsTaken) {
  for (const char* text : {"", "{", "[]", R"({"host": "elsewhere"})", "\xFF\xFF"}) {
    ASSERT_TRUE(replace_file(posix_file_system(), path_, text));
    EXPECT_TRUE(try_lock().lock) << text;
  }
}

// Catches: a commit on the strength of a lock that somebody else holds.
TEST_F(DirectoryLockTest, ThatWasTakenOverIsNoticed) {
  const DirectoryLock::Outcome mine = try_lock();
  ASSERT_TRUE(mine.lock);
  ASSERT_NO_FATAL_FAILURE(plant(holder("elsewhere", "other-boot"), 0));
  const auto lost = mine.lock->check_still_held();
  ASSERT_FALSE(lost);
  EXPECT_EQ(lost.error().code(), ErrorCode::conflict);
  EXPECT_NE(lost.error().message().find("elsewhere"), std::string::npos) << lost.error().message();
  ASSERT_TRUE(posix_file_system().remove_file(path_));
  const auto gone = mine.lock->check_still_held();
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().code(), ErrorCode::conflict);
}

// Catches: an owner that lost its lock and on its way out removes the new owner's file, which
// would let a third process in.
TEST_F(DirectoryLockTest, OfANewOwnerIsNotRemovedByTheOldOne) {
  const DirectoryLock::Outcome mine = try_lock();
  ASSERT_TRUE(mine.lock);
  ASSERT_NO_FATAL_FAILURE(plant(holder("elsewhere", "other-boot"), 0));
  static_cast<void>(mine.lock->remove());
  struct stat info {};
  EXPECT_EQ(::stat(path_.c_str(), &info), 0) << "the new owner's lock file is gone";
}

TEST_F(DirectoryLockTest, EndsItsWaitWhenAStopIsRequested) {
  const DirectoryLock::Outcome first = try_lock();
  ASSERT_TRUE(first.lock);
  std::stop_source stop;
  stop.request_stop();
  const auto waited =
      DirectoryLock::acquire(posix_file_system(), real_clock(), directory_, stop.get_token());
  ASSERT_FALSE(waited);
  EXPECT_EQ(waited.error().code(), ErrorCode::cancelled);
}

TEST_F(DirectoryLockTest, IsNotTakenThroughALink) {
  const std::string target = directory_ + "/target";
  ASSERT_TRUE(replace_file(posix_file_system(), target, "precious"));
  ASSERT_EQ(::symlink(target.c_str(), path_.c_str()), 0);
  const auto outcome = DirectoryLock::try_acquire(posix_file_system(), real_clock(), directory_);
  EXPECT_FALSE(outcome);
  EXPECT_EQ(*read_small_file(posix_file_system(), target, 100), "precious");
  ::unlink(target.c_str());
}

}  // namespace
}  // namespace librarian::ingest
