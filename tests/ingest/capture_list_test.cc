// Goal: every notation becomes the one canonical capture it means; nothing else is guessed.
// Method: tables over a model of 8 layers, canonical lists written out by hand.
#include "ingest/capture_list.h"

#include <gmock/gmock.h>

#include "ingest/array_plan.h"

namespace librarian::ingest {
namespace {

using ::testing::ElementsAreArray;
using Names = std::vector<std::string>;

constexpr std::int32_t kLayers = 8;

struct GoodCase {
  std::vector<std::string> arguments;
  Names requested;
  Names arrays;  ///< Of all steps, in order.
};

Names arrays_of(const CaptureList& list) {
  Names all;
  for (std::int32_t layer = -1; layer <= kLayers; ++layer) {
    const Names some = list.arrays_of(layer);
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

Names post(const std::vector<int>& layers) {
  Names names;
  for (const int layer : layers) {
    names.push_back("blocks." + std::to_string(layer) + ".resid_post");
  }
  return names;
}

// Catches: off by one in any notation, wrong ends of ranges, wrong home of an alias.
TEST(Captures, BecomeTheirCanonicalNames) {
  const Names all = post({0, 1, 2, 3, 4, 5, 6, 7});
  const GoodCase cases[] = {
      {{"resid_post"}, all, all},
      {{"resid_post@all"}, all, all},
      {{"resid_post@3"}, post({3}), post({3})},
      {{"resid_post@0"}, post({0}), post({0})},
      {{"resid_post@-1"}, post({7}), post({7})},
      {{"resid_post@-8"}, post({0}), post({0})},
      {{"resid_post@[0,5,-1]"}, post({0, 5, 7}), post({0, 5, 7})},
      {{"resid_post@[-1,5,0]"}, post({0, 5, 7}), post({0, 5, 7})},
      {{"resid_post@[ 1 , 2 ]"}, post({1, 2}), post({1, 2})},
      {{"resid_post@[3,3]"}, post({3}), post({3})},
      {{"resid_post@0..3"}, post({0, 1, 2, 3}), post({0, 1, 2, 3})},
      {{"resid_post@5..-1"}, post({5, 6, 7}), post({5, 6, 7})},
      {{"resid_post@-3..-1"}, post({5, 6, 7}), post({5, 6, 7})},
      {{"resid_post@4..4"}, post({4}), post({4})},
      {{"resid_post@every:1"}, all, all},
      {{"resid_post@every:2"}, post({1, 3, 5, 7}), post({1, 3, 5, 7})},
      {{"resid_post@every:3"}, post({2, 5}), post({2, 5})},
      {{"resid_post@every:8"}, post({7}), post({7})},
      {{"resid_post@spread:1"}, post({7}), post({7})},
      {{"resid_post@spread:2"}, post({3, 7}), post({3, 7})},
      {{"resid_post@spread:4"}, post({1, 3, 5, 7}), post({1, 3, 5, 7})},
      {{"resid_post@spread:8"}, all, all},
      {{"resid_post@1,resid_post@0"}, post({0, 1}), post({0, 1})},
      {{"resid_post@1", "resid_post@0"}, post({0, 1}), post({0, 1})},
      {{"resid_post@1", "resid_post@1"}, post({1}), post({1})},
      {{"embed"}, {"embed"}, {"embed"}},
      {{"hook_embed"}, {"embed"}, {"embed"}},
      {{"resid_pre@0"}, {"blocks.0.resid_pre"}, {"embed"}},
      {{"resid_pre@3"}, {"blocks.3.resid_pre"}, post({2})},
      {{"resid_pre@3,resid_post@2"}, {"blocks.2.resid_post", "blocks.3.resid_pre"}, post({2})},
      {{"final.pre_norm"}, {"final.pre_norm"}, post({7})},
      {{"final.post_norm"}, {"final.post_norm"}, {"final.post_norm"}},
      {{"blocks.2.resid_post"}, post({2}), post({2})},
      {{"blocks.-1.resid_post"}, post({7}), post({7})},
      {{"blocks.2.hook_resid_post"}, post({2}), post({2})},
      {{"blocks.2.hook_resid_pre"}, {"blocks.2.resid_pre"}, post({1})},
      {{"blocks.2.hook_resid_mid"}, {"blocks.2.resid_mid"}, {"blocks.2.resid_mid"}},
      {{"blocks.2.hook_attn_out"}, {"blocks.2.attn_out"}, {"blocks.2.attn_out"}},
      {{"blocks.2.hook_mlp_out"}, {"blocks.2.mlp_out"}, {"blocks.2.mlp_out"}},
      // transformers' hidden_states: [0] is the embedding, the last one is after the norm.
      {{"hf:0"}, {"blocks.0.resid_pre"}, {"embed"}},
      {{"hf:1"}, {"blocks.1.resid_pre"}, post({0})},
      {{"hf:7"}, {"blocks.7.resid_pre"}, post({6})},
      {{"hf:8"}, {"final.post_norm"}, {"final.post_norm"}},
      {{"hf:-1"}, {"final.post_norm"}, {"final.post_norm"}},
      {{"hf:-2"}, {"blocks.7.resid_pre"}, post({6})},
      {{"hf:-9"}, {"blocks.0.resid_pre"}, {"embed"}},
      {{"vllm:0"}, {"blocks.0.resid_pre"}, {"embed"}},
      {{"vllm:8"}, {"final.pre_norm"}, post({7})},
      {{"vllm:-1"}, {"final.pre_norm"}, post({7})},
      {{"mlp_out@2,attn_out@2,resid_mid@2,resid_post@2"},
       {"blocks.2.attn_out", "blocks.2.resid_mid", "blocks.2.mlp_out", "blocks.2.resid_post"},
       {"blocks.2.attn_out", "blocks.2.resid_mid", "blocks.2.mlp_out", "blocks.2.resid_post"}},
  };
  for (const GoodCase& row : cases) {
    SCOPED_TRACE(row.arguments[0]);
    const auto list = parse_captures(row.arguments, {kLayers});
    ASSERT_TRUE(list) << list.error().message();
    EXPECT_THAT(list->requested, ElementsAreArray(row.requested));
    EXPECT_THAT(arrays_of(*list), ElementsAreArray(row.arrays));
    EXPECT_EQ(list->array_count(), row.arrays.size());
    // Every requested name leads to an array that is written.
    for (const std::string& name : list->requested) {
      const auto alias = list->aliases.find(name);
      const std::string home = alias == list->aliases.end() ? name : alias->second;
      EXPECT_NE(std::find(row.arrays.begin(), row.arrays.end(), home), row.arrays.end()) << name;
    }
  }
}

// Catches: a mistake of the user that is turned into some capture.
TEST(Captures, ThatMeanNothingAreRefusedAndQuoted) {
  for (const char* text : {
           "",
           ",",
           "resid_post,",
           ",resid_post",
           "resid_post,,embed",
           "@",
           "@0",
           "resid_post@",
           "resid_post@8",
           "resid_post@-9",
           "resid_post@x",
           "resid_post@1.5",
           "resid_post@+1",
           "resid_post@0x1",
           "resid_post@ 1",
           "resid_post@1 ",
           "resid_post@99999999999999999999",
           "resid_post@-9223372036854775808",
           "resid_post@[]",
           "resid_post@[1",
           "resid_post@1]",
           "resid_post@[1,]",
           "resid_post@[,1]",
           "resid_post@[1;2]",
           "resid_post@[[1]]",
           "resid_post@(1)",
           "resid_post@3..1",
           "resid_post@..3",
           "resid_post@3..",
           "resid_post@1...3",
           "resid_post@1-3",
           "resid_post@0..8",
           "resid_post@every:0",
           "resid_post@every:9",
           "resid_post@every:-1",
           "resid_post@every:",
           "resid_post@every",
           "resid_post@spread:0",
           "resid_post@spread:9",
           "resid_post@spread:x",
           "resid_post@All",
           "resid_post@1@2",
           "Resid_post",
           "resid",
           "resid_pos",
           "embed@0",
           "final.post_norm@0",
           "final",
           "final.norm",
           "blocks",
           "blocks.",
           "blocks.1",
           "blocks.1.",
           "blocks..resid_post",
           "blocks.8.resid_post",
           "blocks.x.resid_post",
           "blocks.1.nope",
           "blocks.1.resid_post.x",
           "blocks.1.resid_post@1",
           "hf:",
           "hf:9",
           "hf:-10",
           "hf:x",
           "hf:1.0",
           "hf:0@1",
           "vllm:9",
           "vllm:",
           "vllm",
           "logits",
           "logits.topk@3",
           "logits.topk()",
           "logits.topk(k=0)",
           "logits.topk(k=-1)",
           "logits.topk(k=1k)",
           "logits.topk(k)",
           "logits.topk(k=4,k=4)",
           "logits.topk(dtype=fp8_e4m3)",
           "logits.topk(keep_mantissa_bits=4)",
           "attn.q",
           "resid_post()",
           "resid_post(positions)",
           "resid_post(positions=)",
           "resid_post(positions=first)",
           "resid_post(positions=3)",
           "resid_post(positions=3..)",
           "resid_post(positions=..3)",
           "resid_post(positions=3..1)",
           "resid_post(positions=-1..-3)",
           "resid_post(positions=0..x)",
           "resid_post(positions=0..99999999999)",
           "resid_post(positions=loss,positions=loss)",
           "resid_post(keep_mantissa_bits=2)",
           "resid_post(keep_mantissa_bits=7)",
           "resid_post(keep_mantissa_bits=x)",
           "resid_post(keep_mantissa_bits=3,dtype=fp8_e4m3)",
           "resid_post(dtype=fp8)",
           "resid_post(k=3)",
           "resid_post(positions=loss)x",
           "resid_post(positions=loss)@3",
           "resid_post((positions=loss))",
           "eagle3@1",
           "eagle3(positions=loss)",
           "eagle",
           "dflash",
           "dflash:",
           "dflash:0",
           "dflash:6",
           "dflash:x",
           "resid_post(dtype=f32)",
           "resid_post)",
           "(resid_post",
           "hook_resid_post",
           "hf:-9223372036854775808",
       }) {
    const auto list = parse_captures({text}, {kLayers});
    ASSERT_FALSE(list) << text;
    EXPECT_EQ(list.error().code(), ErrorCode::invalid_argument) << text;
    EXPECT_NE(list.error().message().find("--capture"), std::string::npos) << text;
  }
  EXPECT_FALSE(parse_captures({}, {kLayers}));
  EXPECT_FALSE(parse_captures({std::string("resid_post\0@1", 13)}, {kLayers}));
}

// Catches: spread that repeats a layer or misses the last one, for any depth.
TEST(Captures, SpreadAndEveryHoldForAnyDepth) {
  for (std::int32_t layers = 1; layers <= 130; ++layers) {
    for (std::int32_t n = 1; n <= layers; ++n) {
      const auto spread = parse_captures({"resid_post@spread:" + std::to_string(n)}, {layers});
      ASSERT_TRUE(spread);
      ASSERT_EQ(spread->requested.size(), static_cast<std::size_t>(n)) << layers;
      ASSERT_EQ(spread->last_layer(), layers - 1);
      const auto every = parse_captures({"resid_post@every:" + std::to_string(n)}, {layers});
      ASSERT_TRUE(every);
      ASSERT_EQ(every->requested.size(), static_cast<std::size_t>(layers / n));
    }
  }
}

// Catches: a router asked of a layer that has none, of fewer layers than have one, or kept lossily.
TEST(Captures, OfRoutersAreThoseOfTheLayersWithExperts) {
  const CaptureShape shape{.layer_count = kLayers, .routers = {{3, 4}, {5, 2}}};
  for (const char* all : {"router", "router@all"}) {
    const auto list = parse_captures({all}, shape);
    ASSERT_TRUE(list) << list.error().message();
    EXPECT_EQ(list->requested, (Names{"blocks.3.router", "blocks.5.router"}));
    EXPECT_EQ(list->routers, (std::map<std::int32_t, std::uint32_t>{{3, 4}, {5, 2}}));
    EXPECT_TRUE(arrays_of(*list).empty()) << "of the hidden size";
    EXPECT_EQ(list->last_layer(), 5);
    const std::vector<PlannedArray> arrays = planned_arrays(*list, {.shard_tokens = 64});
    ASSERT_EQ(arrays.size(), 4U);
    EXPECT_EQ(arrays[0].name, "blocks.3.router.ids");
    EXPECT_EQ(arrays[0].layout.width, 4U);
    EXPECT_EQ(arrays[0].layout.type, activation_store::StoredType::i32);
    EXPECT_EQ(arrays[3].name, "blocks.5.router.weights");
    EXPECT_EQ(arrays[3].layout.width, 2U);
    EXPECT_EQ(arrays[3].layout.type, activation_store::StoredType::f32);
  }
  EXPECT_EQ(parse_captures({"router@5(positions=last)"}, shape)->canonical(),
            (Names{"blocks.5.router(positions=last)"}));
  for (const char* wrong : {"router@4", "blocks.0.router", "router@0..3",
                            "router@3(dtype=fp8_e4m3)", "router@3(keep_mantissa_bits=4)"}) {
    const auto list = parse_captures({wrong}, shape);
    ASSERT_FALSE(list) << wrong;
    EXPECT_THAT(list.error().message(), ::testing::HasSubstr(wrong));
  }
  EXPECT_FALSE(parse_captures({"router"}, {kLayers})) << "a model without experts";
}

TEST(Captures, SayWhichStepIsTheLast) {
  const std::pair<const char*, std::int32_t> rows[] = {
      {"embed", -1},         {"resid_pre@0", -1},    {"resid_pre@3", 2}, {"attn_out@5", 5},
      {"final.pre_norm", 7}, {"final.post_norm", 8}, {"hf:-1", 8},       {"logits.topk", 8}};
  for (const auto& [text, last] : rows) {
    EXPECT_EQ(parse_captures({text}, {kLayers})->last_layer(), last) << text;
  }
}

struct NotationCase {
  const char* canonical;
  const char* hf;
  const char* vllm;
  const char* transformer_lens;
};

// `ln_final.hook_normalized` is not here: TransformerLens applies the norm's weight after that
// hook, so it is another tensor than final.post_norm wherever the weight is not one.
TEST(Notations, OfOtherToolsAreThoseOfTheTools) {
  for (const NotationCase& row : {
           NotationCase{"embed", "hf:0", "vllm:0", "hook_embed"},
           NotationCase{"blocks.0.resid_pre", "hf:0", "vllm:0", "blocks.0.hook_resid_pre"},
           NotationCase{"blocks.0.resid_post", "hf:1", "vllm:1", "blocks.0.hook_resid_post"},
           NotationCase{"blocks.6.resid_post", "hf:7", "vllm:7", "blocks.6.hook_resid_post"},
           NotationCase{"blocks.7.resid_post", "-", "vllm:8", "blocks.7.hook_resid_post"},
           NotationCase{"blocks.3.attn_out", "-", "-", "blocks.3.hook_attn_out"},
           NotationCase{"final.pre_norm", "-", "vllm:8", "-"},
       }) {
    const CaptureNotations names = capture_notations(row.canonical, {kLayers});
    EXPECT_EQ(names.hf, row.hf) << row.canonical;
    EXPECT_EQ(names.vllm, row.vllm) << row.canonical;
    EXPECT_EQ(names.transformer_lens, row.transformer_lens) << row.canonical;
  }
  EXPECT_EQ(capture_notations("final.post_norm", {kLayers}).hf, "hf:8");
}

// Goal: what `plan` prints can be given back, and means the same array.
TEST(Notations, GoThereAndBack) {
  for (const char* point : {"resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"}) {
    for (int layer = 0; layer < kLayers; ++layer) {
      const std::string canonical = "blocks." + std::to_string(layer) + "." + point;
      const Names arrays = arrays_of(*parse_captures({canonical}, {kLayers}));
      const CaptureNotations names = capture_notations(canonical, {kLayers});
      for (const std::string& name : {names.hf, names.vllm, names.transformer_lens}) {
        if (name != "-") {
          const auto back = parse_captures({name}, {kLayers});
          ASSERT_TRUE(back) << name;
          EXPECT_EQ(arrays_of(*back), arrays) << canonical << " as " << name;
        }
      }
    }
  }
}

}  // namespace
}  // namespace librarian::ingest
