// Goal: a key is read under any of its spellings, once, and errors name the one in the document.
// Method: small documents.
#include "weightmap/config_reader.h"

#include <gtest/gtest.h>

namespace librarian::weightmap {
namespace {

// Through text, as it comes from a file: numbers then have the kinds that the reader gives them.
Json parsed(const char* text) { return parse_json(text, "FILE").value_or(Json()); }

TEST(ConfigReader, ReadsAKeyUnderAnySpelling) {
  const Json document = parsed(R"({"n_embd": 64})");
  ConfigReader config(document, "FILE");
  ASSERT_TRUE(config.add_spelling("hidden_size", "n_embd"));
  EXPECT_EQ(config.unused(), std::vector<std::string>{"n_embd"}) << "not read yet";
  const auto size = config.count("hidden_size", 1, 1000);
  ASSERT_TRUE(size);
  EXPECT_EQ(*size, 64U);
  EXPECT_TRUE(config.unused().empty());
}

TEST(ConfigReader, NamesTheSpellingOfTheDocument) {
  const Json document = {{"n_embd", "x"}};
  ConfigReader config(document, "FILE");
  ASSERT_TRUE(config.add_spelling("hidden_size", "n_embd"));
  ASSERT_TRUE(config.add_spelling("num_hidden_layers", "n_layer"));
  EXPECT_EQ(config.count("hidden_size", 1, 9).error().message(),
            "FILE: 'n_embd' is \"x\", not a non-negative integer");
  EXPECT_EQ(config.count("num_hidden_layers", 1, 9).error().message(),
            "FILE: 'n_layer' is missing");
}

TEST(ConfigReader, RefusesSpellingsThatDiffer) {
  const Json differ = {{"rope_theta", 1e4}, {"rotary_emb_base", 5e4}};
  ConfigReader config(differ, "FILE");
  EXPECT_FALSE(config.add_spelling("rope_theta", "rotary_emb_base"));
  for (const Json& agree : {Json{{"rope_theta", 10000.0}, {"rotary_emb_base", 10000}},
                            Json{{"rope_theta", nullptr}, {"rotary_emb_base", 10000}},
                            Json{{"rope_theta", 10000}, {"rotary_emb_base", nullptr}}}) {
    ConfigReader reader(agree, "FILE");
    ASSERT_TRUE(reader.add_spelling("rope_theta", "rotary_emb_base")) << agree.dump();
    EXPECT_EQ(reader.number("rope_theta", 1, 1e9).value_or(0), 1e4) << agree.dump();
    EXPECT_TRUE(reader.unused().empty());
  }
}

TEST(ConfigReader, TakesSizesForGrantedOnlyInAPart) {
  const Json document = parsed(R"({"vocab_size": 100, "hidden_size": null})");
  ConfigReader whole(document, "FILE");
  EXPECT_EQ(whole.size("vocab_size", 1, 1000, 7).value_or(0), 100U);
  EXPECT_FALSE(whole.size("num_hidden_layers", 1, 1000, 32));
  ConfigReader part(document, "FILE");
  part.allow_absent_sizes();
  EXPECT_EQ(part.size("vocab_size", 1, 1000, 7).value_or(0), 100U);
  EXPECT_EQ(part.size("num_hidden_layers", 1, 1000, 32).value_or(0), 32U);
  EXPECT_FALSE(part.size("hidden_size", 1, 1000, 64)) << "null is not absent";
  EXPECT_EQ(part.sizes_taken(), std::vector<std::string>{"num_hidden_layers=32"});
}

TEST(ConfigReader, ReadsListsOfNumbersWhole) {
  const Json document =
      parsed(R"({"good": [1, 2.5], "word": [1, "2"], "high": [1, 99], "one": 1})");
  ConfigReader config(document, "FILE");
  EXPECT_EQ(config.numbers("good", 2, 0, 10).value_or(std::vector<double>{}),
            (std::vector<double>{1, 2.5}));
  EXPECT_FALSE(config.numbers("good", 3, 0, 10));
  for (const char* key : {"word", "high", "one", "absent"}) {
    EXPECT_FALSE(config.numbers(key, 2, 0, 10)) << key;
  }
}

}  // namespace
}  // namespace librarian::weightmap
