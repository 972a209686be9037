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
  return parse_rope(reader, head_dim, max_positions, theta);
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
  };
  for (const auto& [key, scaling] : rows) {
    const auto rope = parse({{"rope_scaling", scaling}}, 64);
    ASSERT_FALSE(rope) << scaling.dump();
    EXPECT_NE(rope.error().message().find(std::string("'") + key + "'"), std::string::npos)
        << rope.error().message();
  }
}

}  // namespace
}  // namespace librarian::weightmap
