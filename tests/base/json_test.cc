#include "base/json.h"

#include <gtest/gtest.h>

namespace librarian {
namespace {

TEST(ParseJson, KeepsTheOrderAndTheKindsOfValues) {
  const auto parsed = parse_json(R"({"b": [1, -2, 2.5, null, true], "a": {"x": "y"}} )", "doc");
  ASSERT_TRUE(parsed) << parsed.error().message();
  EXPECT_EQ(parsed->dump(), R"({"b":[1,-2,2.5,null,true],"a":{"x":"y"}})");
}

// Goal: every way of being lax that the reference reader was found to have is closed.
TEST(ParseJson, RefusesWhatAStrictReaderMust) {
  for (const char* text : {
           "",
           " {}",
           "[]",
           "1",
           "{",
           "{}x",
           R"({"a": 1, "a": 2})",
           R"({"o": {"a": 1, "a": 2}})",
           R"({"a": NaN})",
           R"({"a": 01})",
           R"({"a": 1,})",
           "{'a': 1}",
           "\xEF\xBB\xBF{}",
           "{\"a\": \"\xFF\"}",
           R"({"a": "\ud800"})",
           "{\"a\": \"\t\"}",
           "{} // no",
       }) {
    EXPECT_FALSE(parse_json(text, "doc")) << text;
  }
}

TEST(ParseJson, StopsAtEachLimit) {
  JsonLimits limits;
  limits.depth_max = 3;
  EXPECT_TRUE(parse_json(R"({"a": {"b": {}}})", "doc", limits));
  EXPECT_FALSE(parse_json(R"({"a": {"b": {"c": {}}}})", "doc", limits));
  limits = {};
  limits.values_max = 3;
  EXPECT_TRUE(parse_json(R"({"a": [1]})", "doc", limits));
  EXPECT_FALSE(parse_json(R"({"a": [1, 2]})", "doc", limits));
  limits = {};
  limits.key_bytes_max = 2;
  EXPECT_FALSE(parse_json(R"({"abc": 1})", "doc", limits));
  limits = {};
  limits.string_bytes_max = 2;
  EXPECT_FALSE(parse_json(R"({"a": "abc"})", "doc", limits));
  limits = {};
  limits.text_bytes_max = 4;
  EXPECT_FALSE(parse_json(R"({"a": 1})", "doc", limits));
}

TEST(ParseJson, SurvivesADeepBomb) {
  std::string bomb = R"({"a":)";
  bomb += std::string(1'000'000, '[');
  EXPECT_FALSE(parse_json(bomb, "doc"));
}

TEST(JsonMembers, NameTheDocumentAndTheKey) {
  const Json object = parse_json(R"({"n": 3, "s": "x", "neg": -1, "f": 1.5})", "doc").value();
  EXPECT_EQ(json_uint(object, "n", "doc").value(), 3U);
  EXPECT_EQ(json_string(object, "s", "doc").value(), "x");
  for (const char* key : {"s", "neg", "f", "absent"}) {
    const auto value = json_uint(object, key, "doc");
    ASSERT_FALSE(value) << key;
    EXPECT_NE(value.error().message().find(key), std::string::npos);
  }
}

}  // namespace
}  // namespace librarian
