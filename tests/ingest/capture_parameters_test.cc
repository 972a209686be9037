// Goal: what stands in brackets means one thing, has one name, and never two for one tensor.
// Method: tables over a model of 8 layers, written out by hand.
#include <gmock/gmock.h>

#include "ingest/capture_list.h"

namespace librarian::ingest {
namespace {

using ::testing::ElementsAreArray;
using Names = std::vector<std::string>;

constexpr std::int32_t kLayers = 8;

Names post(const std::vector<int>& layers) {
  Names names;
  for (const int layer : layers) {
    names.push_back("blocks." + std::to_string(layer) + ".resid_post");
  }
  return names;
}

struct OptionCase {
  std::vector<std::string> arguments;
  Names canonical;
};

// Catches: an option that is lost, or that changes what a job without it is called (such a job
// would no longer resume).
TEST(Captures, SayTheirOptionsInOneWay) {
  for (const OptionCase& row : {
           OptionCase{{"resid_post@3"}, {"blocks.3.resid_post"}},
           OptionCase{{"resid_post@3(positions=all)"}, {"blocks.3.resid_post"}},
           OptionCase{
               {"resid_post@[1,3](positions=loss)"},
               {"blocks.1.resid_post(positions=loss)", "blocks.3.resid_post(positions=loss)"}},
           OptionCase{{"hf:3(positions=last)"}, {"blocks.3.resid_pre(positions=last)"}},
           OptionCase{{"embed(positions=0..15)"}, {"embed(positions=0..15)"}},
           OptionCase{{"embed(positions=-4..-1)"}, {"embed(positions=-4..-1)"}},
           OptionCase{{"embed(positions=2..-2)"}, {"embed(positions=2..-2)"}},
           OptionCase{{"final.post_norm( positions=loss, dtype=fp8_e4m3)"},
                      {"final.post_norm(dtype=fp8_e4m3,positions=loss)"}},
           OptionCase{{"mlp_out@0(keep_mantissa_bits=5)"},
                      {"blocks.0.mlp_out(keep_mantissa_bits=5)"}},
           OptionCase{{"logits.topk"}, {"logits.topk(k=128)"}},
           OptionCase{{"logits.topk(positions=loss,k=7),embed"},
                      {"embed", "logits.topk(k=7,positions=loss)"}},
           OptionCase{{"logits.topk(positions=all)", "logits.topk"}, {"logits.topk(k=128)"}},
       }) {
    const auto list = parse_captures(row.arguments, {kLayers});
    ASSERT_TRUE(list) << row.arguments[0] << list.error().message();
    EXPECT_THAT(list->canonical(), ElementsAreArray(row.canonical)) << row.arguments[0];
  }
  // A small vocabulary has fewer than 128 tokens to name, and never more than all of them.
  const CaptureShape small{kLayers, true, {}, 50};
  EXPECT_EQ(parse_captures({"logits.topk"}, small)->logits->k, 50U);
  EXPECT_EQ(parse_captures({"logits.topk(k=50)"}, small)->logits->k, 50U);
  EXPECT_FALSE(parse_captures({"logits.topk(k=51)"}, small));
}

// Catches: one tensor kept twice, or one of the two ways silently dropped.
TEST(Captures, OfOneTensorInTwoWaysAreRefusedByBothNames) {
  const std::pair<std::string, std::string> rows[] = {
      {"resid_post@3", "resid_post@3(positions=loss)"},
      {"resid_post@2(dtype=fp8_e4m3)", "resid_pre@3"},
      {"hf:0(positions=last)", "embed"},
      {"final.pre_norm", "resid_post@-1(keep_mantissa_bits=4)"},
      {"logits.topk(k=4)", "logits.topk(k=5)"},
      {"logits.topk(k=4)", "logits.topk(k=4,positions=loss)"}};
  for (const auto& [first, second] : rows) {
    for (const auto& arguments : {Names{first, second}, Names{second, first}}) {
      const auto list = parse_captures(arguments, {kLayers});
      ASSERT_FALSE(list) << first;
      EXPECT_EQ(list.error().code(), ErrorCode::invalid_argument);
      EXPECT_NE(list.error().message().find(first), std::string::npos) << list.error().message();
      EXPECT_NE(list.error().message().find(second), std::string::npos);
    }
  }
  EXPECT_TRUE(
      parse_captures({"resid_post@2(dtype=fp8_e4m3)", "resid_pre@3(dtype=fp8_e4m3)"}, {kLayers}));
}

// Catches: a lossy or partial array that the next layer or a restart computes from.
TEST(Captures, KeepTheStateOnlyWhereTheyKeepItWhole) {
  const auto list = parse_captures(
      {"embed", "resid_post@1", "resid_post@2(positions=loss)", "resid_post@3(dtype=fp8_e4m3)",
       "resid_post@4(keep_mantissa_bits=6)", "resid_mid@5", "resid_pre@7"},
      {kLayers});
  ASSERT_TRUE(list);
  std::vector<std::int32_t> kept;
  for (std::int32_t layer = -1; layer < kLayers; ++layer) {
    if (list->keeps_state_of(layer)) {
      kept.push_back(layer);
    }
  }
  EXPECT_THAT(kept, ElementsAreArray({-1, 1, 6}));
}

// The expected layers are those of the trainers' own code for these depths.
TEST(Captures, PresetsAreTheLayersThatTheDraftsAreTrainedOn) {
  const auto arrays = [](const char* text, std::int32_t layers) {
    Names all;
    const auto list = parse_captures({text}, {layers});
    for (std::int32_t layer = -1; list && layer <= layers; ++layer) {
      const Names some = list->arrays_of(layer);
      all.insert(all.end(), some.begin(), some.end());
    }
    return all;
  };
  // Output of [1, N/2 - 1, N - 4], and the last layer's, which is the state before the norm.
  EXPECT_EQ(arrays("eagle3", 32), post({1, 15, 28, 31}));
  EXPECT_EQ(arrays("eagle3", 80), post({1, 39, 76, 79}));
  EXPECT_EQ(arrays("eagle3(dtype=fp8_e4m3)", 27), post({1, 12, 23, 26}));
  EXPECT_EQ(parse_captures({"eagle3"}, {32})->requested.back(), "final.pre_norm");
  EXPECT_EQ(arrays("dflash:5", 36), post({1, 9, 17, 25, 33, 35}));
  EXPECT_EQ(arrays("dflash:1", 36), post({18, 35}));
  EXPECT_EQ(arrays("dflash:2", 28), post({1, 25, 27}));
  // round(9.5) is 10 and round(10.5) too: halves go to the even number.
  EXPECT_EQ(arrays("dflash:3", 21), post({1, 10, 18, 20}));
  EXPECT_EQ(arrays("dflash:3", 23), post({1, 10, 20, 22}));
  EXPECT_FALSE(parse_captures({"eagle3"}, {3}));
  EXPECT_FALSE(parse_captures({"eagle3", "resid_post@1(positions=loss)"}, {8}));
}

}  // namespace
}  // namespace librarian::ingest
