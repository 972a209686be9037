// Goal: frequencies are the very f32 values that transformers computes.
// Method: tables printed by ROPE_INIT_FUNCTIONS of transformers 4.57.6 with torch 2.13 on AVX-512;
// one unit in the last place is allowed, since torch's own powers differ by that between CPUs.
#include <gtest/gtest.h>

#include <cmath>

#include "weightmap/rope_config.h"

namespace librarian::weightmap {
namespace {

struct Printed {
  const char* name;
  double theta;
  const char* scaling;
  std::uint64_t rows;  ///< Of the sample.
  double multiplier;
  std::vector<float> frequencies;
};

class RopeTable : public ::testing::TestWithParam<Printed> {};

TEST_P(RopeTable, IsWhatTransformersComputes) {
  const Printed& want = GetParam();
  const auto document =
      parse_json(R"({"rope_scaling": )" + std::string(want.scaling) + "}", "FILE");
  ASSERT_TRUE(document) << document.error().message();
  ConfigReader reader(*document, "FILE");
  const auto rope = read_rope(reader, {.theta = want.theta}, Dialect::v4, 16, 4096);
  ASSERT_TRUE(rope) << rope.error().message();
  EXPECT_EQ(rope->spec.cos_sin_multiplier, static_cast<float>(want.multiplier));
  const std::vector<float> got = gpu_exec::rope_frequencies(rope->spec, want.rows);
  ASSERT_EQ(got.size(), want.frequencies.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_NEAR(got[i] / want.frequencies[i], 1.0, 1.3e-7) << "pair " << i;
  }
}

// max_position_embeddings 4096, head_dim 16.
const Printed table[] = {
    {"Default",
     500000.0,
     R"(null)",
     1,
     1.0,
     {1.0F, 0.193922758F, 0.0376060307F, 0.00729266508F, 0.00141421345F, 0.000274248188F,
      5.31829573e-05F, 1.03133852e-05F}},
    {"DefaultOddTheta",
     1234567.0,
     R"(null)",
     1,
     1.0,
     {1.0F, 0.173205093F, 0.0300000049F, 0.00519615365F, 0.000900000334F, 0.000155884642F,
      2.70000164e-05F, 4.67654036e-06F}},
    {"Linear",
     1000000.0,
     R"({"rope_type": "linear", "factor": 8.0})",
     1,
     1.0,
     {0.125F, 0.0222284924F, 0.00395284733F, 0.000702926656F, 0.000125000006F, 2.22284925e-05F,
      3.95284678e-06F, 7.02926684e-07F}},
    {"LinearFraction",
     10000.0,
     R"({"rope_type": "linear", "factor": 2.5})",
     1,
     1.0,
     {0.400000006F, 0.1264911F, 0.0399999991F, 0.0126491114F, 0.00399999972F, 0.00126491114F,
      0.000400000019F, 0.000126491112F}},
    {"Llama3",
     500000.0,
     R"({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024})",
     1,
     1.0,
     {1.0F, 0.193922758F, 0.0376060307F, 0.00131256948F, 0.000176776681F, 3.42810235e-05F,
      6.64786967e-06F, 1.28917316e-06F}},
    {"Llama3Short",
     10000.0,
     R"({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128})",
     1,
     1.0,
     {1.0F, 0.316227764F, 0.0366173759F, 0.000988211832F, 0.000312499993F, 9.88211832e-05F,
      3.12500015e-05F, 9.88211832e-06F}},
    {"Yarn",
     1000000.0,
     R"({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024})",
     1,
     1.138629436111989,
     {1.0F, 0.133370951F, 0.0158113893F, 0.00140585331F, 0.000250000012F, 4.44569851e-05F,
      7.90569356e-06F, 1.40585337e-06F}},
    {"YarnNotTruncated",
     150000.0,
     R"({"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": false, "beta_fast": 32.0, "beta_slow": 1.0})",
     1,
     1.3465735902799727,
     {1.0F, 0.225418001F, 0.0508132726F, 0.00679495931F, 0.000456483918F, 1.8188337e-05F,
      4.09997847e-06F, 9.24208962e-07F}},
    {"YarnTwoMscales",
     10000.0,
     R"({"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 512, "mscale": 1.0, "mscale_all_dim": 0.707})",
     1,
     1.0857263992561355,
     {1.0F, 0.239147246F, 0.0512499996F, 0.0084986221F, 0.000250000012F, 7.90569466e-05F,
      2.49999994e-05F, 7.90569447e-06F}},
    {"YarnMscaleAlone",
     1000000.0,
     R"({"rope_type": "yarn", "factor": 64.0, "original_max_position_embeddings": 256, "mscale": 1.0, "mscale_all_dim": 0.0, "beta_fast": 4.0})",
     1,
     1.4158883083359672,
     {1.0F, 0.177827939F, 0.0160584431F, 8.7865832e-05F, 1.56250007e-05F, 2.77856157e-06F,
      4.94105848e-07F, 8.78658355e-08F}},
    {"YarnGivenFactor",
     500000.0,
     R"({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "attention_factor": 1.2079441541679836})",
     1,
     1.2079441541679836,
     {1.0F, 0.137361944F, 0.0156691782F, 0.000911583134F, 0.000176776681F, 3.42810235e-05F,
      6.64786967e-06F, 1.28917316e-06F}},
    {"YarnOfTheModelsLength",
     10000.0,
     R"({"rope_type": "yarn", "factor": 2.0})",
     1,
     1.0693147180559945,
     {1.0F, 0.316227764F, 0.100000001F, 0.0276699308F, 0.00749999983F, 0.00197642366F,
      0.000500000024F, 0.000158113893F}},
    {"LongropeShort",
     10000.0,
     R"({"rope_type": "longrope", "short_factor": [1.0, 1.05, 1.1, 1.2, 1.4, 1.6, 1.8, 2.0], "long_factor": [1.0, 1.2, 2.0, 4.0, 8.5, 16.0, 32.0, 40.0], "factor": 8.0})",
     4096,
     1.118033988749895,
     {1.0F, 0.301169306F, 0.0909090936F, 0.0263523124F, 0.00714285718F, 0.00197642366F,
      0.000555555569F, 0.000158113893F}},
    {"LongropeLong",
     10000.0,
     R"({"rope_type": "longrope", "short_factor": [1.0, 1.05, 1.1, 1.2, 1.4, 1.6, 1.8, 2.0], "long_factor": [1.0, 1.2, 2.0, 4.0, 8.5, 16.0, 32.0, 40.0], "factor": 8.0})",
     4097,
     1.118033988749895,
     {1.0F, 0.263523132F, 0.0500000007F, 0.00790569466F, 0.00117647054F, 0.000197642366F,
      3.12500015e-05F, 7.90569447e-06F}},
    {"DynamicShort",
     10000.0,
     R"({"rope_type": "dynamic", "factor": 4.0})",
     4096,
     1.0,
     {1.0F, 0.316227764F, 0.100000001F, 0.0316227786F, 0.00999999978F, 0.00316227786F,
      0.00100000005F, 0.000316227786F}},
    {"DynamicGrown",
     10000.0,
     R"({"rope_type": "dynamic", "factor": 4.0})",
     10000,
     1.0,
     {1.0F, 0.240649298F, 0.0579120778F, 0.013936501F, 0.00335380877F, 0.000807091768F,
      0.000194226042F, 4.67403624e-05F}},
};

INSTANTIATE_TEST_SUITE_P(Transformers, RopeTable, ::testing::ValuesIn(table),
                         [](const auto& row) { return row.param.name; });

}  // namespace
}  // namespace librarian::weightmap
