// Goal: of the headers that strangers may send, only those are accepted whose every byte of data
// belongs to exactly one tensor; and the odd but lawful ones are.
// Method: tables of headers with the bytes of data behind them, and one large synthetic header.
#include "weightmap/safetensors_header.h"

#include <gtest/gtest.h>

#include <cstring>

namespace librarian::weightmap {
namespace {

struct HeaderCase {
  const char* what;
  std::string json;
  std::uint64_t data_bytes;
};

Result<std::vector<TensorInfo>> parse(const std::string& json, std::uint64_t data_bytes) {
  return parse_safetensors_header(json, kHeaderPrefixBytes + json.size() + data_bytes, "FILE");
}

std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
         offsets + "}";
}

std::string one(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return "{" + tensor("a", dtype, shape, offsets) + "}";
}

std::string prefix(std::uint64_t length) {
  return {reinterpret_cast<const char*>(&length), sizeof length};
}

// Catches: a check that was dropped or made lax; each row is one of them.
TEST(SafetensorsHeader, RefusesHostileAndOddHeadersAndNamesTheFile) {
  const std::string a = tensor("a", "U8", "[4]", "[0,4]");
  const std::string b = tensor("b", "U8", "[4]", "[4,8]");
  const std::string long_name(kTensorNameBytesMax + 1, 'n');
  const HeaderCase cases[] = {
      {"empty text", "", 0},
      {"only spaces", "   ", 0},
      {"no object", "[]", 0},
      {"a string", R"("x")", 0},
      {"half an object", "{", 0},
      {"space before the object", " {" + a + "}", 4},
      {"newline before the object", "\n{" + a + "}", 4},
      {"byte order mark", "\xEF\xBB\xBF{" + a + "}", 4},
      {"padding with a newline", "{" + a + "}\n", 4},
      {"padding with a tab", "{" + a + "}\t", 4},
      {"padding with NUL", "{" + a + "}" + std::string(1, '\0'), 4},
      {"text behind the object", "{" + a + "}  x", 4},
      {"two objects", "{" + a + "}{}", 4},
      {"comment", "{" + a + "/* */}", 4},
      {"comma at the end", "{" + a + ",}", 4},
      {"single quotes", "{'a':{}}", 0},
      {"NaN", one("U8", "[NaN]", "[0,4]"), 4},
      {"leading zero", one("U8", "[04]", "[0,4]"), 4},
      {"duplicate tensor", "{" + a + "," + a + "}", 4},
      {"duplicate tensor by escape", "{" + a + "," + tensor("\\u0061", "U8", "[0]", "[4,4]") + "}",
       4},
      {"duplicate field", R"({"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
       4},
      {"unknown field", R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"strides":[1]}})",
       4},
      {"no dtype", R"({"a":{"shape":[4],"data_offsets":[0,4]}})", 4},
      {"no shape", R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1},
      {"no offsets", R"({"a":{"dtype":"U8","shape":[4]}})", 4},
      {"empty tensor entry", R"({"a":{}})", 0},
      {"tensor is null", R"({"a":null})", 0},
      {"tensor is a list", R"({"a":[]})", 0},
      {"tensor is a number", R"({"a":1})", 0},
      {"unknown dtype", one("Q4_0", "[4]", "[0,4]"), 4},
      {"dtype in lower case", one("u8", "[4]", "[0,4]"), 4},
      {"empty dtype", one("", "[4]", "[0,4]"), 4},
      {"dtype is a number", R"({"a":{"dtype":8,"shape":[4],"data_offsets":[0,4]}})", 4},
      {"dtype is null", R"({"a":{"dtype":null,"shape":[4],"data_offsets":[0,4]}})", 4},
      {"empty name", "{" + tensor("", "U8", "[4]", "[0,4]") + "}", 4},
      {"NUL in the name", "{" + tensor("a\\u0000b", "U8", "[4]", "[0,4]") + "}", 4},
      {"newline in the name", "{" + tensor("a\\nb", "U8", "[4]", "[0,4]") + "}", 4},
      {"space in the name", "{" + tensor("a b", "U8", "[4]", "[0,4]") + "}", 4},
      {"escape sequence in the name", "{" + tensor("\\u001b[2J", "U8", "[4]", "[0,4]") + "}", 4},
      {"letters outside ASCII", "{" + tensor("\xC3\xA4", "U8", "[4]", "[0,4]") + "}", 4},
      {"broken UTF-8", "{" + tensor("\xFF", "U8", "[4]", "[0,4]") + "}", 4},
      {"half a surrogate", "{" + tensor("\\ud800", "U8", "[4]", "[0,4]") + "}", 4},
      {"a name of 513 bytes", "{" + tensor(long_name, "U8", "[4]", "[0,4]") + "}", 4},
      {"shape is a number", one("U8", "4", "[0,4]"), 4},
      {"shape is null", one("U8", "null", "[0,1]"), 1},
      {"shape is an object", one("U8", "{}", "[0,1]"), 1},
      {"nested shape", one("U8", "[[4]]", "[0,4]"), 4},
      {"a negative extent", one("U8", "[-4]", "[0,4]"), 4},
      {"two negative extents", one("U8", "[-2,-2]", "[0,4]"), 4},
      {"a fractional extent", one("U8", "[4.0]", "[0,4]"), 4},
      {"an extent with exponent", one("U8", "[4e0]", "[0,4]"), 4},
      {"an extent as text", one("U8", R"(["4"])", "[0,4]"), 4},
      {"a true extent", one("U8", "[true]", "[0,1]"), 1},
      {"an extent of 2^64", one("U8", "[18446744073709551616]", "[0,4]"), 4},
      {"rank 9", one("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1},
      {"a product that wraps to 4 bytes", one("U8", "[4611686018427387905,4]", "[0,4]"), 4},
      {"a product that wraps to 0", one("F32", "[4294967296,4294967296]", "[0,0]"), 0},
      {"bits that wrap", one("U8", "[2305843009213693953]", "[0,1]"), 1},
      {"overflow hidden before a zero", one("U8", "[4294967296,4294967296,4294967296,0]", "[0,0]"),
       0},
      {"half a byte", one("F4", "[1]", "[0,0]"), 0},
      {"half a byte rounded up", one("F4", "[3]", "[0,2]"), 2},
      {"6-bit elements across bytes", one("F6_E2M3", "[2]", "[0,2]"), 2},
      {"one offset", one("U8", "[4]", "[4]"), 4},
      {"three offsets", one("U8", "[4]", "[0,4,4]"), 4},
      {"no offset at all", one("U8", "[0]", "[]"), 0},
      {"offsets backwards", one("U8", "[4]", "[4,0]"), 4},
      {"negative offsets", one("U8", "[4]", "[-4,0]"), 4},
      {"fractional offsets", one("U8", "[4]", "[0,4.0]"), 4},
      {"offsets of other size", one("U8", "[4]", "[0,5]"), 5},
      {"offsets beyond the file", one("U8", "[4]", "[0,4]"), 3},
      {"offsets at the end of u64", one("U8", "[4]", "[18446744073709551611,18446744073709551615]"),
       4},
      {"one byte of data too many", "{" + a + "}", 5},
      {"one byte of data too few", "{" + a + "}", 3},
      {"data without tensors", "{}", 1},
      {"a hole", "{" + a + "," + tensor("b", "U8", "[4]", "[5,9]") + "}", 9},
      {"a hole at the start", one("U8", "[4]", "[1,5]"), 5},
      {"an overlap", "{" + a + "," + tensor("b", "U8", "[4]", "[3,7]") + "}", 7},
      {"twice the same bytes", "{" + a + "," + tensor("b", "U8", "[4]", "[0,4]") + "}", 4},
      {"an empty tensor inside another", "{" + a + "," + tensor("z", "U8", "[0]", "[2,2]") + "}",
       4},
      {"an empty tensor beyond the end", "{" + a + "," + tensor("z", "U8", "[0]", "[5,5]") + "}",
       4},
      {"metadata is a list", R"({"__metadata__":[]})", 0},
      {"metadata is text", R"({"__metadata__":"x"})", 0},
      {"metadata is null", R"({"__metadata__":null})", 0},
      {"a number in the metadata", R"({"__metadata__":{"x":1}})", 0},
      {"null in the metadata", R"({"__metadata__":{"x":null}})", 0},
      {"an object in the metadata", R"({"__metadata__":{"x":{}}})", 0},
      {"a list in the metadata", R"({"__metadata__":{"x":["y"]}})", 0},
      {"a metadata key twice", R"({"__metadata__":{"x":"1","x":"2"}})", 0},
      {"metadata twice", R"({"__metadata__":{},"__metadata__":{}})", 0},
      {"deep nesting", R"({"a":{"shape":)" + std::string(100'000, '['), 0},
  };
  static_assert(std::size(cases) >= 40);
  for (const HeaderCase& row : cases) {
    const auto parsed = parse(row.json, row.data_bytes);
    ASSERT_FALSE(parsed) << row.what;
    EXPECT_EQ(parsed.error().code(), ErrorCode::bad_input) << row.what;
    EXPECT_EQ(parsed.error().message().find("FILE: "), 0U) << row.what;
  }
}

// Catches: a check that refuses what published files really look like.
TEST(SafetensorsHeader, AcceptsEveryLawfulForm) {
  const std::string a = tensor("a", "U8", "[4]", "[0,4]");
  const HeaderCase cases[] = {
      {"no tensors", "{}", 0},
      {"only metadata", R"({"__metadata__":{"format":"pt"}})", 0},
      {"empty metadata", R"({"__metadata__":{},)" + a + "}", 4},
      {"metadata last", "{" + a + R"(,"__metadata__":{"k":"\u00e4\n"}})", 4},
      {"padded with spaces", "{" + a + "}       ", 4},
      {"white space inside", "{ \n\t" + a + " \r\n}", 4},
      {"rank 0", one("F32", "[]", "[0,4]"), 4},
      {"rank 8", one("U8", "[1,1,1,1,1,1,1,4]", "[0,4]"), 4},
      {"4-bit elements in whole bytes", one("F4", "[3,2]", "[0,3]"), 3},
      {"6-bit elements in whole bytes", one("F6_E3M2", "[4]", "[0,3]"), 3},
      {"8-bit floats", one("F8_E4M3", "[3]", "[0,3]"), 3},
      {"complex", one("C64", "[2]", "[0,16]"), 16},
      {"an empty tensor", one("BF16", "[0,16]", "[0,0]"), 0},
      {"unaligned f32",
       "{" + tensor("x", "U8", "[3]", "[0,3]") + "," + tensor("y", "F32", "[2]", "[3,11]") + "}",
       11},
      {"not in file order",
       "{" + tensor("y", "F32", "[2]", "[3,11]") + "," + tensor("x", "U8", "[3]", "[0,3]") + "}",
       11},
      {"an empty tensor at a border",
       "{" + a + "," + tensor("z", "U8", "[0]", "[4,4]") + "," + tensor("b", "U8", "[4]", "[4,8]") +
           "}",
       8},
      {"fields in another order", R"({"a":{"data_offsets":[0,4],"shape":[2],"dtype":"BF16"}})", 4},
      {"all printable letters",
       "{" + tensor("!#$%&()*+,-./:;<=>?@[]^_`{|}~", "U8", "[4]", "[0,4]") + "}", 4},
      {"a name of 512 bytes",
       "{" + tensor(std::string(kTensorNameBytesMax, 'n'), "U8", "[4]", "[0,4]") + "}", 4},
  };
  for (const HeaderCase& row : cases) {
    const auto parsed = parse(row.json, row.data_bytes);
    ASSERT_TRUE(parsed) << row.what << ": " << parsed.error().message();
    std::uint64_t at = kHeaderPrefixBytes + row.json.size();
    for (const TensorInfo& info : *parsed) {
      EXPECT_EQ(info.bytes.begin, at) << row.what;
      at = info.bytes.end;
    }
    EXPECT_EQ(at, kHeaderPrefixBytes + row.json.size() + row.data_bytes) << row.what;
  }
}

TEST(SafetensorsHeader, GivesEachTensorItsPlaceInTheFile) {
  const std::string json = "{" + tensor("late", "F32", "[2,3]", "[6,30]") + "," +
                           tensor("early", "BF16", "[3]", "[0,6]") + "}";
  const auto parsed = parse(json, 30);
  ASSERT_TRUE(parsed) << parsed.error().message();
  ASSERT_EQ(parsed->size(), 2U);
  EXPECT_EQ((*parsed)[0].name, "early");
  EXPECT_EQ((*parsed)[0].dtype, "BF16");
  EXPECT_EQ((*parsed)[1].name, "late");
  EXPECT_EQ((*parsed)[1].shape, (std::vector<std::uint64_t>{2, 3}));
  EXPECT_EQ((*parsed)[1].bytes.begin, 8 + json.size() + 6);
  EXPECT_EQ((*parsed)[1].bytes.end, 8 + json.size() + 30);
}

std::string many_tensors(std::size_t count) {
  std::string json = "{";
  for (std::size_t i = 0; i < count; ++i) {
    const std::string number = std::to_string(i);
    json += (i > 0 ? ",\"t" : "\"t") + number + R"(":{"dtype":"U8","shape":[1],"data_offsets":[)" +
            number + "," + std::to_string(i + 1) + "]}";
  }
  return json + "}";
}

// Goal: a large model's header works, a bomb is refused by count and not by running out of memory.
TEST(SafetensorsHeader, TakesManyTensorsAndRefusesTooMany) {
  const auto parsed = parse(many_tensors(200'000), 200'000);
  ASSERT_TRUE(parsed) << parsed.error().message();
  EXPECT_EQ(parsed->size(), 200'000U);
  EXPECT_EQ(parsed->back().name, "t199999");
  const auto bomb = parse(many_tensors(300'000), 300'000);
  ASSERT_FALSE(bomb);
  EXPECT_NE(bomb.error().message().find("more than 262144 tensors"), std::string::npos)
      << bomb.error().message();
}

TEST(HeaderLength, IsBoundedByTheFileAndTheLimit) {
  struct Row {
    const char* what;
    std::string first;
    std::uint64_t file_bytes;
    bool good;
  };
  const Row rows[] = {
      {"smallest file", prefix(2), 10, true},
      {"one byte short", prefix(2), 9, false},
      {"empty file", "", 0, false},
      {"seven bytes", std::string(7, '\0'), 7, false},
      {"only the length", prefix(2), 8, false},
      {"length 0", prefix(0), 100, false},
      {"length 1", prefix(1), 100, false},
      {"header up to the end", prefix(92), 100, true},
      {"header one beyond the end", prefix(93), 100, false},
      {"largest header", prefix(kHeaderBytesMax), kHeaderBytesMax + 8, true},
      {"above the largest", prefix(kHeaderBytesMax + 1), kHeaderBytesMax + 9, false},
      {"2^63", prefix(1ULL << 63U), ~0ULL, false},
      {"2^64 - 1", prefix(~0ULL), ~0ULL, false},
      {"2^64 - 8: wraps with the prefix", prefix(~0ULL - 7), ~0ULL, false},
      {"letters", "PK\x03\x04 a zip", 1'000'000, false},
  };
  for (const Row& row : rows) {
    const auto length = header_json_bytes(row.first, row.file_bytes, "FILE");
    EXPECT_EQ(length.has_value(), row.good) << row.what;
    if (!length) {
      EXPECT_EQ(length.error().code(), ErrorCode::bad_input) << row.what;
    }
  }
}

// Catches: a length whose lowest byte looks like '<'. The format asks for no alignment of the
// header, so any length is lawful.
TEST(HeaderLength, OfAnyLowestByteIsAccepted) {
  for (std::uint64_t length = 2; length < 2 + 3 * 256; ++length) {
    const auto read = header_json_bytes(prefix(length), 8 + length, "FILE");
    ASSERT_TRUE(read) << "a header of " << length << " bytes: " << read.error().message();
    EXPECT_EQ(*read, length);
  }
}

// Goal: the two files that people really have in place of weights are called by their name.
TEST(HeaderLength, RecognisesLfsPointersAndWebPages) {
  const std::string pointer =
      "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4976698672\n";
  const auto lfs = header_json_bytes(pointer, pointer.size(), "FILE");
  ASSERT_FALSE(lfs);
  EXPECT_NE(lfs.error().message().find("LFS"), std::string::npos) << lfs.error().message();
  for (const std::string page : {"<!DOCTYPE html><html>", "<html><body>Not found", "<?xml versi"}) {
    const auto html = header_json_bytes(page, 5000, "FILE");
    ASSERT_FALSE(html);
    EXPECT_NE(html.error().message().find("web page"), std::string::npos) << html.error().message();
  }
}

}  // namespace
}  // namespace librarian::weightmap
