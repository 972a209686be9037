#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <future>

#include "activation_store/array_writer.h"
#include "tests/activation_store/hooked_file_system.h"
#include "tests/activation_store/store_fixtures.h"
#include "tests/support/fake_clock.h"
#include "tests/support/memory_file_system.h"

namespace librarian::activation_store {
namespace {

using librarian::testing::FakeClock;
using librarian::testing::MemoryFileSystem;
using ::testing::HasSubstr;
using testing::HookedFileSystem;
using testing::make_rows;
using testing::read_array;
using testing::RowKind;
using namespace std::chrono_literals;

constexpr char kName[] = "embed";

/// 8 chunks in one shard.
ArrayLayout eight_chunks() { return {32, 64, StoredType::bf16, Codec::zstd, 4, 32}; }

struct Fixture {
  Fixture() {
    LIB_CHECK(static_cast<bool>(files.make_directory("/part")));
    layout = eight_chunks();
    rows = make_rows(layout, RowKind::activations, 1);
  }
  std::span<const std::byte> some_rows(std::uint64_t begin, std::uint64_t end) const {
    return std::span(rows).subspan(begin * row_bytes(layout), (end - begin) * row_bytes(layout));
  }
  MemoryFileSystem files;
  ArrayLayout layout;
  std::vector<std::byte> rows;
};

EncodePoolOptions options_for(const ArrayLayout& layout, std::uint64_t slots) {
  return {.threads = 2, .slots = slots, .chunk_bytes_max = chunk_bytes(layout)};
}

// Goal: a slow disk slows the producer down, chunk by chunk, and nothing else takes time.
// Method: each append to a file takes a virtual second; with two slots, the third chunk waits until
// the first is written, and so on; 8 chunks, the index and zarr.json end after exactly 10 seconds.
TEST(EncodePool, HoldsTheProducerToThePaceOfTheDisk) {
  Fixture f;
  FakeClock clock;
  const Activity test_thread(clock);
  HookedFileSystem slow(f.files, [&](const std::string&) { clock.sleep_for(1s, {}); });
  EncodePool pool(clock, options_for(f.layout, 2));
  auto writer = ArrayWriter::create(slow, pool, "/part", kName, f.layout, "ab");
  ASSERT_TRUE(writer);
  ASSERT_TRUE(writer->append(f.rows, {}));
  EXPECT_EQ(clock.now(), 6s);
  ASSERT_TRUE(writer->finish({}));
  EXPECT_EQ(clock.now(), 10s);
  const auto statistics = pool.statistics();
  EXPECT_EQ(statistics.append_wait, 6s);
  EXPECT_EQ(statistics.write_busy, 9s);
  EXPECT_EQ(statistics.encode_busy, 0s);
  EXPECT_EQ(statistics.raw_bytes, f.rows.size());
  ASSERT_TRUE(writer->publish());
  EXPECT_EQ(statistics.stored_bytes, f.files.info("/part/embed/c/0/0")->size);
  EXPECT_EQ(read_array(f.files, "/part/embed").value(), f.rows);
}

// Goal: encoding takes no virtual time, although no thread that the clock knows runs meanwhile.
// Method: another thread sleeps for an hour; it must not wake while chunks are encoded.
TEST(EncodePool, HoldsVirtualTimeWhileChunksAreEncoded) {
  Fixture f;
  f.layout = {2048, 512, StoredType::bf16, Codec::zstd, 1024, 2048};
  f.rows = make_rows(f.layout, RowKind::activations, 1);
  FakeClock clock;
  const Activity test_thread(clock);
  EncodePool pool(clock, options_for(f.layout, 2));
  auto writer = ArrayWriter::create(f.files, pool, "/part", kName, f.layout, "ab");
  ASSERT_TRUE(writer);
  std::jthread sleeper =
      start_thread(clock, [&](const std::stop_token& stop) { clock.sleep_for(1h, stop); });
  ASSERT_TRUE(writer->append(f.rows, {}));
  ASSERT_TRUE(writer->finish({}));
  EXPECT_EQ(clock.now(), 0s);
}

// Goal: arrays that are written at the same time share the slots without waiting for each other.
// Method: three arrays, interleaved row by row, with one slot more than arrays.
TEST(EncodePool, WritesSeveralArraysAtOnceWithOneSlotMoreThanArrays) {
  Fixture f;
  EncodePool pool(real_clock(), options_for(f.layout, 4));
  const std::vector<std::string> names = {"embed", "blocks.0.resid_post", "blocks.0.mlp_out"};
  std::vector<ArrayWriter> writers;
  for (const std::string& name : names) {
    auto writer = ArrayWriter::create(f.files, pool, "/part", name, f.layout, "ab");
    ASSERT_TRUE(writer);
    writers.push_back(*std::move(writer));
  }
  for (std::uint64_t row = 0; row < f.layout.rows; ++row) {
    for (ArrayWriter& writer : writers) {
      ASSERT_TRUE(writer.append(f.some_rows(row, row + 1), {}));
    }
  }
  for (std::size_t i = 0; i < names.size(); ++i) {
    ASSERT_TRUE(writers[i].finish({}));
    ASSERT_TRUE(writers[i].publish());
    EXPECT_EQ(read_array(f.files, "/part/" + names[i]).value(), f.rows);
  }
}

// Goal: a full disk is reported with the file's name by the next call, and stays reported; the
// pool goes on serving other arrays.
// Method: room for zero to some thousand bytes; then room again for another array.
TEST(EncodePool, ReportsAFullDiskFromAppendOrFinish) {
  for (const std::uint64_t room : {0U, 300U, 1000U, 1800U}) {
    Fixture f;
    EncodePool pool(real_clock(), options_for(f.layout, 2));
    auto writer = ArrayWriter::create(f.files, pool, "/part", kName, f.layout, "ab");
    ASSERT_TRUE(writer);
    f.files.set_free_bytes(room);
    Result<void> appended;
    for (std::uint64_t row = 0; row < f.layout.rows && appended; ++row) {
      appended = writer->append(f.some_rows(row, row + 1), {});
    }
    const auto finished = writer->finish({});
    ASSERT_FALSE(finished);
    EXPECT_EQ(finished.error().code(), ErrorCode::no_space) << finished.error().message();
    EXPECT_THAT(finished.error().message(), HasSubstr("/part/embed/c/0/0"));
    if (!appended) {
      EXPECT_EQ(appended.error().code(), ErrorCode::no_space);
    }
    EXPECT_FALSE(f.files.info("/part/embed/zarr.json"));
    f.files.set_free_bytes(1U << 30U);
    EXPECT_FALSE(writer->append({}, {})) << "an array with a hole must not be continued";
    auto other = ArrayWriter::create(f.files, pool, "/part", "blocks.1.mlp_out", f.layout, "ab");
    ASSERT_TRUE(other);
    ASSERT_TRUE(other->append(f.rows, {}));
    ASSERT_TRUE(other->finish({}));
    ASSERT_TRUE(other->publish());
  }
}

// Goal: a stop request ends the waits in append() and finish() while the disk hangs.
// Method: the first write blocks until the test lets it go, after both calls have come back.
TEST(EncodePool, EndsItsWaitsWhenAStopIsRequested) {
  Fixture f;
  std::promise<void> release;
  const std::shared_future<void> released = release.get_future().share();
  HookedFileSystem hanging(f.files, [released](const std::string&) { released.wait(); });
  EncodePool pool(real_clock(), options_for(f.layout, 8));
  auto first = ArrayWriter::create(hanging, pool, "/part", kName, f.layout, "ab");
  auto second = ArrayWriter::create(hanging, pool, "/part", "blocks.0.mlp_out", f.layout, "ab");
  ASSERT_TRUE(first && second);
  ASSERT_TRUE(first->append(f.rows, {}));  // takes all slots
  for (const bool finish : {false, true}) {
    std::stop_source source;
    std::jthread stopper([&] {
      std::this_thread::sleep_for(20ms);
      source.request_stop();
    });
    if (finish) {
      EXPECT_EQ(first->finish(source.get_token()).error().code(), ErrorCode::cancelled);
    } else {
      EXPECT_EQ(second->append(f.rows, source.get_token()).error().code(), ErrorCode::cancelled);
    }
  }
  EXPECT_FALSE(second->append(f.rows, {})) << "rows may be in already: they must not go in twice";
  release.set_value();
}

// Goal: whatever is destroyed before publish() leaves temporary names only, and no hang.
TEST(EncodePool, LeavesOnlyTemporaryNamesWhenDestroyedEarly) {
  Fixture f;
  auto pool = std::make_unique<EncodePool>(real_clock(), options_for(f.layout, 3));
  auto unfinished = ArrayWriter::create(f.files, *pool, "/part", kName, f.layout, "ab");
  auto finished = ArrayWriter::create(f.files, *pool, "/part", "final.pre_norm", f.layout, "ab");
  auto orphan = ArrayWriter::create(f.files, *pool, "/part", "final.post_norm", f.layout, "ab");
  ASSERT_TRUE(unfinished && finished && orphan);
  ASSERT_TRUE(unfinished->append(f.some_rows(0, 13), {}));
  ASSERT_TRUE(finished->append(f.rows, {}));
  ASSERT_TRUE(finished->finish({}));
  ASSERT_TRUE(orphan->append(f.some_rows(0, 2), {}));
  { const ArrayWriter gone = *std::move(unfinished); }
  { const ArrayWriter gone = *std::move(finished); }
  pool.reset();
  EXPECT_EQ(orphan->append(f.some_rows(2, 32), {}).error().code(), ErrorCode::cancelled);
  for (const auto& [path, content] : f.files.snapshot()) {
    EXPECT_THAT(path, HasSubstr(".partial-ab"));
  }
  for (const char* const name : {kName, "final.pre_norm", "final.post_norm"}) {
    EXPECT_TRUE(remove_array(f.files, "/part", name));
  }
  EXPECT_TRUE(f.files.list("/part")->empty());
}

TEST(EncodePool, RefusesWrongNumbersOfRows) {
  Fixture f;
  EncodePool pool(real_clock(), options_for(f.layout, 2));
  auto writer = ArrayWriter::create(f.files, pool, "/part", kName, f.layout, "ab");
  ASSERT_TRUE(writer);
  EXPECT_EQ(writer->append(std::span(f.rows).first(7), {}).error().code(),
            ErrorCode::invalid_argument);
  ASSERT_TRUE(writer->append(f.some_rows(0, 31), {}));
  EXPECT_EQ(writer->append(f.some_rows(0, 2), {}).error().code(), ErrorCode::invalid_argument);
  EXPECT_EQ(writer->finish({}).error().code(), ErrorCode::invalid_argument);
  ASSERT_TRUE(writer->append(f.some_rows(31, 32), {}));
  ASSERT_TRUE(writer->finish({}));
}

TEST(EncodePool, RefusesArraysItCannotWrite) {
  Fixture f;
  EncodePool pool(real_clock(), options_for(f.layout, 2));
  const auto code = [&](const std::string& name, const ArrayLayout& layout,
                        const std::string& nonce) {
    auto writer = ArrayWriter::create(f.files, pool, "/part", name, layout, nonce);
    return writer ? ErrorCode::internal : writer.error().code();
  };
  ArrayLayout layout = f.layout;
  EXPECT_EQ(code("../embed", layout, "ab"), ErrorCode::invalid_argument);
  EXPECT_EQ(code(kName, layout, "a/b"), ErrorCode::invalid_argument);
  EXPECT_EQ(code(kName, layout, ""), ErrorCode::invalid_argument);
  layout.chunk_tokens = 8;  // twice what the pool has room for
  EXPECT_EQ(code(kName, layout, "ab"), ErrorCode::invalid_argument);
  layout.chunk_tokens = 3;
  EXPECT_EQ(code(kName, layout, "ab"), ErrorCode::invalid_argument);
  layout = f.layout;
  layout.rows = 0;
  EXPECT_EQ(code(kName, layout, "ab"), ErrorCode::invalid_argument);
  ASSERT_TRUE(make_directories(f.files, "/part/embed"));
  ASSERT_TRUE(f.files.create("/part/embed/zarr.json.partial-cd"));
  EXPECT_EQ(code(kName, f.layout, "ab"), ErrorCode::already_exists);
}

// Goal: the planner's figure is what a pool really takes.
// Method: the C library's own count of allocated bytes before and after.
TEST(EncodePool, AllocatesWhatItSays) {
  const EncodePoolOptions options{.threads = 2, .slots = 6, .chunk_bytes_max = 1U << 20U};
  { const EncodePool warm_up(real_clock(), options); }  // starts the scheduler
  const auto in_use = [] {
    const struct mallinfo2 info = mallinfo2();
    return static_cast<double>(info.uordblks) + static_cast<double>(info.hblkhd);
  };
  const double before = in_use();
  const EncodePool pool(real_clock(), options);
  const double taken = in_use() - before;
  if (before == 0) {
    GTEST_SKIP() << "this allocator keeps no count";
  }
  const auto said = static_cast<double>(EncodePool::memory_bytes(options));
  EXPECT_GT(taken, 0.99 * said);
  EXPECT_LT(taken, 1.01 * said + 65536);
}

}  // namespace
}  // namespace librarian::activation_store
