#include "weightmap/remote/file_transport.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "loopback_server.h"
#include "tests/support/fake_clock.h"
#include "weightmap/remote/fetcher.h"

namespace librarian::weightmap::remote {
namespace {

class FileTransportTest : public ::testing::Test {
 protected:
  FileTransportTest() {
    std::string made = std::filesystem::temp_directory_path() / "librarian-test-XXXXXX";
    LIB_CHECK(::mkdtemp(made.data()) != nullptr);
    directory_ = made;
    write(object_);
  }
  ~FileTransportTest() override { std::filesystem::remove_all(directory_); }

  void write(const std::string& text) { std::ofstream(path()) << text; }
  std::filesystem::path path() const { return directory_ / "object"; }
  Uri uri(const std::string& name = "object") const { return *parse_uri(directory_ / name); }
  Result<void> fetch(ObjectId id, ByteRange range) {
    buffer_.assign(range.size(), '#');
    return fetcher_.fetch({id, {{range, reinterpret_cast<std::byte*>(buffer_.data())}}}, {});
  }

  std::filesystem::path directory_;
  const std::string object_ = testing::test_object(1000);
  std::string buffer_;
  // On the fake clock: local reads cost no virtual time, and nothing but the clock may be waited
  // on.
  librarian::testing::FakeClock clock_;
  Activity running_{clock_};
  FileTransport transport_{clock_, 2};
  Fetcher fetcher_{transport_, clock_, {}};
};

// Goal: a file that is changed, replaced or cut while the job runs is never read as the old one.
TEST_F(FileTransportTest, AChangedFileIsSourceChanged) {
  const auto opened = fetcher_.open(uri(), 10, {});
  ASSERT_TRUE(opened) << opened.error().message();
  ASSERT_TRUE(fetch(opened->id, {0, 1000}));
  EXPECT_EQ(buffer_, object_);

  std::filesystem::resize_file(path(), 900);
  EXPECT_EQ(fetch(opened->id, {0, 100}).error().code(), ErrorCode::source_changed);

  // Same size, other time of change; set far away so that the clock's grain does not matter.
  write(object_);
  const auto again = fetcher_.open(uri(), 10, {});
  ASSERT_TRUE(again);
  const timespec times[2] = {{1, 0}, {1, 0}};
  ASSERT_EQ(::utimensat(AT_FDCWD, path().c_str(), times, 0), 0);
  EXPECT_EQ(fetch(again->id, {0, 100}).error().code(), ErrorCode::source_changed);

  // Same size and time, another file.
  const auto third = fetcher_.open(uri(), 10, {});
  ASSERT_TRUE(third);
  std::ofstream(directory_ / "new") << object_;
  ASSERT_EQ(::utimensat(AT_FDCWD, (directory_ / "new").c_str(), times, 0), 0);
  std::filesystem::rename(directory_ / "new", path());
  EXPECT_EQ(fetch(third->id, {0, 100}).error().code(), ErrorCode::source_changed);
  EXPECT_EQ(buffer_, std::string(100, '#'));
  EXPECT_EQ(clock_.now(), Duration{});  // None of it was retried.
}

TEST_F(FileTransportTest, OpeningWithKnowledgeRefusesAnotherFile) {
  const auto opened = fetcher_.open(uri(), 10, {});
  ASSERT_TRUE(opened);
  EXPECT_TRUE(fetcher_.open(uri(), 10, opened->info, {}));
  ObjectInfo other = opened->info;
  other.validator += "0";
  EXPECT_EQ(fetcher_.open(uri(), 10, other, {}).error().code(), ErrorCode::source_changed);
}

// Goal: the links of a model hub's cache work like the files they name.
TEST_F(FileTransportTest, FollowsLinks) {
  std::filesystem::create_symlink("object", directory_ / "link");
  const auto opened = fetcher_.open(uri("link"), 2000, {});
  ASSERT_TRUE(opened) << opened.error().message();
  EXPECT_EQ(opened->head, object_);
}

// Goal: what is no file is refused at once; a FIFO without a writer must not hang the job.
TEST_F(FileTransportTest, RefusesWhatIsNoFile) {
  EXPECT_EQ(fetcher_.open(*parse_uri(directory_), 10, {}).error().code(), ErrorCode::bad_input);
  ASSERT_EQ(::mkfifo((directory_ / "fifo").c_str(), 0600), 0);
  EXPECT_EQ(fetcher_.open(uri("fifo"), 10, {}).error().code(), ErrorCode::bad_input);
  std::ofstream(directory_ / "empty");
  EXPECT_EQ(fetcher_.open(uri("empty"), 10, {}).error().code(), ErrorCode::bad_input);
  EXPECT_EQ(fetcher_.open(uri("object/x"), 10, {}).error().code(), ErrorCode::not_found);
  std::filesystem::create_symlink("loop", directory_ / "loop");
  EXPECT_EQ(fetcher_.open(uri("loop"), 10, {}).error().code(), ErrorCode::bad_input);
}

// Goal: holes cost nothing on a disk. Method: count the bytes read.
TEST_F(FileTransportTest, DoesNotReadHoles) {
  const auto opened = fetcher_.open(uri(), 10, {});
  ASSERT_TRUE(opened);
  std::string buffer(20, '#');
  auto* bytes = reinterpret_cast<std::byte*>(buffer.data());
  ASSERT_TRUE(fetcher_.fetch({opened->id, {{{0, 10}, bytes}, {{990, 1000}, bytes + 10}}}, {}));
  EXPECT_EQ(buffer, object_.substr(0, 10) + object_.substr(990));
  EXPECT_EQ(fetcher_.statistics().body_bytes, 30U);
}

}  // namespace
}  // namespace librarian::weightmap::remote
