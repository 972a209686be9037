// Goal: samples come out of every format as they went in, and a bad file is refused by its row.
// Method: files written byte by byte into a file system in memory.
#include "ingest/token_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstdint>
#include <cstdlib>

#include "ingest/npy.h"
#include "tests/ingest/tiny_model.h"
#include "tests/support/memory_file_system.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define LIBRARIAN_TEST_SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define LIBRARIAN_TEST_SANITIZED
#endif
#endif

namespace librarian::ingest {
namespace {

using librarian::testing::MemoryFileSystem;
using Ids = std::vector<std::int32_t>;
using Offsets = std::vector<std::int64_t>;
using Mask = std::vector<std::uint8_t>;

Result<TokenData> read(const std::string& name, const std::string& text, TokenLimits limits = {}) {
  MemoryFileSystem files;
  LIB_TRY_VOID(replace_file(files, "/" + name, text));
  if (limits.vocab_size == 0) {
    limits.vocab_size = 1000;
  }
  return read_token_file(files, "/" + name, limits);
}

void expect_refused(const Result<TokenData>& data, const std::string& named,
                    const std::string& what) {
  ASSERT_FALSE(data) << what;
  EXPECT_TRUE(data.error().code() == ErrorCode::bad_input ||
              data.error().code() == ErrorCode::invalid_argument)
      << what << ": " << error_code_name(data.error().code());
  EXPECT_NE(data.error().message().find(named), std::string::npos)
      << what << ": " << data.error().message();
}

TEST(TokenFile, ReadsJsonLines) {
  const auto data = read("a.jsonl",
                         "{\"input_ids\": [1, 2, 3]}\n\n{\"id\": \"x\", \"input_ids\": [4]}\r\n"
                         "   \n{\"input_ids\": [999, 0]}");
  ASSERT_TRUE(data) << data.error().message();
  EXPECT_EQ(data->input_ids, (Ids{1, 2, 3, 4, 999, 0}));
  EXPECT_EQ(data->offsets, (Offsets{0, 3, 4, 6}));
  EXPECT_FALSE(data->loss_mask);
  EXPECT_EQ(data->longest_sample(), 3U);
  const auto masked = read("a.jsonl",
                           "{\"input_ids\": [1, 2], \"loss_mask\": [0, 1]}\n"
                           "{\"loss_mask\": [1], \"input_ids\": [3]}\n");
  ASSERT_TRUE(masked) << masked.error().message();
  EXPECT_EQ(*masked->loss_mask, (Mask{0, 1, 1}));
}

// Catches: a line that crosses the read window, or is larger than it.
TEST(TokenFile, ReadsJsonLinesOfAnyLength) {
  std::string text;
  Ids wanted;
  Offsets offsets{0};
  for (const int length : {1, 400'000, 3, 100'000, 1'000}) {
    text += "{\"input_ids\":[";
    for (int i = 0; i < length; ++i) {
      wanted.push_back(i % 1000);
      text += (i > 0 ? "," : "") + std::to_string(i % 1000);
    }
    text += "]}\n";
    offsets.push_back(static_cast<std::int64_t>(wanted.size()));
  }
  const auto data = read("a.jsonl", text);
  ASSERT_TRUE(data) << data.error().message();
  EXPECT_TRUE(data->input_ids == wanted);
  EXPECT_EQ(data->offsets, offsets);
}

TEST(TokenFile, RefusesBadJsonLinesByTheirRow) {
  const std::string good = "{\"input_ids\": [1]}\n";
  for (const char* row : {
           "{}",
           "[]",
           "[1, 2]",
           "null",
           "1",
           "x",
           "{\"input_ids\": [1}",
           "{\"input_ids\": null}",
           "{\"input_ids\": 1}",
           "{\"input_ids\": \"1\"}",
           "{\"input_ids\": [1.0]}",
           "{\"input_ids\": [-1]}",
           "{\"input_ids\": [2147483648]}",
           "{\"input_ids\": [18446744073709551616]}",
           "{\"input_ids\": [[1]]}",
           "{\"input_ids\": [null]}",
           "{\"input_ids\": [\"1\"]}",
           "{\"input_ids\": [true]}",
           "{\"input_ids\": [1], \"input_ids\": [2]}",
           "{\"input_ids\": [1], \"text\": \"x\"}",
           "{\"input_ids\": [1], \"attention_mask\": [1]}",
           "{\"input_ids\": [1], \"loss_mask\": [1]}",
           "{\"input_ids\": [1]} {}",
           "{\"input_ids\": [1]}{\"input_ids\": [2]}",
           " {\"input_ids\": [1]}",
           "\xEF\xBB\xBF{\"input_ids\": [1]}",
       }) {
    expect_refused(read("a.jsonl", good + row + "\n" + good), "row 1", row);
  }
  expect_refused(read("a.jsonl", good + "{\"input_ids\": []}\n"), "sample 1", "empty sample");
  expect_refused(read("a.jsonl", good + "{\"input_ids\": [5, 1000]}\n"), "sample 1",
                 "outside the vocabulary");
  const std::string masked = "{\"input_ids\": [1, 2], \"loss_mask\": [0, 1]}\n";
  for (const char* row :
       {"{\"input_ids\": [1]}", "{\"input_ids\": [1], \"loss_mask\": []}",
        "{\"input_ids\": [1], \"loss_mask\": [2]}", "{\"input_ids\": [1], \"loss_mask\": [0, 1]}",
        "{\"input_ids\": [1], \"loss_mask\": [true]}", "{\"input_ids\": [1], \"loss_mask\": null}",
        "{\"input_ids\": [1], \"loss_mask\": 1}"}) {
    expect_refused(read("a.jsonl", masked + row + "\n"), "row 1", row);
  }
  expect_refused(read("a.jsonl", ""), "no samples", "empty file");
  expect_refused(read("a.jsonl", "\n\n"), "no samples", "blank lines");
  expect_refused(read("a.txt", good), ".jsonl", "another suffix");
}

template <typename T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

template <typename T>
void expect_npy(const std::string& descr) {
  const auto rows = read("a.npy", npy_header_text(descr, {2, 3}) + raw<T>({1, 2, 3, 4, 5, 127}));
  ASSERT_TRUE(rows) << descr << rows.error().message();
  EXPECT_EQ(rows->input_ids, (Ids{1, 2, 3, 4, 5, 127})) << descr;
  EXPECT_EQ(rows->offsets, (Offsets{0, 3, 6})) << descr;
  const auto flat = read("a.npy", npy_header_text(descr, {3}) + raw<T>({1, 2, 3}));
  ASSERT_TRUE(flat) << descr;
  EXPECT_EQ(flat->offsets, (Offsets{0, 3})) << descr;
}

TEST(NpyTokens, OfEveryIntegerTypeAreRead) {
  expect_npy<std::int8_t>("|i1");
  expect_npy<std::uint8_t>("|u1");
  expect_npy<std::int16_t>("<i2");
  expect_npy<std::uint16_t>("<u2");
  expect_npy<std::int32_t>("<i4");
  expect_npy<std::uint32_t>("<u4");
  expect_npy<std::int64_t>("<i8");
  expect_npy<std::uint64_t>("<u8");
}

std::string npy_of_version(char version, const std::string& dict) {
  std::string text = std::string("\x93NUMPY") + version + '\0';
  const auto length = static_cast<std::uint32_t>(dict.size());
  text.append(reinterpret_cast<const char*>(&length), version == 1 ? 2 : 4);
  return text + dict;
}

TEST(NpyTokens, OfEveryVersionAreRead) {
  const std::string dict = "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 2), }";
  for (const char version : {1, 2, 3}) {
    for (const std::size_t padding : {1U, 7U, 60000U}) {
      std::string padded = dict + std::string(padding, ' ');
      padded.back() = '\n';
      const auto data =
          read("a.npy", npy_of_version(version, padded) + raw<std::int32_t>({1, 2, 3, 4}));
      ASSERT_TRUE(data) << int{version} << ": " << data.error().message();
      EXPECT_EQ(data->input_ids, (Ids{1, 2, 3, 4}));
    }
  }
}

TEST(NpyTokens, ThatAreOddAreRefused) {
  const auto header = [](const std::string& rest) { return npy_of_version(1, rest); };
  const std::string four = raw<std::int32_t>({1, 2, 3, 4});
  const std::pair<const char*, std::string> cases[] = {
      {"empty", ""},
      {"only the magic", "\x93NUMPY"},
      {"version 0", npy_of_version(0, "{'descr': '<i4', 'fortran_order': False, 'shape': (4,), }")},
      {"version 4", npy_of_version(4, "{'descr': '<i4', 'fortran_order': False, 'shape': (4,), }")},
      {"another magic", "PK" + npy_header_text("<i4", {4}) + four},
      {"big-endian", npy_header_text(">i4", {4}) + four},
      {"floats", npy_header_text("<f4", {4}) + four},
      {"bool", npy_header_text("|b1", {4}) + "\1\1\1\1"},
      {"objects", npy_header_text("|O", {4}) + four},
      {"text", npy_header_text("<U1", {4}) + four},
      {"16-byte integers", npy_header_text("<i16", {1}) + four},
      {"3-byte integers", npy_header_text("<i3", {4}) + "abcdefghijkl"},
      {"a record type",
       header("{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (4,), }") + four},
      {"fortran order",
       header("{'descr': '<i4', 'fortran_order': True, 'shape': (2, 2), }") + four},
      {"no shape", header("{'descr': '<i4', 'fortran_order': False, }") + four},
      {"no descr", header("{'fortran_order': False, 'shape': (4,), }") + four},
      {"no order", header("{'descr': '<i4', 'shape': (4,), }") + four},
      {"a negative extent", header("{'descr': '<i4', 'fortran_order': False, 'shape': (-4,), }")},
      {"an open shape", header("{'descr': '<i4', 'fortran_order': False, 'shape': (4, ")},
      {"no dimensions", npy_header_text("<i4", {}) + "abcd"},
      {"three dimensions", npy_header_text("<i4", {2, 2, 1}) + four},
      {"nine dimensions", npy_header_text("<i4", {1, 1, 1, 1, 1, 1, 1, 1, 4}) + four},
      {"data too short", npy_header_text("<i4", {5}) + four},
      {"data too long", npy_header_text("<i4", {3}) + four},
      {"a product that wraps", npy_header_text("<i4", {1ULL << 32U, 1ULL << 32U})},
      {"bytes that wrap", npy_header_text("<i4", {1ULL << 62U})},
      {"no samples", npy_header_text("<i4", {0, 4})},
      {"empty samples", npy_header_text("<i4", {4, 0})},
      {"one empty sample", npy_header_text("<i4", {0})},
      {"a header beyond the file", std::string("\x93NUMPY\x01\x00\xFF\xFF{}", 12)},
      {"a header of 4 GiB", std::string("\x93NUMPY\x02\x00\xFF\xFF\xFF\xFF{}", 14)},
      {"an id above int32", npy_header_text("<u4", {1}) + "\xFF\xFF\xFF\xFF"},
      {"a huge id", npy_header_text("<i8", {1}) + raw<std::int64_t>({1LL << 40U})},
      {"a negative id", npy_header_text("<i4", {1}) + raw<std::int32_t>({-1})},
  };
  for (const auto& [what, text] : cases) {
    expect_refused(read("a.npy", text), "/a.npy", what);
  }
}

#if !defined(LIBRARIAN_TEST_SANITIZED)  // Sanitizers take more address space than the limit.
/// Reads in a process that may have 1 GiB, and ends it: 0 if the file was refused.
[[noreturn]] void read_in_little_memory(const std::string& text) {
  const rlimit limit{1ULL << 30U, 1ULL << 30U};
  ::setrlimit(RLIMIT_AS, &limit);
  const rlimit no_core{0, 0};
  ::setrlimit(RLIMIT_CORE, &no_core);
  std::exit(read("a.npy", text) ? 1 : 0);
}

// Catches: rows of no columns, which cost nothing in the file and everything in memory.
TEST(NpyTokensDeathTest, OfEmptyRowsWithoutEndAreRefusedInLittleMemory) {
  EXPECT_EXIT(read_in_little_memory(npy_header_text("<i4", {1ULL << 60U, 0})),
              ::testing::ExitedWithCode(0), "");
}
#endif

std::string token_tensors(const Offsets& offsets, const Ids& ids, const Mask* mask = nullptr,
                          const std::string& ids_type = "I32") {
  std::string data;
  std::string json = "{";
  const auto add = [&](const std::string& name, const std::string& type, std::size_t count,
                       const std::string& bytes) {
    json += (json.size() > 1 ? ",\"" : "\"") + name + R"(":{"dtype":")" + type + R"(","shape":[)" +
            std::to_string(count) + R"(],"data_offsets":[)" + std::to_string(data.size()) + "," +
            std::to_string(data.size() + bytes.size()) + "]}";
    data += bytes;
  };
  add("input_ids", ids_type, ids.size(), raw(ids));
  add("offsets", "I64", offsets.size(), raw(offsets));
  if (mask != nullptr) {
    add("loss_mask", "U8", mask->size(), raw(*mask));
  }
  json += "}";
  const std::uint64_t length = json.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + json + data;
}

TEST(SafetensorsTokens, AreReadOrRefusedByWhatIsWrong) {
  const Mask mask{1, 0, 1};
  const auto good = read("a.safetensors", token_tensors({0, 1, 3}, {7, 8, 9}, &mask));
  ASSERT_TRUE(good) << good.error().message();
  EXPECT_EQ(good->input_ids, (Ids{7, 8, 9}));
  EXPECT_EQ(good->offsets, (Offsets{0, 1, 3}));
  EXPECT_EQ(*good->loss_mask, mask);

  const Mask short_mask{1, 0};
  const Mask odd_mask{1, 2, 0};
  const std::string whole = token_tensors({0, 1, 3}, {7, 8, 9});
  const std::pair<const char*, std::pair<std::string, std::string>> cases[] = {
      {"offsets that begin above 0", {token_tensors({1, 3}, {7, 8, 9}), "offsets"}},
      {"offsets that end early", {token_tensors({0, 2}, {7, 8, 9}), "offsets"}},
      {"offsets that end late", {token_tensors({0, 4}, {7, 8, 9}), "offsets"}},
      {"offsets backwards", {token_tensors({0, 2, 1, 3}, {7, 8, 9}), "sample 1"}},
      {"an empty sample", {token_tensors({0, 1, 1, 3}, {7, 8, 9}), "sample 1"}},
      {"a negative offset", {token_tensors({0, -1, 3}, {7, 8, 9}), "sample 0"}},
      {"an offset of -2^63", {token_tensors({0, INT64_MIN, 3}, {7, 8, 9}), "sample 0"}},
      {"one offset", {token_tensors({0}, {}), "samples"}},
      {"no offsets", {token_tensors({}, {7}), "offsets"}},
      {"a negative id", {token_tensors({0, 1, 3}, {7, 8, -1}), "sample 1"}},
      {"an id outside", {token_tensors({0, 1, 3}, {7, 8, 1000}), "sample 1"}},
      {"a short mask", {token_tensors({0, 1, 3}, {7, 8, 9}, &short_mask), "loss_mask"}},
      {"a mask of 2", {token_tensors({0, 1, 3}, {7, 8, 9}, &odd_mask), "loss_mask"}},
      {"ids as u32", {token_tensors({0, 3}, {7, 8, 9}, nullptr, "U32"), "input_ids"}},
      {"cut", {whole.substr(0, whole.size() - 1), "a.safetensors"}},
      {"longer", {whole + "x", "a.safetensors"}},
      {"empty", {"", "a.safetensors"}},
      {"a web page", {"<html></html>", "web page"}},
  };
  for (const auto& [what, row] : cases) {
    expect_refused(read("a.safetensors", row.first), row.second, what);
  }
}

TEST(SafetensorsTokens, SayWhatMadeThem) {
  const std::string body(3 * 4 + 2 * 8, '\0');
  const auto with = [&](const std::string& metadata) {
    const std::string json = "{" + metadata +
                             R"("input_ids":{"dtype":"I32","shape":[3],"data_offsets":[0,12]},)"
                             R"("offsets":{"dtype":"I64","shape":[2],"data_offsets":[12,28]}})";
    std::string length(8, '\0');
    length[0] = static_cast<char>(json.size() & 0xFFU);
    length[1] = static_cast<char>(json.size() >> 8U);
    std::string text = length + json + body;
    text[text.size() - 8] = 3;
    return read("a.safetensors", text);
  };
  const auto data = with(R"("__metadata__":{"librarian_tokens":"1","chat_template_sha256":"bb",)"
                         R"("tokenizer_sha256":"aa"},)");
  ASSERT_TRUE(data) << data.error().message();
  EXPECT_EQ(data->origin.tokenizer_sha256, "aa");
  EXPECT_EQ(data->origin.chat_template_sha256, "bb");
  const auto silent = with("");
  ASSERT_TRUE(silent) << silent.error().message();
  EXPECT_EQ(silent->origin.tokenizer_sha256, "");
}

TEST(TokenLimits, CutLongSamplesAndKeepTheFirst) {
  const Mask mask{1, 0, 1, 0, 1, 0};
  const std::string text = token_tensors({0, 3, 4, 6}, {1, 2, 3, 4, 5, 2000}, &mask);
  expect_refused(read("a.safetensors", text), "sample 2", "id 2000");
  TokenLimits limits;
  limits.vocab_size = 1000;
  limits.samples_max = 2;
  auto data = read("a.safetensors", text, limits);
  ASSERT_TRUE(data) << "the bad id is in a sample that is not asked for";
  EXPECT_EQ(data->offsets, (Offsets{0, 3, 4}));
  EXPECT_EQ(data->input_ids, (Ids{1, 2, 3, 4}));
  EXPECT_EQ(data->loss_mask->size(), 4U);
  limits.samples_max = 100;
  limits.max_length = 1;
  data = read("a.safetensors", text, limits);
  ASSERT_TRUE(data);
  EXPECT_EQ(data->offsets, (Offsets{0, 1, 2, 3}));
  EXPECT_EQ(data->input_ids, (Ids{1, 4, 5}));
  EXPECT_EQ(*data->loss_mask, (Mask{1, 0, 1}));
  EXPECT_EQ(data->truncated_samples, 2U);
  EXPECT_GE(data->memory_bytes(), 3 * 4 + 4 * 8 + 3U);
}

}  // namespace
}  // namespace librarian::ingest
