#include <gtest/gtest.h>

#include "activation_store/array_reader.h"
#include "activation_store/array_writer.h"
#include "activation_store/store_files.h"
#include "tests/activation_store/store_fixtures.h"
#include "tests/support/memory_file_system.h"

namespace librarian::activation_store {
namespace {

using librarian::testing::MemoryFileSystem;
using librarian::testing::Survival;
using testing::make_rows;
using testing::read_array;
using testing::RowKind;
using testing::write_array;

// Goal: at whatever moment the machine dies, an array is there whole or is no array, and one whose
// publish() came back survives a power cut.
// Method: the n-th durable operation and all after it fail, for each n; then the machine restarts
// with what was synced, with everything, or with torn tails.
TEST(ArrayCrash, LeavesAWholeArrayOrNone) {
  const ArrayLayout layout{21, 33, StoredType::bf16, Codec::zstd, 4, 8};  // 3 shards
  const auto rows = make_rows(layout, RowKind::activations, 1);
  for (const Survival survival : {Survival::durable_only, Survival::everything, Survival::torn}) {
    bool completed = false;
    std::uint64_t arrays_seen = 0;
    for (std::uint64_t crash_at = 1; !completed; ++crash_at) {
      SCOPED_TRACE("crash at operation " + std::to_string(crash_at));
      MemoryFileSystem files;
      ASSERT_TRUE(make_directories(files, "/store/part"));
      files.crash_at(files.operations() + crash_at);
      const auto written = write_array(files, "/store/part", "embed", layout, rows, 5);
      completed = written.has_value();
      if (!completed) {
        ASSERT_EQ(written.error().code(), ErrorCode::io) << written.error().message();
      }
      files.restart(survival);
      if (files.info("/store/part/embed/zarr.json")) {
        ++arrays_seen;
        const auto read = read_array(files, "/store/part/embed");
        ASSERT_TRUE(read) << read.error().message();
        ASSERT_EQ(*read, rows);
        for (const auto& [path, content] : files.snapshot()) {
          EXPECT_EQ(path.find(".partial-"), std::string::npos) << path;
        }
      } else {
        ASSERT_FALSE(completed);
        EXPECT_EQ(ArrayReader::open(files, "/store/part/embed").error().code(),
                  ErrorCode::not_found);
      }
      // What is left is ours to remove, and a second try then succeeds.
      ASSERT_TRUE(remove_array(files, "/store/part", "embed"));
      EXPECT_TRUE(files.snapshot().empty());
      ASSERT_TRUE(write_array(files, "/store/part", "embed", layout, rows));
      ASSERT_LT(crash_at, 200U);
    }
    EXPECT_GE(arrays_seen, 1U);
  }
}

// Goal: tokens/ interrupted anywhere can be written again over what is left.
// Method: as above; the second try has another nonce, as another process would.
TEST(ArrayCrash, TokensCanBeWrittenAgainOverAnInterruptedTry) {
  const PartTokens tokens{{5, 6, 7}, {0, 1, 3}, std::vector<std::uint8_t>{1, 0, 1}, {4, 5}};
  bool completed = false;
  for (std::uint64_t crash_at = 1; !completed; ++crash_at) {
    SCOPED_TRACE("crash at operation " + std::to_string(crash_at));
    MemoryFileSystem files;
    ASSERT_TRUE(make_directories(files, "/part"));
    files.crash_at(files.operations() + crash_at);
    completed = write_part_tokens(files, "/part", tokens, "aa").has_value();
    files.restart(Survival::durable_only);
    if (completed) {
      ASSERT_TRUE(read_part_tokens(files, "/part"));
    }
    ASSERT_TRUE(write_part_tokens(files, "/part", tokens, "bb"));
    const auto read = read_part_tokens(files, "/part");
    ASSERT_TRUE(read) << read.error().message();
    EXPECT_EQ(read->offsets, tokens.offsets);
    EXPECT_EQ(read->input_ids, tokens.input_ids);
    ASSERT_LT(crash_at, 200U);
  }
}

}  // namespace
}  // namespace librarian::activation_store
