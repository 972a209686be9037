// Goal: rotary frequencies are those of the published formulas.
// Method: the formulas again, in f64 and written differently, within f32 rounding.
// Source: Su et al. 2021 (theta^(-2i/d)); Chen et al. 2023 (linear); Llama 3.1 (by wavelength).
#include "weightmap/rope_config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>

namespace librarian::weightmap {
namespace {

Result<RopeConfig> parse(const Json& config, std::uint32_t head_dim,
                         std::uint32_t max_positions = 131072, double theta = 10000.0) {
  // Through text, as it comes from a file: numbers then have the kinds that the reader gives them.
  LIB_TRY(const Json document, parse_json(config.dump(), "FILE"));
  ConfigReader reader(document, "FILE");
  return read_rope(reader, {.theta = theta, .theta_v5 = theta}, Dialect::v4, head_dim,
                   max_positions);
}

double plain(double theta, std::uint32_t pair, std::uint32_t dim) {
  return std::exp(-std::log(theta) * 2.0 * pair / dim);
}

void expect_frequencies(const Result<RopeConfig>& rope, std::uint32_t dim,
                        const std::function<double(std::uint32_t)>& wanted) {
  ASSERT_TRUE(rope) << rope.error().message();
  EXPECT_EQ(rope->spec.rotary_dim, dim);
  EXPECT_EQ(rope->spec.cos_sin_multiplier, 1.0F);
  ASSERT_EQ(rope->spec.inverse_frequency.size(), dim / 2);
  for (std::uint32_t i = 0; i < dim / 2; ++i) {
    // f32 exponent, power and quotient: a few parts in 10^7, times ln(theta) for the exponent.
    EXPECT_NEAR(rope->spec.inverse_frequency[i] / wanted(i), 1.0, 3e-6) << "pair " << i;
  }
}

TEST(Rope, DefaultFollowsTheFormula) {
  for (const std::uint32_t dim : {2U, 64U, 80U, 96U, 128U, 256U}) {
    for (const double theta : {10000.0, 500000.0, 1e6, 1e9}) {
      expect_frequencies(parse({{"rope_theta", theta}}, dim), dim,
                         [&](std::uint32_t i) { return plain(theta, i, dim); });
    }
  }
}

TEST(Rope, LinearDividesEveryFrequency) {
  for (const double factor : {0.5, 1.0, 2.0, 2.5, 8.0}) {
    for (const char* key : {"type", "rope_type"}) {
      const auto rope = parse(
          {{"rope_theta", 10000.0}, {"rope_scaling", {{key, "linear"}, {"factor", factor}}}}, 64);
      expect_frequencies(rope, 64, [&](std::uint32_t i) { return plain(10000, i, 64) / factor; });
      ASSERT_TRUE(rope);
      EXPECT_EQ(rope->type, "linear");
    }
  }
}

/// Llama 3.1: long wavelengths are divided, short ones kept, and between them a linear mix in
/// turns over the original context.
double llama3(double frequency, double factor, double low, double high, double original) {
  const double turns = original * frequency / (2 * std::numbers::pi);
  const double keep = std::clamp((turns - low) / (high - low), 0.0, 1.0);
  return frequency * (keep + (1 - keep) / factor);
}

TEST(Rope, Llama3FollowsTheFormula) {
  for (const double factor : {8.0, 32.0}) {
    for (const std::uint32_t dim : {64U, 128U}) {
      const Json config = {{"rope_theta", 500000.0},
                           {"rope_scaling",
                            {{"rope_type", "llama3"},
                             {"factor", factor},
                             {"low_freq_factor", 1.0},
                             {"high_freq_factor", 4.0},
                             {"original_max_position_embeddings", 8192}}}};
      const auto rope = parse(config, dim);
      expect_frequencies(rope, dim, [&](std::uint32_t i) {
        return llama3(plain(500000, i, dim), factor, 1, 4, 8192);
      });
      ASSERT_TRUE(rope);
      // All three branches were in it.
      EXPECT_FLOAT_EQ(rope->spec.inverse_frequency[1], static_cast<float>(plain(500000, 1, dim)));
      EXPECT_NEAR(rope->spec.inverse_frequency.back() / plain(500000, dim / 2 - 1, dim), 1 / factor,
                  1e-6);
    }
  }
}

TEST(Rope, TakesItsDefaultsFromFamilyAndModel) {
  expect_frequencies(parse(Json::object(), 64, 4096, 1e6), 64,
                     [](std::uint32_t i) { return plain(1e6, i, 64); });
  expect_frequencies(parse({{"rope_theta", nullptr}, {"rope_scaling", nullptr}}, 64), 64,
                     [](std::uint32_t i) { return plain(10000, i, 64); });
  expect_frequencies(parse({{"rope_parameters", {{"rope_type", "default"}}}}, 64, 4096, 5e5), 64,
                     [](std::uint32_t i) { return plain(5e5, i, 64); });
}

Json longrope(std::size_t shorter, std::size_t longer) {
  return {{"type", "longrope"},
          {"short_factor", std::vector<double>(shorter, 1.0)},
          {"long_factor", std::vector<double>(longer, 2.0)}};
}

TEST(Rope, RefusesByTheNameOfTheKey) {
  const Json good = {{"rope_type", "llama3"},
                     {"factor", 8.0},
                     {"low_freq_factor", 1.0},
                     {"high_freq_factor", 4.0},
                     {"original_max_position_embeddings", 8192}};
  const auto change = [&](const char* key, const Json& value) {
    Json scaling = good;
    scaling[key] = value;
    return scaling;
  };
  const std::pair<const char*, Json> rows[] = {
      {"factor", change("factor", nullptr)},
      {"factor", change("factor", 0.5)},
      {"factor", change("factor", "8")},
      {"low_freq_factor", change("low_freq_factor", nullptr)},
      {"low_freq_factor", change("low_freq_factor", 0)},
      {"high_freq_factor", change("high_freq_factor", nullptr)},
      {"high_freq_factor", change("high_freq_factor", 1.0)},
      {"high_freq_factor", change("high_freq_factor", 0.5)},
      {"original_max_position_embeddings", change("original_max_position_embeddings", 0)},
      {"original_max_position_embeddings", change("original_max_position_embeddings", 8192.5)},
      {"attention_factor", change("attention_factor", 1.0)},
      {"mrope_section", change("mrope_section", {1, 2})},
      {"factor", {{"type", "linear"}}},
      {"factor", {{"type", "linear"}, {"factor", 0}}},
      {"factor", {{"type", "default"}, {"factor", 2.0}}},
      {"beta_fast", {{"type", "linear"}, {"factor", 2.0}, {"beta_fast", 32}}},
      {"type", {{"type", 7}}},
      {"rope_type", {{"rope_type", 7}}},
      {"truncate", {{"type", "linear"}, {"factor", 2.0}, {"truncate", false}}},
      {"factor", {{"type", "yarn"}}},
      {"factor", {{"type", "yarn"}, {"factor", 0}}},
      {"truncate", {{"type", "yarn"}, {"factor", 2.0}, {"truncate", 1}}},
      {"attention_factor", {{"type", "yarn"}, {"factor", 2.0}, {"attention_factor", "1"}}},
      {"factor", {{"type", "dynamic"}}},
      {"factor", {{"type", "dynamic"}, {"factor", 0.5}}},
      {"original_max_position_embeddings",
       {{"type", "dynamic"}, {"factor", 2.0}, {"original_max_position_embeddings", 4096}}},
      {"short_factor", {{"type", "longrope"}, {"factor", 2.0}}},
      {"long_factor", longrope(32, 31)},
      {"short_factor", longrope(31, 32)},
      {"factor", longrope(32, 32)},
      {"factor", {{"type", "linear"}, {"rope_type", "default"}, {"factor", 2.0}}},
      {"llama_4_scaling_beta", {{"type", "default"}, {"llama_4_scaling_beta", 0.1}}},
      {"rope_theta", {{"type", "default"}, {"rope_theta", 5000.0}}},
  };
  for (const auto& [key, scaling] : rows) {
    const auto rope = parse({{"rope_scaling", scaling}}, 64);
    ASSERT_FALSE(rope) << scaling.dump();
    EXPECT_NE(rope.error().message().find(std::string("'") + key + "'"), std::string::npos)
        << rope.error().message();
  }
}

Result<RopeConfig> parse_with(const RopeForm& form, Dialect dialect, const std::string& config) {
  LIB_TRY(const Json document, parse_json(config, "FILE"));
  ConfigReader reader(document, "FILE");
  return read_rope(reader, form, dialect, 64, 4096);
}

// Goal: 5 writes into one object what 4 spreads over three keys.
TEST(Rope, IsTheSameInBothDialects) {
  constexpr RopeForm kPartial{.partial = true};
  const auto four = parse_with(kPartial, Dialect::v4,
                               R"({"rope_theta": 5e5, "partial_rotary_factor": 0.5,
          "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}})");
  const auto five =
      parse_with(kPartial, Dialect::v5,
                 R"({"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0,
          "partial_rotary_factor": 0.5, "original_max_position_embeddings": 512}})");
  ASSERT_TRUE(four) << four.error().message();
  ASSERT_TRUE(five) << five.error().message();
  EXPECT_EQ(four->spec.rotary_dim, 32U);
  EXPECT_EQ(four->spec.inverse_frequency, five->spec.inverse_frequency);
  EXPECT_EQ(four->spec.cos_sin_multiplier, five->spec.cos_sin_multiplier);
  EXPECT_FALSE(parse_with({}, Dialect::v4, R"({"partial_rotary_factor": 0.5})"))
      << "a family that turns whole heads";
}

TEST(Rope, OfLayersWithAWindowIsTheLocalOne) {
  constexpr RopeForm kGemma{.rule = RopeRule::local_theta, .theta = 1e6, .theta_v5 = 1e6};
  const auto four = parse_with(kGemma, Dialect::v4,
                               R"({"rope_theta": 5e5, "rope_local_base_freq": 2e4,
          "rope_scaling": {"rope_type": "linear", "factor": 8.0}})");
  const auto five = parse_with(kGemma, Dialect::v5,
                               R"({"rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}})");
  for (const auto* rope : {&four, &five}) {
    ASSERT_TRUE(*rope) << rope->error().message();
    EXPECT_EQ((*rope)->type, "linear");
    EXPECT_NEAR((*rope)->spec.inverse_frequency[1], plain(5e5, 1, 64) / 8, 1e-6);
    EXPECT_NEAR((*rope)->local.inverse_frequency[1], plain(2e4, 1, 64), 1e-6);
  }
  const auto absent = parse_with(kGemma, Dialect::v5, "{}");
  ASSERT_TRUE(absent) << absent.error().message();
  EXPECT_NEAR(absent->spec.inverse_frequency[1], plain(1e6, 1, 64), 1e-6);
  EXPECT_NEAR(absent->local.inverse_frequency[1], plain(1e4, 1, 64), 1e-6);
  for (const char* flat : {R"({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}})",
                           R"({"rope_parameters": {"chunked_attention": {"rope_theta": 1e4}}})"}) {
    EXPECT_FALSE(parse_with(kGemma, Dialect::v5, flat)) << flat;
  }
  constexpr RopeForm kOlmo{.rule = RopeRule::local_plain, .theta_v5 = 5e5};
  const auto olmo =
      parse_with(kOlmo, Dialect::v4,
                 R"({"rope_theta": 3e5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}})");
  ASSERT_TRUE(olmo) << olmo.error().message();
  EXPECT_NEAR(olmo->spec.inverse_frequency[1], plain(3e5, 1, 64) / 4, 1e-6);
  EXPECT_NEAR(olmo->local.inverse_frequency[1], plain(3e5, 1, 64), 1e-6);
}

// Goal: the one default that two versions disagree on is taken from the writer, and said.
TEST(Rope, WarnsWhenTheVersionsDisagree) {
  constexpr RopeForm kCohere{.theta_v5 = 5e5};
  for (const Dialect dialect : {Dialect::v4, Dialect::v5}) {
    const Json document = Json::object();
    ConfigReader reader(document, "FILE");
    const auto rope = read_rope(reader, kCohere, dialect, 64, 4096);
    ASSERT_TRUE(rope);
    EXPECT_NEAR(rope->spec.inverse_frequency[1], plain(dialect == Dialect::v4 ? 1e4 : 5e5, 1, 64),
                1e-6);
    ASSERT_EQ(reader.warnings().size(), 1U);
    EXPECT_NE(reader.warnings()[0].find("'rope_theta' is absent"), std::string::npos);
  }
  const Json given = {{"rope_theta", 1e4}};
  ConfigReader reader(given, "FILE");
  ASSERT_TRUE(read_rope(reader, kCohere, Dialect::v4, 64, 4096));
  EXPECT_TRUE(reader.warnings().empty());
}

// Where the trained context of "longrope" stands, and what counts when it stands twice.
TEST(Rope, FindsTheContextThatLongropeCountsFrom) {
  Json scaling = longrope(32, 32);
  scaling["factor"] = 4.0;
  constexpr RopeForm kPhi{.original = 2048, .longrope_aliases = true};
  const auto rows = [&](const RopeForm& form, Dialect dialect, Json document) {
    const auto rope = parse_with(form, dialect, document.dump());
    EXPECT_TRUE(rope) << rope.error().message();
    return rope ? rope->spec.short_rows_max : 0;
  };
  EXPECT_EQ(rows({}, Dialect::v4, {{"rope_scaling", scaling}}), 4096U) << "the model's length";
  EXPECT_EQ(rows(kPhi, Dialect::v4, {{"rope_scaling", scaling}}), 2048U) << "the family's";
  EXPECT_EQ(rows(kPhi, Dialect::v4,
                 {{"rope_scaling", scaling}, {"original_max_position_embeddings", 1024}}),
            1024U);
  Json inside = scaling;
  inside["original_max_position_embeddings"] = 512;
  EXPECT_EQ(rows({}, Dialect::v5, {{"rope_parameters", inside}}), 512U);
  EXPECT_FALSE(parse_with({}, Dialect::v4, Json({{"rope_scaling", inside}}).dump()))
      << "transformers 4 does not look there";
  scaling["type"] = "su";
  EXPECT_EQ(rows(kPhi, Dialect::v4, {{"rope_scaling", scaling}}), 2048U) << "an old spelling";
  EXPECT_FALSE(parse_with({}, Dialect::v4, Json({{"rope_scaling", scaling}}).dump()));
}

TEST(Rope, ReadsTheTemperatureOfTheFamilyThatHasOne) {
  constexpr RopeForm kMinistral{
      .temperature = true, .absent = R"({"rope_type": "default", "llama_4_scaling_beta": 0.5})"};
  const auto rope =
      parse_with(kMinistral, Dialect::v5,
                 R"({"rope_parameters": {"rope_type": "yarn", "type": "yarn", "factor": 16.0,
          "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 1024}})");
  ASSERT_TRUE(rope) << rope.error().message();
  EXPECT_EQ(rope->temperature_beta, 0.1);
  EXPECT_EQ(rope->temperature_original, 1024U);
  const auto absent = parse_with(kMinistral, Dialect::v5, "{}");
  ASSERT_TRUE(absent) << absent.error().message();
  EXPECT_EQ(absent->temperature_beta, 0.5);
  EXPECT_EQ(absent->temperature_original, 4096U);
  EXPECT_FALSE(parse_with(kMinistral, Dialect::v5, R"({"rope_parameters": {}})"))
      << "transformers would multiply by nothing";
}

// Catches: the theta of the family's own rope taken for the one that stands in the file; the
// family's own rope where a file of transformers 4 says that there is none.
TEST(Rope, OfTheFamilyStandsForWhatTheFileDoesNotSay) {
  constexpr RopeForm kYarn{.theta = 150000.0,
                           .theta_v5 = 150000.0,
                           .absent = R"({"rope_type": "yarn", "factor": 32.0, "truncate": false,
                                         "original_max_position_embeddings": 4096})"};
  const auto said = [&](double theta) {
    return parse_with(
        kYarn, Dialect::v4,
        Json({{"rope_theta", theta}, {"rope_scaling", parse_json(kYarn.absent, "").value()}})
            .dump());
  };
  for (const Dialect dialect : {Dialect::v4, Dialect::v5}) {
    EXPECT_EQ(parse_with(kYarn, dialect, "{}")->spec, said(150000.0)->spec);
    EXPECT_EQ(parse_with(kYarn, dialect, R"({"rope_theta": 500.0})")->spec, said(500.0)->spec);
  }
  constexpr const char* kNull = R"({"rope_scaling": null})";
  EXPECT_EQ(parse_with(kYarn, Dialect::v4, kNull)->type, "default");
  EXPECT_EQ(parse_with(kYarn, Dialect::v5, kNull)->type, "yarn");
}

}  // namespace
}  // namespace librarian::weightmap
