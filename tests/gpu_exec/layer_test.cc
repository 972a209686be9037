// The whole layer: accurate, the same bits for a row in any block, and its rules for callers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/gpu_exec/reference.h"

namespace librarian::gpu_exec {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::uint32_t kHidden = 72;

LayerSpec windowed_layer() {
  LayerSpec layer = awkward_layer();
  layer.attention.window = 50;
  return layer;
}

/// Family flags that this layer combines: all of them, and none.
LayerSpec plain_layer() {
  LayerSpec layer;
  layer.attention.heads = 4;
  layer.attention.kv_heads = 4;
  layer.attention.head_dim = 16;
  layer.attention.scale = 0.25F;
  layer.attention.rope = default_rope(16);
  layer.mlp.width = 96;
  return layer;
}

std::vector<Flavour> all_flavours() {
  const NormSpec rms{NormKind::rms, false, false, 1e-5F};
  std::vector<Flavour> all = flavours();
  all.push_back({"awkward", awkward_layer(), rms});
  all.push_back({"windowed", windowed_layer(), rms});
  all.push_back({"plain", plain_layer(), rms});
  return all;
}

class LayerOnPath : public testing::TestWithParam<CpuIsa> {};

// Goal: every capture of an f32 run is the definition's.
// Method: double precision, sample by sample, with all optional parts and with none.
TEST_P(LayerOnPath, IsAccurate) {
  const auto device = cpu_device(GetParam(), 2);
  for (const Flavour& flavour : all_flavours()) {
    const TestLayer layer = make_layer(kHidden, flavour.layer, DType::bf16, 1, flavour.norm);
    const std::vector<Segment> segments = segments_of({1, 90, 33});
    const auto x = TestRandom(21).vector(std::size_t{124} * kHidden, 2.0F);
    const auto executor = loaded_executor(layer, *device, DType::f32, 124, 0);
    RecordingSink sink;
    const Bytes state = run_block(*executor, segments, to_bytes(x, DType::f32), sink);
    EXPECT_EQ(state, sink.rows[CapturePoint::resid_post]);
    ReferenceLayer expected;
    Bytes experts;
    const Rows rows = to_rows(x, kHidden);
    for (const Segment& segment : segments) {
      const auto begin = rows.begin() + static_cast<std::ptrdiff_t>(segment.row_begin);
      const ReferenceLayer one =
          reference_layer(layer, Rows(begin, begin + static_cast<std::ptrdiff_t>(segment.rows)));
      const auto append = [](Rows& to, const Rows& from) {
        to.insert(to.end(), from.begin(), from.end());
      };
      append(expected.attn_out, one.attn_out);
      append(expected.resid_mid, one.resid_mid);
      append(expected.mlp_out, one.mlp_out);
      append(expected.resid_post, one.resid_post);
      append(expected.expert_weights, one.expert_weights);
      for (const std::vector<std::int32_t>& chosen : one.experts) {
        const auto bytes = std::as_bytes(std::span(chosen));
        experts.insert(experts.end(), bytes.begin(), bytes.end());
      }
    }
    const auto error = [&](CapturePoint point, const Rows& truth) {
      return worst_row_error(to_floats(sink.rows[point], DType::f32), truth);
    };
    EXPECT_LE(error(CapturePoint::attn_out, expected.attn_out), 1e-5) << flavour.name;
    EXPECT_LE(error(CapturePoint::mlp_out, expected.mlp_out), 1e-5) << flavour.name;
    EXPECT_LE(error(CapturePoint::resid_post, expected.resid_post), 1e-5) << flavour.name;
    if (flavour.layer.moe.experts != 0) {
      EXPECT_EQ(sink.rows[CapturePoint::router_ids], experts) << flavour.name;
      EXPECT_LE(error(CapturePoint::router_weights, expected.expert_weights), 1e-5) << flavour.name;
    }
    if (flavour.layer.residual == Residual::parallel) {
      EXPECT_FALSE(sink.rows.contains(CapturePoint::resid_mid)) << flavour.name;
    } else {
      EXPECT_LE(error(CapturePoint::resid_mid, expected.resid_mid), 1e-5) << flavour.name;
    }
  }
}

// Goal: a row has the same bits whatever block, tile, neighbours or thread count it met.
// Method: three samples in one block of two threads, against: each alone on one thread, the
// samples in another order, and the long one in tiles; all types, every capture.
TEST_P(LayerOnPath, GivesARowTheSameBitsInAnyBlock) {
  for (const DType type : {DType::bf16, DType::f16, DType::f32}) {
    for (const Flavour& flavour : all_flavours()) {
      const TestLayer layer = make_layer(kHidden, flavour.layer, DType::bf16, 1, flavour.norm);
      const std::uint64_t row_bytes = kHidden * dtype_bytes(type);
      const std::vector<std::uint64_t> lengths = {33, 777, 1};
      std::vector<Bytes> samples;
      for (const std::uint64_t length : lengths) {
        samples.push_back(to_bytes(TestRandom(length).vector(length * kHidden, 2.0F), type));
      }
      const auto two = cpu_device(GetParam(), 2);
      const auto one = cpu_device(GetParam(), 1);
      const auto big = loaded_executor(layer, *two, type, 811, 777);
      const auto small = loaded_executor(layer, *one, type, 300, 777);

      const auto together = [&](LayerExecutor& executor, const std::vector<std::size_t>& order) {
        Bytes state;
        std::vector<std::uint64_t> ordered;
        for (const std::size_t i : order) {
          state.insert(state.end(), samples[i].begin(), samples[i].end());
          ordered.push_back(lengths[i]);
        }
        RecordingSink sink;
        run_block(executor, segments_of(ordered), state, sink);
        return sink;
      };
      /// The sample's rows of each capture of a block where it begins at `row`.
      const auto part_of = [&](RecordingSink& sink, std::uint64_t row, std::uint64_t rows) {
        std::map<CapturePoint, Bytes> part;
        for (const auto& [point, bytes] : sink.rows) {
          const std::size_t bytes_of_row = bytes.size() / 811;
          const auto begin = bytes.begin() + static_cast<std::ptrdiff_t>(row * bytes_of_row);
          part[point] = Bytes(begin, begin + static_cast<std::ptrdiff_t>(rows * bytes_of_row));
        }
        return part;
      };
      RecordingSink all = together(*big, {0, 1, 2});
      RecordingSink turned = together(*big, {2, 1, 0});
      EXPECT_EQ(part_of(all, 0, 33), part_of(turned, 778, 33));
      EXPECT_EQ(part_of(all, 33, 777), part_of(turned, 1, 777));
      EXPECT_EQ(part_of(all, 810, 1), part_of(turned, 0, 1));
      EXPECT_EQ(part_of(all, 0, 33), together(*small, {0}).rows);
      EXPECT_EQ(part_of(all, 810, 1), together(*small, {2}).rows);

      for (const std::vector<std::uint64_t>& tiles :
           {std::vector<std::uint64_t>{300, 300, 177}, {1, 128, 64, 63, 300, 221}}) {
        RecordingSink sink;
        std::uint64_t position = 0;
        for (const std::uint64_t rows : tiles) {
          const auto begin = samples[1].begin() + static_cast<std::ptrdiff_t>(position * row_bytes);
          const Segment segment{0, rows, position, 777};
          run_block(*small, {&segment, 1},
                    Bytes(begin, begin + static_cast<std::ptrdiff_t>(rows * row_bytes)), sink);
          position += rows;
        }
        EXPECT_EQ(sink.rows, part_of(all, 33, 777)) << dtype_name(type) << " tile " << tiles[0];
      }
    }
  }
}

// Goal: the number of rows in a block changes nothing, from one to thousands.
// Method: samples of 1 to 4096 rows alone on one thread, then all in one block on three.
TEST_P(LayerOnPath, GivesSamplesOfAnyLengthTheSameBits) {
  const std::vector<std::uint64_t> lengths = {1, 7, 33, 128, 777, 4096};
  const TestLayer layer = make_layer(kHidden, windowed_layer(), DType::bf16);
  const auto one = cpu_device(GetParam(), 1);
  const auto three = cpu_device(GetParam(), 3);
  const auto alone = loaded_executor(layer, *one, DType::bf16, 4096, 4096);
  const auto together = loaded_executor(layer, *three, DType::bf16, 5042, 4096);
  Bytes all;
  Bytes expected;
  RecordingSink ignored;
  for (const std::uint64_t length : lengths) {
    const Bytes sample = to_bytes(TestRandom(length).vector(length * kHidden, 2.0F), DType::bf16);
    all.insert(all.end(), sample.begin(), sample.end());
    const Bytes state = run_block(*alone, segments_of({length}), sample, ignored);
    expected.insert(expected.end(), state.begin(), state.end());
  }
  EXPECT_EQ(run_block(*together, segments_of(lengths), all, ignored), expected);
}

INSTANTIATE_TEST_SUITE_P(Paths, LayerOnPath, testing::ValuesIn(machine_isas()),
                         [](const auto& isa) { return std::string(cpu_isa_name(isa.param)); });

TEST(LayerExecutor, CapturesOnlyWhatIsWantedAndAddsUp) {
  const TestLayer layer = make_layer(kHidden, awkward_layer(), DType::f32);
  const auto device = cpu_device(best_cpu_isa(), 1);
  const auto executor = loaded_executor(layer, *device, DType::f32, 8, 0);
  const auto x = TestRandom(1).vector(std::size_t{8} * kHidden, 1.0F);
  RecordingSink sink;
  const auto post =
      to_floats(run_block(*executor, segments_of({8}), to_bytes(x, DType::f32), sink), DType::f32);
  const auto attn = to_floats(sink.rows[CapturePoint::attn_out], DType::f32);
  const auto mid = to_floats(sink.rows[CapturePoint::resid_mid], DType::f32);
  const auto mlp = to_floats(sink.rows[CapturePoint::mlp_out], DType::f32);
  for (std::size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(mid[i], x[i] + attn[i]);
    ASSERT_EQ(post[i], mid[i] + mlp[i]);
  }
  RecordingSink picky;
  picky.refused = {{CapturePoint::attn_out, true},
                   {CapturePoint::resid_mid, true},
                   {CapturePoint::mlp_out, true}};
  run_block(*executor, segments_of({8}), to_bytes(x, DType::f32), picky);
  ASSERT_EQ(picky.rows.size(), 1U);
  EXPECT_EQ(picky.rows[CapturePoint::resid_post], to_bytes(post, DType::f32));
}

// Goal: an error of the sink and a stop request end the run as such.
TEST(LayerExecutor, PassesOnErrorsAndStops) {
  const TestLayer layer = make_layer(kHidden, plain_layer(), DType::bf16);
  const auto device = cpu_device(best_cpu_isa(), 1);
  const auto executor = loaded_executor(layer, *device, DType::bf16, 8, 0);
  Bytes state(8 * kHidden * 2);
  const std::vector<Segment> segments = segments_of({8});
  const Block block{segments, 8};
  RecordingSink failing;
  failing.failure = Error(ErrorCode::no_space, "full");
  failing.begin({&block, 1}, state);
  EXPECT_EQ(executor->run({&block, 1}, failing, {}).error().code(), ErrorCode::no_space);
  std::stop_source source;
  source.request_stop();
  RecordingSink sink;
  sink.begin({&block, 1}, state);
  EXPECT_EQ(executor->run({&block, 1}, sink, source.get_token()).error().code(),
            ErrorCode::cancelled);
}

TEST(LayerExecutor, NormalisesTheLastRows) {
  const TestLayer layer = make_layer(kHidden, plain_layer(), DType::bf16);
  const auto device = cpu_device(best_cpu_isa(), 1);
  const auto executor = loaded_executor(layer, *device, DType::f32, 20, 0);
  executor->begin_layer(0);  // The norm stays: no layer owns it.
  const auto x = TestRandom(1).vector(std::size_t{20} * kHidden, 5.0F);
  Bytes normed(x.size() * 4);
  ASSERT_TRUE(executor->run_final_norm(to_bytes(x, DType::f32), normed));
  EXPECT_LE(
      worst_row_error(to_floats(normed, DType::f32),
                      reference_norm(to_rows(x, kHidden), layer.weights.at(WeightRole::final_norm),
                                     nullptr, layer.model.norm)),
      1e-6);
}

std::string run_error(LayerExecutor& executor, const std::vector<Segment>& segments,
                      std::uint64_t rows, std::size_t state_rows) {
  class OneBlock final : public LayerIo {
   public:
    explicit OneBlock(std::size_t bytes) : state_(bytes) {}
    bool wants(CapturePoint) const override { return false; }
    Result<std::span<std::byte>> load(std::size_t) override { return std::span(state_); }
    Result<void> capture(CapturePoint, std::size_t, std::span<const std::byte>) override {
      return {};
    }
    Result<void> store(std::size_t, std::span<std::byte>) override { return {}; }

   private:
    Bytes state_;
  };
  OneBlock io(state_rows * kHidden * 2);
  const Block block{segments, rows};
  const auto done = executor.run({&block, 1}, io, {});
  return done ? "" : done.error().message();
}

// Goal: a block that is not as promised is refused with a sentence, before any arithmetic.
TEST(LayerExecutor, RefusesBlocksThatBreakTheRules) {
  const TestLayer layer = make_layer(kHidden, plain_layer(), DType::bf16);
  const auto device = cpu_device(best_cpu_isa(), 1);
  const auto executor = loaded_executor(layer, *device, DType::bf16, 8, 12);
  EXPECT_EQ(run_error(*executor, {}, 0, 0), "");
  EXPECT_THAT(run_error(*executor, {{0, 9, 0}}, 9, 9), HasSubstr("at most 8 rows"));
  EXPECT_THAT(run_error(*executor, {{0, 8, 0}}, 8, 7), HasSubstr("bytes of state"));
  EXPECT_THAT(run_error(*executor, {{0, 7, 0}}, 8, 8), HasSubstr("cover 7 of 8"));
  EXPECT_THAT(run_error(*executor, {{1, 7, 0}}, 8, 8), HasSubstr("begins at row 1"));
  EXPECT_THAT(run_error(*executor, {{0, 4, 8}}, 4, 4), HasSubstr("follow its sample's rows"));
  EXPECT_EQ(run_error(*executor, {{0, 8, 0}}, 8, 8), "");
  EXPECT_THAT(run_error(*executor, {{0, 5, 8}}, 5, 5), HasSubstr("end by 12"));
  EXPECT_EQ(run_error(*executor, {{0, 4, 8}}, 4, 4), "");
  EXPECT_THAT(run_error(*executor, {{0, 4, 8}}, 4, 4), HasSubstr("follow its sample's rows"));

  // A tile that did not finish, and another layer, end a sample.
  EXPECT_EQ(run_error(*executor, {{0, 8, 0}}, 8, 8), "");
  std::stop_source source;
  source.request_stop();
  Bytes state(std::size_t{4} * kHidden * 2);
  const Segment tile{0, 4, 8};
  const Block stopped{{&tile, 1}, 4};
  RecordingSink sink;
  sink.begin({&stopped, 1}, state);
  EXPECT_FALSE(executor->run({&stopped, 1}, sink, source.get_token()));
  EXPECT_THAT(run_error(*executor, {{0, 4, 8}}, 4, 4), HasSubstr("follow its sample's rows"));
  EXPECT_EQ(run_error(*executor, {{0, 8, 0}}, 8, 8), "");
  executor->begin_layer(0);
  EXPECT_THAT(run_error(*executor, {{0, 8, 0}}, 8, 8), HasSubstr("attention_norm is not loaded"));
  load_weights(*executor, layer);
  EXPECT_THAT(run_error(*executor, {{0, 4, 8}}, 4, 4), HasSubstr("follow its sample's rows"));
}

TEST(LayerExecutor, RefusesTensorsThatDoNotFit) {
  const TestLayer layer = make_layer(kHidden, plain_layer(), DType::bf16);
  const auto device = cpu_device(best_cpu_isa(), 1);
  const auto executor = loaded_executor(layer, *device, DType::bf16, 8, 0);
  const Bytes bytes(kHidden * 2);
  EXPECT_TRUE(executor->load(WeightRole::mlp_norm, DType::bf16, bytes));
  EXPECT_FALSE(executor->load(WeightRole::mlp_norm, DType::bf16, std::span(bytes).first(6)));
  // Vectors become f32 whatever they were; of matrices the widest type was planned for.
  const Bytes wide(kHidden * 4);
  EXPECT_TRUE(executor->load(WeightRole::mlp_norm, DType::f32, wide));
  const Bytes wide_matrix(std::size_t{64} * kHidden * 4);
  EXPECT_FALSE(executor->load(WeightRole::q_weight, DType::f32, wide_matrix));
  EXPECT_TRUE(executor->load(WeightRole::q_weight, DType::bf16,
                             std::span(wide_matrix).first(wide_matrix.size() / 2)));
  EXPECT_FALSE(executor->load(WeightRole::q_bias, DType::bf16, bytes));
  EXPECT_FALSE(executor->load(WeightRole::embedding, DType::bf16, bytes));
  EXPECT_FALSE(executor->load(WeightRole::qkv_weight, DType::bf16, bytes));
  EXPECT_FALSE(executor->load(WeightRole::final_norm_bias, DType::bf16, bytes));
}

TEST(ModelSpec, NamesRolesInTheOrderOfTheArithmetic) {
  std::vector<std::string> names;
  for (const WeightRole role : weight_roles({}, plain_layer())) {
    names.emplace_back(weight_role_name(role));
  }
  EXPECT_THAT(names, ElementsAre("attention_norm", "q_weight", "k_weight", "v_weight", "out_weight",
                                 "mlp_norm", "gate_weight", "up_weight", "down_weight"));
  EXPECT_EQ(weight_roles({}, awkward_layer()).size(), 18U);
}

}  // namespace
}  // namespace librarian::gpu_exec
