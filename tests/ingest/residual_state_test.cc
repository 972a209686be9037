// Goal: the state between two layers is the state, bit for bit, or an error: in memory, on disk and
// in a capture, whatever order the rows came in and whichever bit of the file turned.
// Method: random rows through a file system in memory; every byte of a state file flipped.
#include "ingest/residual_state.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "activation_store/array_writer.h"
#include "tests/support/memory_file_system.h"

namespace librarian::ingest {
namespace {

using librarian::testing::MemoryFileSystem;
using Bytes = std::vector<std::byte>;

Bytes random_bytes(std::size_t count, unsigned seed) {
  std::mt19937 engine(seed);
  Bytes bytes(count);
  std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<std::byte>(engine()); });
  return bytes;
}

constexpr const char* kPath = "/scratch/state.0001";

void make_scratch(MemoryFileSystem& files) { ASSERT_TRUE(files.make_directory("/scratch")); }

Result<void> write_file(MemoryFileSystem& files, const Bytes& rows, std::uint64_t row_bytes,
                        std::uint64_t window, const std::vector<std::uint64_t>& order,
                        std::uint64_t step) {
  LIB_TRY(StateFileWriter writer,
          StateFileWriter::create(files, kPath, rows.size() / row_bytes, row_bytes, window));
  for (const std::uint64_t row : order) {
    const std::uint64_t count = std::min(step, rows.size() / row_bytes - row);
    LIB_TRY_VOID(
        writer.write_rows(row, std::span(rows).subspan(row * row_bytes, count * row_bytes)));
  }
  return writer.finish();
}

std::vector<std::uint64_t> every(std::uint64_t rows, std::uint64_t step) {
  std::vector<std::uint64_t> order;
  for (std::uint64_t row = 0; row < rows; row += step) {
    order.push_back(row);
  }
  return order;
}

// Catches: window borders, a last window that is short, checksums of rows that came out of order.
TEST(StateFile, GoesThereAndBackForEveryShapeAndOrder) {
  std::mt19937 engine(1);
  for (const std::uint64_t rows : {1U, 2U, 7U, 8U, 9U, 33U}) {
    for (const std::uint64_t window : {1U, 2U, 8U, 100U}) {
      for (const std::uint64_t step : {1U, 3U, 8U, 50U}) {
        for (const bool shuffled : {false, true}) {
          MemoryFileSystem files;
          make_scratch(files);
          const Bytes wanted = random_bytes(rows * 6, static_cast<unsigned>(engine()));
          std::vector<std::uint64_t> order = every(rows, step);
          if (shuffled) {
            std::shuffle(order.begin(), order.end(), engine);
          }
          ASSERT_TRUE(write_file(files, wanted, 6, window, order, step));
          EXPECT_EQ(files.info(kPath)->size, StateFileWriter::file_bytes(rows, 6, window));
          auto reader = StateFileReader::open(files, kPath, rows, 6);
          ASSERT_TRUE(reader) << reader.error().message();
          for (const std::uint64_t read : {1U, 5U, 50U}) {
            Bytes got(wanted.size());
            for (std::uint64_t row = 0; row < rows; row += read) {
              const std::uint64_t count = std::min(read, rows - row);
              ASSERT_TRUE(reader->read_rows(row, std::span(got).subspan(row * 6, count * 6)));
            }
            EXPECT_TRUE(got == wanted);
          }
          // Backwards as well.
          for (std::uint64_t row = rows; row-- > 0;) {
            Bytes one(6);
            ASSERT_TRUE(reader->read_rows(row, one));
            EXPECT_TRUE(std::equal(one.begin(), one.end(), wanted.begin() + row * 6));
          }
        }
      }
    }
  }
}

// Catches: any byte that no checksum covers.
TEST(StateFile, WithAnyByteChangedIsAnErrorThatNamesIt) {
  MemoryFileSystem files;
  make_scratch(files);
  const Bytes wanted = random_bytes(11 * 6, 3);
  ASSERT_TRUE(write_file(files, wanted, 6, 4, every(11, 2), 2));
  const std::uint64_t size = files.info(kPath)->size;
  for (std::uint64_t at = 0; at < size; ++at) {
    for (const unsigned flip : {0x01U, 0x80U, 0xFFU}) {
      files.corrupt(kPath, at, static_cast<std::byte>(flip));
      auto reader = StateFileReader::open(files, kPath, 11, 6);
      Bytes got(wanted.size());
      const Result<void> read = reader ? reader->read_rows(0, got) : Result<void>(reader.error());
      ASSERT_FALSE(read) << "byte " << at;
      EXPECT_EQ(read.error().code(), ErrorCode::corrupt) << "byte " << at;
      EXPECT_NE(read.error().message().find(kPath), std::string::npos) << read.error().message();
      files.corrupt(kPath, at, static_cast<std::byte>(flip));
    }
  }
  EXPECT_TRUE(StateFileReader::open(files, kPath, 11, 6));
}

TEST(StateFile, ThatIsCutLongerMissingOrOfAnotherShapeIsCorrupt) {
  MemoryFileSystem files;
  make_scratch(files);
  const Bytes wanted = random_bytes(11 * 6, 4);
  ASSERT_TRUE(write_file(files, wanted, 6, 4, every(11, 1), 1));
  const std::string whole = files.snapshot().at(kPath);
  for (const auto& [rows, row_bytes] : std::vector<std::pair<std::uint64_t, std::uint64_t>>{
           {10, 6}, {12, 6}, {11, 12}, {6, 11}, {66, 1}, {1, 66}}) {
    const auto reader = StateFileReader::open(files, kPath, rows, row_bytes);
    ASSERT_FALSE(reader) << rows << " x " << row_bytes;
    EXPECT_EQ(reader.error().code(), ErrorCode::corrupt);
  }
  for (std::size_t size = 0; size <= whole.size() + 1; ++size) {
    if (size == whole.size()) {
      continue;
    }
    std::string changed = whole;
    changed.resize(size, 'x');
    ASSERT_TRUE(replace_file(files, kPath, changed));
    const auto reader = StateFileReader::open(files, kPath, 11, 6);
    ASSERT_FALSE(reader) << size;
    EXPECT_EQ(reader.error().code(), ErrorCode::corrupt) << size;
  }
  ASSERT_TRUE(files.remove_file(kPath));
  const auto missing = StateFileReader::open(files, kPath, 11, 6);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code(), ErrorCode::corrupt);
}

constexpr std::uint64_t kRows = 37;
constexpr std::uint64_t kWidth = 5;
constexpr std::uint64_t kRowBytes = kWidth * 2;

ResidualStateOptions options(bool in_memory) {
  ResidualStateOptions result;
  result.rows = kRows;
  result.row_bytes = kRowBytes;
  result.window_rows = 8;
  result.in_memory = in_memory;
  result.part_directory = "/part";
  result.scratch_directory = "/scratch";
  return result;
}

/// One layer that adds `layer + 1` to every byte, in blocks of `block` rows.
void run_layer(ResidualState& state, std::int32_t layer, std::uint64_t block,
               const std::string& covered, Bytes& expected) {
  ASSERT_TRUE(state.begin_layer(layer, covered, true));
  for (std::uint64_t row = 0; row < kRows; row += block) {
    const std::uint64_t rows = std::min(block, kRows - row);
    const auto span = state.load(row, rows);
    ASSERT_TRUE(span) << span.error().message();
    ASSERT_EQ(span->size(), rows * kRowBytes);
    EXPECT_TRUE(std::equal(span->begin(), span->end(), expected.begin() + row * kRowBytes));
    for (std::byte& byte : *span) {
      byte = static_cast<std::byte>(static_cast<unsigned>(byte) + layer + 1);
    }
    ASSERT_TRUE(state.store(row, *span));
  }
  for (std::byte& byte : expected) {
    byte = static_cast<std::byte>(static_cast<unsigned>(byte) + layer + 1);
  }
}

void embed(ResidualState& state, const Bytes& rows, std::vector<std::uint64_t> order) {
  ASSERT_TRUE(state.begin_embedding(""));
  for (const std::uint64_t row : order) {
    ASSERT_TRUE(state.put_row(row, std::span(rows).subspan(row * kRowBytes, kRowBytes)));
  }
}

// Catches: a source that is not the layer before's, a file that goes too early or never.
TEST(ResidualState, IsTheSameInMemoryAndOnDiskAndAfterARestart) {
  for (const bool in_memory : {true, false}) {
    for (const std::uint64_t block : {1U, 8U, 10U, 64U}) {
      for (const bool scattered : {false, true}) {
        SCOPED_TRACE(std::to_string(in_memory) + " block " + std::to_string(block));
        MemoryFileSystem files;
        make_scratch(files);
        auto state = *ResidualState::create(files, options(in_memory), block);
        Bytes expected = random_bytes(kRows * kRowBytes, 5);
        std::vector<std::uint64_t> order = every(kRows, 1);
        if (scattered) {
          std::reverse(order.begin(), order.end());
          std::swap(order[3], order[20]);
        }
        embed(*state, expected, order);
        StatePlace place = state->end_layer(true).value();
        EXPECT_EQ(place.name, "state.0000");
        for (std::int32_t layer = 0; layer < 3; ++layer) {
          ASSERT_NO_FATAL_FAILURE(run_layer(*state, layer, block, "", expected));
          place = state->end_layer(true).value();
          ASSERT_EQ(place.kind, StatePlace::Kind::file);
          EXPECT_EQ(place.name, ResidualState::file_name(layer));
          ASSERT_TRUE(state->drop_old_files(layer, place));
          EXPECT_EQ(*files.list("/scratch"), (std::vector<std::string>{place.name}));
          // A restart of the process at this border, into either mode.
          const auto from_json = StatePlace::from_json(place.to_json());
          ASSERT_TRUE(from_json);
          for (const bool other_mode : {true, false}) {
            auto again = *ResidualState::create(files, options(other_mode), block);
            ASSERT_TRUE(again->restore(*from_json));
            Bytes got;
            for (std::uint64_t row = 0; row < kRows; row += block) {
              const auto span = again->load(row, std::min(block, kRows - row));
              ASSERT_TRUE(span);
              got.insert(got.end(), span->begin(), span->end());
            }
            EXPECT_TRUE(got == expected);
          }
        }
      }
    }
  }
}

TEST(ResidualState, ComesBackFromACaptureThatHoldsIt) {
  for (const bool in_memory : {true, false}) {
    MemoryFileSystem files;
    make_scratch(files);
    ASSERT_TRUE(files.make_directory("/part"));
    const Bytes wanted = random_bytes(kRows * kRowBytes, 6);
    activation_store::ArrayLayout layout{
        kRows, kWidth, activation_store::StoredType::bf16, activation_store::Codec::zstd, 4, 16};
    activation_store::EncodePool pool(real_clock(), {1, 4, 4 * kRowBytes});
    auto writer = activation_store::ArrayWriter::create(files, pool, "/part", "blocks.0.resid_post",
                                                        layout, "ab");
    ASSERT_TRUE(writer) << writer.error().message();
    ASSERT_TRUE(writer->append(wanted, {}));
    ASSERT_TRUE(writer->finish({}));
    ASSERT_TRUE(writer->publish());
    auto state = *ResidualState::create(files, options(in_memory), 8);
    ASSERT_TRUE(state->restore({StatePlace::Kind::array, "blocks.0.resid_post"}));
    Bytes expected = wanted;
    ASSERT_NO_FATAL_FAILURE(run_layer(*state, 1, 8, "", expected));
    EXPECT_EQ(state->end_layer(true)->name, "state.0002");
    // Of another shape, or missing: damage, not a crash.
    ResidualStateOptions other = options(in_memory);
    other.rows = kRows + 1;
    auto wrong = *ResidualState::create(files, other, 8);
    EXPECT_FALSE(wrong->restore({StatePlace::Kind::array, "blocks.0.resid_post"}));
    EXPECT_FALSE(state->restore({StatePlace::Kind::array, "blocks.9.resid_post"}));
  }
}

TEST(ResidualState, SaysTruthfullyWhereItIsDurable) {
  MemoryFileSystem files;
  make_scratch(files);
  auto state = *ResidualState::create(files, options(true), 8);
  Bytes expected = random_bytes(kRows * kRowBytes, 7);
  embed(*state, expected, every(kRows, 1));
  EXPECT_EQ(state->end_layer(false)->kind, StatePlace::Kind::none);
  EXPECT_TRUE(files.list("/scratch")->empty());
  run_layer(*state, 0, 8, "blocks.0.resid_post", expected);
  const StatePlace place = *state->end_layer(true);
  EXPECT_EQ(place.kind, StatePlace::Kind::array);
  EXPECT_EQ(place.name, "blocks.0.resid_post");
  EXPECT_TRUE(files.list("/scratch")->empty()) << "the capture holds it";
}

TEST(ResidualState, TellsItsOwnFileNamesFromOthers) {
  EXPECT_EQ(ResidualState::file_name(-1), "state.0000");
  EXPECT_EQ(ResidualState::file_name(3), "state.0004");
  EXPECT_EQ(ResidualState::file_name(4096), "state.4097");
  for (const char* name : {"state.0000", "state.4097"}) {
    EXPECT_TRUE(ResidualState::is_file_name(name)) << name;
  }
  for (const char* name :
       {"", "state", "state.", "state.1", "state.123", "state.00a0", "state.-001", "State.0000",
        "state.0000.partial-ab", "xstate.0000", "state.0000x", "state.0000000000000"}) {
    EXPECT_FALSE(ResidualState::is_file_name(name)) << name;
  }
}

TEST(ResidualState, CountsTheMemoryItTakes) {
  EXPECT_GE(ResidualState::memory_bytes(options(true), 8), kRows * kRowBytes + 8 * kRowBytes);
  EXPECT_GE(ResidualState::memory_bytes(options(false), 8), 2 * 8 * kRowBytes);
  EXPECT_LT(ResidualState::memory_bytes(options(false), 8), kRows * kRowBytes);
}

TEST(StatePlaceJson, RefusesWhatItDoesNotKnow) {
  for (const char* text : {R"({})", R"({"kind": "file"})", R"({"kind": "disk", "name": "x"})",
                           R"({"kind": 1, "name": "x"})", R"({"kind": "file", "name": 2})"}) {
    EXPECT_FALSE(StatePlace::from_json(Json::parse(text))) << text;
  }
}

}  // namespace
}  // namespace librarian::ingest
