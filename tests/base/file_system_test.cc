#include "base/file_system.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <vector>

#include "base/random.h"
#include "tests/support/memory_file_system.h"

namespace librarian {
namespace {

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

/// The same promises, asked of the real file system and of the double.
class FileSystemConformance : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (GetParam()) {
      root_ = std::filesystem::temp_directory_path() / ("librarian-fs-" + random_hex(12));
      std::filesystem::create_directory(root_);
      files_ = &posix_file_system();
    } else {
      files_ = &memory_;
      root_ = "/root";
      ASSERT_TRUE(memory_.make_directory("/root"));
    }
  }
  void TearDown() override {
    if (GetParam()) {
      std::filesystem::remove_all(root_);
    }
  }
  std::string path(const char* name) const { return root_ + "/" + name; }

  testing::MemoryFileSystem memory_;
  FileSystem* files_ = nullptr;
  std::string root_;
};

TEST_P(FileSystemConformance, CreatesOnceAppendsAndReadsBack) {
  auto file = files_->create(path("a"));
  ASSERT_TRUE(file) << file.error().message();
  ASSERT_TRUE((*file)->append(bytes_of("hello ")));
  ASSERT_TRUE((*file)->append(bytes_of("world")));
  ASSERT_TRUE((*file)->sync_data());
  EXPECT_EQ(files_->create(path("a")).error().code(), ErrorCode::already_exists);
  EXPECT_EQ(read_small_file(*files_, path("a"), 100).value(), "hello world");
  EXPECT_EQ(read_small_file(*files_, path("a"), 5).error().code(), ErrorCode::bad_input);
  EXPECT_EQ(files_->open(path("b")).error().code(), ErrorCode::not_found);
  std::string tail(10, '?');
  EXPECT_EQ((*file)->read_at(6, std::as_writable_bytes(std::span(tail))).value(), 5U);
  ASSERT_TRUE((*file)->truncate(5));
  EXPECT_EQ(files_->info(path("a"))->size, 5U);
}

TEST_P(FileSystemConformance, RenamesReplacesLinksAndRemoves) {
  ASSERT_TRUE(replace_file(*files_, path("x"), "1"));
  ASSERT_TRUE(replace_file(*files_, path("x"), "2"));
  EXPECT_EQ(read_small_file(*files_, path("x"), 9).value(), "2");
  ASSERT_TRUE(files_->link(path("x"), path("y")));
  EXPECT_EQ(files_->link(path("x"), path("y")).error().code(), ErrorCode::already_exists);
  EXPECT_EQ(files_->list(root_).value(), (std::vector<std::string>{"x", "y"}));
  ASSERT_TRUE(files_->remove_file(path("x")));
  ASSERT_TRUE(files_->remove_file(path("x")));
  EXPECT_EQ(files_->info(path("x")).error().code(), ErrorCode::not_found);
}

TEST_P(FileSystemConformance, MakesParentsAndToleratesExistingOnes) {
  ASSERT_TRUE(make_directories(*files_, path("p/q/r")));
  ASSERT_TRUE(make_directories(*files_, path("p/q/r")));
  EXPECT_EQ(files_->info(path("p/q/r"))->kind, FileKind::directory);
  ASSERT_TRUE(files_->remove_directory(path("p/q/r")));
  ASSERT_TRUE(replace_file(*files_, path("p/f"), ""));
  EXPECT_FALSE(make_directories(*files_, path("p/f")));
}

TEST_P(FileSystemConformance, ALockBelongsToOneOpenFile) {
  auto first = files_->open_append(path("lock"), true).value();
  auto second = files_->open_append(path("lock"), true).value();
  EXPECT_TRUE(first->try_lock().value());
  EXPECT_FALSE(second->try_lock().value());
  first.reset();
  EXPECT_TRUE(second->try_lock().value());
}

TEST_P(FileSystemConformance, ASharedLockBelongsToManyAndExcludesTheExclusiveOne) {
  auto first = files_->open_append(path("lock"), true).value();
  auto second = files_->open_append(path("lock"), true).value();
  auto third = files_->open_append(path("lock"), true).value();
  EXPECT_TRUE(first->try_lock_shared().value());
  EXPECT_TRUE(second->try_lock_shared().value());
  EXPECT_FALSE(third->try_lock().value());
  EXPECT_FALSE(first->try_lock().value());
  second.reset();
  // A refused exchange must not have cost the first its own lock.
  EXPECT_FALSE(third->try_lock().value());
  EXPECT_TRUE(first->try_lock().value());
  EXPECT_FALSE(third->try_lock_shared().value());
  EXPECT_TRUE(first->try_lock_shared().value());
  EXPECT_TRUE(third->try_lock_shared().value());
  third.reset();
  first.reset();
  EXPECT_TRUE(files_->open_append(path("lock"), false).value()->try_lock().value());
}

TEST_P(FileSystemConformance, ReservesRoomAndWritesInTheMiddleOfAnExistingFile) {
  {
    auto file = files_->create_sparse(path("big")).value();
    ASSERT_TRUE(file->reserve(10));
    EXPECT_EQ(file->size().value(), 10U);
    ASSERT_TRUE(file->reserve(4));
    EXPECT_EQ(file->size().value(), 10U) << "never shrinks";
  }
  EXPECT_EQ(files_->open_sparse(path("other")).error().code(), ErrorCode::not_found);
  auto file = files_->open_sparse(path("big")).value();
  ASSERT_TRUE(file->write_at(3, bytes_of("abc")));
  EXPECT_EQ(read_small_file(*files_, path("big"), 100).value(),
            std::string(3, '\0') + "abc" + std::string(4, '\0'));
}

TEST_P(FileSystemConformance, SaysWhatLiesOnOneDiskAndWhatWasTouchedLast) {
  auto older = files_->open_append(path("older"), true).value();
  auto newer = files_->open_append(path("newer"), true).value();
  ASSERT_TRUE(older->touch());
  ASSERT_TRUE(newer->touch());
  EXPECT_LE(files_->info(path("older"))->modified_ns, files_->info(path("newer"))->modified_ns);
  EXPECT_EQ(files_->info(path("older"))->device, files_->info(path("newer"))->device);
}

INSTANTIATE_TEST_SUITE_P(RealAndDouble, FileSystemConformance, ::testing::Bool(),
                         [](const auto& param) { return param.param ? "posix" : "memory"; });

TEST(PosixFileSystem, MakesPrivateDirectories) {
  const std::string root =
      std::filesystem::temp_directory_path() / ("librarian-fs-" + random_hex(12));
  ASSERT_TRUE(posix_file_system().make_private_directory(root));
  struct stat status {};
  ASSERT_EQ(::stat(root.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0700U);
  std::filesystem::remove_all(root);
}

TEST(PosixFileSystem, ReadsThroughALinkButNeverWritesThroughOne) {
  const std::string root =
      std::filesystem::temp_directory_path() / ("librarian-fs-" + random_hex(12));
  std::filesystem::create_directory(root);
  std::filesystem::create_symlink("/etc/hostname", root + "/link");
  EXPECT_TRUE(posix_file_system().open(root + "/link"));
  EXPECT_FALSE(posix_file_system().create(root + "/link"));
  EXPECT_FALSE(posix_file_system().open_append(root + "/link", true));
  EXPECT_EQ(posix_file_system().info(root + "/link")->kind, FileKind::other);
  EXPECT_EQ(posix_file_system().open(root).error().code(), ErrorCode::not_found);
  ASSERT_EQ(::mkfifo((root + "/pipe").c_str(), 0600), 0);
  EXPECT_EQ(posix_file_system().open(root + "/pipe").error().code(), ErrorCode::not_found);
  std::filesystem::remove_all(root);
}

// Goal: a map shows the bytes at any place, also after the file is closed and gone, and there are
// none that the file does not have, or has no more: touching those would end the program.
// Method: on a tmpfs, which has maps wherever these tests run.
TEST(PosixFileSystem, MapsBytesAtAnyPlaceAndNoneBehindTheEnd) {
  const std::string path = "/dev/shm/librarian-fs-" + random_hex(12);
  std::string text;
  for (unsigned i = 0; i < 20000; ++i) {
    text += static_cast<char>((i * 2654435761U) >> 13U);
  }
  auto file = posix_file_system().create(path);
  ASSERT_TRUE(file) << file.error().message();
  EXPECT_EQ((*file)->map(), nullptr) << "of an empty file";
  ASSERT_TRUE((*file)->append(bytes_of(text)));
  const std::shared_ptr<const FileMap> map = (*file)->map();
  ASSERT_NE(map, nullptr);
  EXPECT_FALSE(map->bytes(0, 20001));
  EXPECT_FALSE(map->bytes(20000, 1));
  EXPECT_FALSE(map->bytes(40960, 4096));
  EXPECT_FALSE(map->bytes(~std::uint64_t{0}, 2));
  ASSERT_TRUE((*file)->truncate(8192));
  EXPECT_FALSE(map->bytes(8192, 100));
  EXPECT_FALSE(map->bytes(8000, 300));
  ASSERT_TRUE(posix_file_system().remove_file(path));
  file->reset();
  const std::vector<std::pair<std::uint64_t, std::uint64_t>> places = {
      {0, 8192}, {1, 1}, {4095, 2}, {4096, 4096}, {8191, 1}};
  for (const auto& [offset, size] : places) {
    const auto wanted = bytes_of(text).subspan(offset, size);
    const auto got = map->bytes(offset, size);
    ASSERT_TRUE(got) << offset;
    EXPECT_TRUE(std::equal(got->begin(), got->end(), wanted.begin(), wanted.end())) << offset;
  }
}

// Goal: the double forgets exactly what a power cut may take, or crash tests prove nothing.
TEST(MemoryFileSystem, ForgetsWhatWasNotSynced) {
  testing::MemoryFileSystem files;
  auto kept = files.create("/kept").value();
  ASSERT_TRUE(kept->append(bytes_of("durable")));
  ASSERT_TRUE(kept->sync_data());
  ASSERT_TRUE(kept->append(bytes_of(" lost")));
  auto unnamed = files.create("/unnamed").value();
  ASSERT_TRUE(unnamed->append(bytes_of("synced data, unsynced name")));
  ASSERT_TRUE(unnamed->sync_data());
  files.restart(testing::Survival::durable_only);
  EXPECT_TRUE(files.snapshot().empty());

  auto again = files.create("/kept").value();
  ASSERT_TRUE(again->append(bytes_of("durable")));
  ASSERT_TRUE(again->sync_data());
  ASSERT_TRUE(files.sync_directory("/"));
  ASSERT_TRUE(again->append(bytes_of(" lost")));
  ASSERT_TRUE(files.rename("/kept", "/renamed"));
  files.restart(testing::Survival::durable_only);
  EXPECT_EQ(files.snapshot(), (std::map<std::string, std::string>{{"/kept", "durable"}}));
}

TEST(MemoryFileSystem, FailsEveryOperationFromTheCrashOn) {
  testing::MemoryFileSystem files;
  files.crash_at(2);
  ASSERT_TRUE(files.create("/one"));
  EXPECT_FALSE(files.create("/two"));
  EXPECT_FALSE(files.sync_directory("/"));
  files.restart(testing::Survival::everything);
  EXPECT_EQ(files.snapshot().size(), 1U);
  EXPECT_TRUE(files.create("/three"));
}

TEST(ParentPath, HandlesTheOddOnes) {
  EXPECT_EQ(parent_path("a/b"), "a");
  EXPECT_EQ(parent_path("a/b/"), "a");
  EXPECT_EQ(parent_path("/a"), "/");
  EXPECT_EQ(parent_path("/"), "/");
  EXPECT_EQ(parent_path("a"), ".");
}

}  // namespace
}  // namespace librarian
