// Goal: a whole object comes to the disk with exactly its bytes, its hash is taken from what lies
// there, and whatever interrupts, what was made durable is not fetched again.
// Method: an object served from memory, a file system in memory that crashes, fills up or rots.
#include "weightmap/remote/file_staging.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <span>
#include <thread>

#include "base/digest.h"
#include "tests/weightmap/staging_files.h"

namespace librarian::weightmap::remote {
namespace {

using librarian::testing::MemoryFileSystem;
using librarian::testing::Survival;
using testing::open_staging;
using testing::RemoteObject;
using State = StagingDirectory::State;

constexpr std::uint64_t kLimit = 1U << 20U;

FileStagingOptions small(std::uint64_t segment_bytes, std::uint32_t slabs = 3,
                         std::uint32_t segments_per_sync = 2) {
  FileStagingOptions options;
  options.segment_bytes = segment_bytes;
  options.slabs = slabs;
  options.segments_per_sync = segments_per_sync;
  return options;
}

ObjectInfo nothing_stated(std::uint64_t size) { return {size, "\"v1\"", true}; }

Result<StagedObject> stage(RemoteObject& object, FileSystem& files, StagingDirectory& directory,
                           const FileStagingOptions& options, const ObjectInfo& stated) {
  LIB_TRY(auto taken, directory.take(object.key, object.info.size, {}, {}));
  LIB_CHECK(taken.state == State::staging);
  FileStaging staging(object.fetcher, files, real_clock(), options);
  return staging.stage(object.id, stated, *taken.hold, {});
}

std::string staged_bytes(MemoryFileSystem& files, const RemoteObject& object) {
  return files.snapshot()[std::string(testing::kStagingPath) + "/" + object.key + ".weights"];
}

/// Bytes of segments that the journal names.
std::uint64_t journalled_bytes(FileSystem& files, const RemoteObject& object,
                               std::uint64_t segment_bytes) {
  const std::string path = std::string(testing::kStagingPath) + "/" + object.key + ".journal";
  const auto journal = read_staging_journal(files, path, object.info.size, segment_bytes);
  LIB_CHECK(journal.has_value());
  std::uint64_t bytes = 0;
  for (std::uint64_t i = 0; *journal && i < (*journal)->segment_crcs.size(); ++i) {
    bytes += (*journal)->segment_crcs[i]
                 ? std::min(segment_bytes, object.info.size - i * segment_bytes)
                 : 0;
  }
  return bytes;
}

TEST(FileStaging, BringsEveryByteForEverySizeAndTakesTheHash) {
  for (const std::uint64_t size : {1U, 99U, 100U, 101U, 1000U, 1234U}) {
    for (const std::uint32_t slabs : {1U, 2U, 7U}) {
      for (const std::uint32_t per_sync : {1U, 3U, 50U}) {
        SCOPED_TRACE(std::to_string(size) + " " + std::to_string(slabs));
        RemoteObject object(size);
        MemoryFileSystem files;
        const auto directory = open_staging(files, kLimit, 100);
        const auto staged =
            stage(object, files, *directory, small(100, slabs, per_sync), object.info);
        ASSERT_TRUE(staged) << staged.error().message();
        EXPECT_TRUE(staged->matches);
        EXPECT_EQ(staged->sha256, sha256_hex(object.bytes()));
        EXPECT_EQ(staged_bytes(files, object), object.bytes());
        EXPECT_EQ(object.served_bytes(), size) << "each byte once";
        const auto again = directory->take(object.key, size, {}, {});
        ASSERT_EQ(again->state, State::complete);
        FileStaging staging(object.fetcher, files, real_clock(), small(100));
        EXPECT_TRUE(staging.check(*again->hold, {})->matches);
        EXPECT_EQ(staging.hash(object.id, nothing_stated(size), {})->sha256,
                  sha256_hex(object.bytes()));
      }
    }
  }
}

// Catches: a journal that is ahead of its data, a resume that trusts what is not there or fetches
// what is, a completion that a crash makes half true.
TEST(FileStaging, ACrashAtAnyOperationCostsOnlyWhatWasNotDurable) {
  constexpr std::uint64_t kSize = 1950;
  std::uint64_t operations = 0;
  {
    RemoteObject object(kSize);
    MemoryFileSystem files;
    ASSERT_TRUE(stage(object, files, *open_staging(files, kLimit, 100), small(100),
                      nothing_stated(object.info.size)));
    operations = files.operations();
  }
  ASSERT_GT(operations, 30U);
  std::uint64_t resumed_with_something = 0;
  for (std::uint64_t operation = 1; operation <= operations; ++operation) {
    for (const Survival survival : {Survival::durable_only, Survival::torn, Survival::everything}) {
      SCOPED_TRACE(std::to_string(operation) + " survival " +
                   std::to_string(static_cast<int>(survival)));
      RemoteObject object(kSize);
      MemoryFileSystem files;
      files.crash_at(operation);
      {
        auto directory =
            StagingDirectory::open(files, real_clock(), {testing::kStagingPath, kLimit, 100});
        if (directory) {
          static_cast<void>(stage(object, files, **directory, small(100), object.info));
        }
      }
      files.restart(survival);
      const auto directory = open_staging(files, kLimit, 100);
      const std::uint64_t durable = journalled_bytes(files, object, 100);
      const std::uint64_t before = object.served_bytes();
      auto taken = directory->take(object.key, kSize, {}, {});
      ASSERT_TRUE(taken) << taken.error().message();
      if (taken->state == State::staging) {
        FileStaging staging(object.fetcher, files, real_clock(), small(100));
        const auto staged = staging.stage(object.id, object.info, *taken->hold, {});
        ASSERT_TRUE(staged) << staged.error().message();
        EXPECT_TRUE(staged->matches);
        ASSERT_EQ(object.served_bytes() - before, kSize - durable);
        resumed_with_something += durable > 0 ? 1 : 0;
      } else {
        ASSERT_EQ(taken->state, State::complete);
        EXPECT_EQ(durable, kSize);
      }
      ASSERT_EQ(staged_bytes(files, object), object.bytes());
    }
  }
  // How many segments share a journal entry is for the threads to say.
  EXPECT_GT(resumed_with_something, operations / 2);
}

TEST(FileStaging, AJournalledSegmentThatRottedIsFetchedAgainAlone) {
  RemoteObject object(1000);
  MemoryFileSystem files;
  const auto directory = open_staging(files, kLimit, 100);
  object.transport.fail_after(650);
  EXPECT_FALSE(stage(object, files, *directory, small(100, 1, 1), object.info));
  ASSERT_EQ(journalled_bytes(files, object, 100), 600U);
  files.corrupt(std::string(testing::kStagingPath) + "/" + object.key + ".weights", 250,
                std::byte{4});
  object.transport.fail_after(~std::uint64_t{0});
  const std::uint64_t before = object.served_bytes();
  const auto staged = stage(object, files, *directory, small(100), object.info);
  ASSERT_TRUE(staged) << staged.error().message();
  EXPECT_TRUE(staged->matches);
  EXPECT_EQ(staged_bytes(files, object), object.bytes());
  EXPECT_EQ(object.served_bytes() - before, 400U + 100U);
}

TEST(FileStaging, AFlippedBitCostsOneMoreFetchAndAnOriginThatInsistsIsCaught) {
  for (const int times : {0, 1, 2}) {
    RemoteObject object(1000);
    MemoryFileSystem files;
    const auto directory = open_staging(files, kLimit, 100);
    object.transport.flip("object", 555, times);
    const auto staged = stage(object, files, *directory, small(100), object.info);
    ASSERT_TRUE(staged) << staged.error().message();
    EXPECT_EQ(staged->matches, times < 2);
    EXPECT_EQ(object.served_bytes(), times == 0 ? 1000U : 2000U);
    EXPECT_EQ(directory->take(object.key, 1000, {}, {})->state,
              times < 2 ? State::complete : State::staging);
    // The same through memory alone.
    object.transport.flip("object", 555, times);
    FileStaging staging(object.fetcher, files, real_clock(), small(100));
    EXPECT_EQ(staging.hash(object.id, object.info, {})->matches, times < 2);
  }
}

// Goal: the CRCs that S3 states are as good as a hash at finding what a network did.
TEST(FileStaging, AFlippedBitShowsInAStatedCrc) {
  for (const bool crc64 : {true, false}) {
    for (const int times : {0, 1, 2}) {
      RemoteObject object(1000);
      MemoryFileSystem files;
      const auto directory = open_staging(files, kLimit, 100);
      const auto bytes = std::as_bytes(std::span(object.bytes()));
      std::array<char, 32> crc{};
      if (crc64) {
        std::snprintf(crc.data(), crc.size(), "crc64nvme:%016lx", crc64_nvme(bytes));
      } else {
        std::snprintf(crc.data(), crc.size(), "crc32c:%08x", crc32c(bytes));
      }
      ObjectInfo stated = nothing_stated(1000);
      stated.crc = crc.data();
      object.transport.flip("object", 555, times);
      const auto staged = stage(object, files, *directory, small(100), stated);
      ASSERT_TRUE(staged) << staged.error().message();
      EXPECT_EQ(staged->matches, times < 2) << stated.crc;
    }
  }
}

TEST(FileStaging, ACompleteFileThatRottedIsNoticed) {
  RemoteObject object(1000);
  MemoryFileSystem files;
  const auto directory = open_staging(files, kLimit, 100);
  ASSERT_TRUE(stage(object, files, *directory, small(100), nothing_stated(1000)));
  files.corrupt(std::string(testing::kStagingPath) + "/" + object.key + ".weights", 999,
                std::byte{1});
  const auto taken = directory->take(object.key, 1000, {}, {});
  ASSERT_EQ(taken->state, State::complete);
  FileStaging staging(object.fetcher, files, real_clock(), small(100));
  EXPECT_FALSE(staging.check(*taken->hold, {})->matches);
}

/// Memory that changes: a byte of the object, `times` times, after it was copied to its place.
class ForgetfulTransport final : public Transport {
 public:
  ForgetfulTransport(ingest::testing::MapTransport& inner, std::uint64_t offset, int times)
      : inner_(inner), offset_(offset), times_(times) {}
  void start(TransferRequest request, std::function<void(TransferResult)> done) override {
    TransferResult result = inner_.answer(request);
    for (const FetchPiece& piece : request.pieces) {
      if (piece.range.begin <= offset_ && offset_ < piece.range.end && times_.fetch_sub(1) > 0) {
        piece.destination[offset_ - piece.range.begin] ^= std::byte{4};
      }
    }
    done(std::move(result));
  }

 private:
  ingest::testing::MapTransport& inner_;
  const std::uint64_t offset_;
  std::atomic<int> times_;
};

// Goal: what changes in memory between arrival and writing is neither kept nor hashed, also where
// the origin states no hash that would tell.
TEST(FileStaging, AByteThatChangedBeforeItWasWrittenIsFetchedAgainOnce) {
  for (const int times : {1, 2}) {
    RemoteObject object(1000);
    ForgetfulTransport transport(object.transport, 437, times);
    Fetcher fetcher(transport, real_clock(), RemoteObject::options(4));
    const ObjectId id =
        fetcher.open(parse_uri(std::string(ingest::testing::kModelUri) + "object").value(), 1, {})
            ->id;
    MemoryFileSystem files;
    const auto directory = open_staging(files, kLimit, 100);
    const auto taken = directory->take(object.key, 1000, {}, {});
    FileStaging staging(fetcher, files, real_clock(), small(100));
    const auto staged = staging.stage(id, nothing_stated(1000), *taken->hold, {});
    ASSERT_EQ(staged.has_value(), times == 1);
    if (staged) {
      EXPECT_EQ(staged->sha256, sha256_hex(object.bytes()));
      EXPECT_EQ(staged_bytes(files, object), object.bytes());
    } else {
      EXPECT_NE(staged.error().message().find("bytes 400 to 500"), std::string::npos)
          << staged.error().message();
    }
  }
}

/// Answers nothing until it is told to, or the request is stopped.
class HoldingTransport final : public Transport {
 public:
  explicit HoldingTransport(ingest::testing::MapTransport& inner) : inner_(inner) {}
  void start(TransferRequest request, std::function<void(TransferResult)> done) override {
    const std::lock_guard<std::mutex> guard(mutex_);
    if (!holding_) {
      done(inner_.answer(request));
      return;
    }
    in_flight_bytes_ += request.range.size();
    changed_.notify_all();
    const std::stop_token stop = request.stop;
    held_.push_back(std::make_unique<Watch>(stop, [done = std::move(done)] {
      TransferResult result;
      result.error = Error(ErrorCode::cancelled, "stopped");
      done(result);
    }));
  }
  void hold() { holding_ = true; }
  void wait_for_bytes(std::uint64_t bytes) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return in_flight_bytes_ >= bytes; });
  }
  std::uint64_t in_flight_bytes() {
    const std::lock_guard<std::mutex> guard(mutex_);
    return in_flight_bytes_;
  }

 private:
  using Watch = std::stop_callback<std::function<void()>>;
  ingest::testing::MapTransport& inner_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<bool> holding_{false};
  std::uint64_t in_flight_bytes_ = 0;
  std::vector<std::unique_ptr<Watch>> held_;
};

// Catches: requests without memory behind them; a stop that hangs on requests in flight.
TEST(FileStaging, AsksForNoMoreThanItHasMemoryForAndStopsAtOnce) {
  RemoteObject object(5000);
  HoldingTransport transport(object.transport);
  Fetcher fetcher(transport, real_clock(), RemoteObject::options(16));
  const ObjectId id =
      fetcher.open(parse_uri(std::string(ingest::testing::kModelUri) + "object").value(), 1, {})
          ->id;
  transport.hold();
  MemoryFileSystem files;
  const auto directory = open_staging(files, kLimit, 100);
  const auto taken = directory->take(object.key, 5000, {}, {});
  FileStaging staging(fetcher, files, real_clock(), small(100, 3));
  std::stop_source stop;
  std::uint64_t in_flight = 0;
  std::jthread stopper([&] {
    transport.wait_for_bytes(300);
    in_flight = transport.in_flight_bytes();
    stop.request_stop();
  });
  const auto staged = staging.stage(id, nothing_stated(5000), *taken->hold, stop.get_token());
  stopper.join();
  ASSERT_FALSE(staged);
  EXPECT_EQ(staged.error().code(), ErrorCode::cancelled);
  EXPECT_EQ(in_flight, 300U);
  std::stop_source stop_hash;
  std::jthread hash_stopper([&] {
    transport.wait_for_bytes(600);
    stop_hash.request_stop();
  });
  EXPECT_EQ(staging.hash(id, nothing_stated(5000), stop_hash.get_token()).error().code(),
            ErrorCode::cancelled);
  EXPECT_EQ(transport.in_flight_bytes(), 600U);
}

}  // namespace
}  // namespace librarian::weightmap::remote
