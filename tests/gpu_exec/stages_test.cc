// A device too small for a layer: weights come in stages, and nobody can tell from the bits.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "gpu_exec/layer_steps.h"
#include "tests/gpu_exec/exec_testing.h"
#include "tests/support/forwarding_device.h"

namespace librarian::gpu_exec {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::uint32_t kHidden = 144;

/// Matrices of these tests are cut into slices of 128 outputs.
ExecutorOptions sliced(const TestLayer& layer, DType dtype) {
  ExecutorOptions options = executor_options(layer, dtype, 64, 200);
  options.slice_bytes_max = std::uint64_t{128} * kHidden * dtype_bytes(layer.weight_type);
  options.blocks_max = 100;
  return options;
}

std::vector<Flavour> wide_flavours() {
  std::vector<Flavour> all = flavours();
  all.push_back({"awkward", awkward_layer(), {NormKind::rms, false, false, 1e-5F}});
  for (Flavour& flavour : all) {
    flavour.layer.mlp.width = 300;
  }
  return all;
}

Flavour wide_flavour(const std::string& name) {
  const std::vector<Flavour> all = wide_flavours();
  return *std::find_if(all.begin(), all.end(),
                       [&](const Flavour& flavour) { return flavour.name == name; });
}

/// Blocks of at most 64 rows: short samples together, one long one in tiles (or, where attention
/// looks ahead, none).
struct Blocks {
  std::vector<std::vector<Segment>> segments;
  std::vector<Block> blocks;
  std::uint64_t rows = 0;
};
Blocks make_blocks(bool causal) {
  Blocks result;
  result.segments = {segments_of({10, 1, 33}), segments_of({64}), segments_of({7})};
  if (causal) {
    for (const std::uint64_t position : {0, 64, 128}) {
      result.segments.push_back({{0, position == 128 ? 22U : 64U, position, 150}});
    }
  }
  result.segments.push_back(segments_of({20, 40}));
  for (const std::vector<Segment>& segments : result.segments) {
    const std::uint64_t rows = segments.back().row_begin + segments.back().rows;
    result.blocks.push_back({segments, rows});
    result.rows += rows;
  }
  return result;
}

// Goal: what a layer gives does not depend on how it was cut: not on stages, not on how many blocks
// run together, not on whether rows are copied.
// Method: every kind of layer on a device of unlimited memory, and on ever smaller ones down to the
// least that is not refused; state and every capture are compared.
TEST(Stages, GiveTheSameBitsAsAWholeLayer) {
  for (const DType type : {DType::bf16, DType::f32}) {
    for (const Flavour& flavour : wide_flavours()) {
      const TestLayer layer = make_layer(kHidden, flavour.layer, DType::bf16, 1, flavour.norm);
      const ExecutorOptions options = sliced(layer, type);
      const Blocks blocks = make_blocks(flavour.layer.attention.causal);
      const Bytes state = to_bytes(TestRandom(3).vector(blocks.rows * kHidden, 2.0F), type);
      const auto roomy = cpu_device(best_cpu_isa(), 2);
      RecordingSink expected;
      const Bytes expected_state =
          run_blocks(*loaded_executor(layer, *roomy, options), blocks.blocks, state, expected);
      for (const auto kind : {LimitedDevice::Kind::host_memory, LimitedDevice::Kind::own_memory}) {
        std::set<std::uint64_t> together;
        std::set<std::size_t> stages;
        for (std::uint64_t limit = 12U << 20U;; limit -= 16U << 10U) {
          LimitedDevice device(cpu_device(best_cpu_isa(), 2), limit, kind);
          const auto memory = LayerExecutor::memory(layer.model, options, device);
          if (!memory) {
            EXPECT_EQ(memory.error().code(), ErrorCode::does_not_fit);
            break;
          }
          // One run of each plan is enough.
          const bool seen =
              !together.insert(memory->rows_together).second &&
              !stages.insert(LayerExecutor::stages(layer.model, 0, options, device)->size()).second;
          if (seen) {
            continue;
          }
          const auto executor = loaded_executor(layer, device, options);
          EXPECT_EQ(device.allocated_bytes, memory->device_bytes());
          EXPECT_EQ(executor->keeps_tensors(), memory->staged);
          RecordingSink sink;
          EXPECT_EQ(run_blocks(*executor, blocks.blocks, state, sink), expected_state)
              << flavour.name << " in " << limit << " bytes";
          EXPECT_EQ(sink.rows, expected.rows) << flavour.name << " in " << limit << " bytes";
        }
        if (kind == LimitedDevice::Kind::own_memory) {
          EXPECT_GE(together.size(), 2U) << flavour.name;
          EXPECT_EQ(*stages.begin(), 1U) << flavour.name;
          EXPECT_GE(*stages.rbegin(), 3U) << flavour.name;
        }
      }
    }
  }
}

/// Brings weights when the executor asks for them, and takes them away afterwards.
class StreamingSink final : public LayerIo {
 public:
  StreamingSink(LayerExecutor& executor, const TestLayer& layer)
      : executor_(executor), layer_(layer) {}

  bool wants(CapturePoint /*point*/) const override { return true; }
  Result<std::span<std::byte>> load(std::size_t block) override { return rows.load(block); }
  Result<void> capture(CapturePoint point, std::size_t block,
                       std::span<const std::byte> bytes) override {
    return rows.capture(point, block, bytes);
  }
  Result<void> store(std::size_t block, std::span<std::byte> bytes) override {
    return rows.store(block, bytes);
  }
  Result<void> load_stage(std::uint32_t order_end) override {
    EXPECT_GT(order_end, order_);
    std::vector<WeightKey> keys = weight_keys(layer_.model, layer_.model.layers[0]);
    std::stable_sort(keys.begin(), keys.end(), [](const WeightKey& a, const WeightKey& b) {
      return stage_order(a) < stage_order(b);
    });
    for (const WeightKey& key : keys) {
      if (stage_order(key) < order_ || stage_order(key) >= order_end) {
        continue;
      }
      Bytes bytes = to_bytes(layer_.weights.at(key), layer_.weight_type);
      LIB_TRY(const Ticket taken, executor_.load(key, layer_.weight_type, bytes));
      LIB_TRY_VOID(executor_.wait_for(taken));
      std::fill(bytes.begin(), bytes.end(), std::byte{0xFF});  // NaN for whoever still reads them.
    }
    order_ = order_end;
    ++stages;
    return {};
  }

  RecordingSink rows;
  std::size_t stages = 0;

 private:
  LayerExecutor& executor_;
  const TestLayer& layer_;
  std::uint32_t order_ = 0;
};

// Goal: weights that come and go stage by stage give the bits of a layer that is there.
// Method: every kind of layer, on a device that works on host memory and on one that copies rows;
// what was loaded becomes NaN as soon as the executor says that it has it.
TEST(Stages, GiveTheSameBitsWhenTheirWeightsAreStreamed) {
  for (const Flavour& flavour : wide_flavours()) {
    const TestLayer layer = make_layer(kHidden, flavour.layer, DType::bf16, 1, flavour.norm);
    ExecutorOptions options = sliced(layer, DType::bf16);
    const Blocks blocks = make_blocks(flavour.layer.attention.causal);
    options.blocks_max = blocks.blocks.size();
    const Bytes state = to_bytes(TestRandom(3).vector(blocks.rows * kHidden, 2.0F), DType::bf16);
    const auto roomy = cpu_device(best_cpu_isa(), 2);
    RecordingSink expected;
    const Bytes expected_state =
        run_blocks(*loaded_executor(layer, *roomy, options), blocks.blocks, state, expected);
    options.streamed = true;
    for (const auto kind : {LimitedDevice::Kind::host_memory, LimitedDevice::Kind::own_memory}) {
      LimitedDevice device(cpu_device(best_cpu_isa(), 2), 64U << 20U, kind);
      const auto memory = LayerExecutor::memory(layer.model, options, device);
      ASSERT_TRUE(memory) << memory.error().message();
      const auto executor = *LayerExecutor::create(layer.model, options, device);
      EXPECT_EQ(device.allocated_bytes, memory->device_bytes());
      EXPECT_TRUE(executor->streams());
      EXPECT_FALSE(executor->keeps_tensors());
      for (int layers = 0; layers < 2; ++layers) {
        executor->begin_layer(0);
        StreamingSink sink(*executor, layer);
        Bytes rows = state;
        sink.rows.begin(blocks.blocks, rows);
        const auto done = executor->run(blocks.blocks, sink, {});
        ASSERT_TRUE(done) << flavour.name << ": " << done.error().message();
        EXPECT_EQ(rows, expected_state) << flavour.name;
        EXPECT_EQ(sink.rows.rows, expected.rows) << flavour.name;
        EXPECT_GE(sink.stages, flavour.layer.moe.experts == 0 ? 2U : 3U) << flavour.name;
      }
    }
    // Fewer blocks together would need the weights again.
    LimitedDevice small(cpu_device(best_cpu_isa(), 2),
                        LayerExecutor::memory(layer.model, options, *roomy)->device_bytes() - 1);
    EXPECT_FALSE(LayerExecutor::memory(layer.model, options, small)) << flavour.name;
  }
}

class CountingDevice final : public LimitedDevice {
 public:
  using LimitedDevice::LimitedDevice;
  void pack_matrix(const MatrixSource& source, std::uint64_t outputs, std::uint64_t inputs,
                   std::byte* packed) override {
    ++packed_matrices;
    LimitedDevice::pack_matrix(source, outputs, inputs, packed);
  }
  int packed_matrices = 0;
};

// Goal: all tokens on one expert is a product like another, and experts that no token chose cost no
// upload.
// Method: a bias that decides for expert 2, and streamed weights; each matrix that the device is
// given counts, and captures are those of a layer that is there.
TEST(Stages, ExpertsThatNoTokenChoseAreNotLoaded) {
  LayerSpec spec = awkward_layer();
  spec.moe.experts = 7;
  spec.moe.top_k = 1;
  spec.moe.width = 40;
  spec.moe.score = RouterScore::sigmoid;
  spec.moe.select_bias = true;
  TestLayer layer = make_layer(kHidden, spec, DType::bf16);
  layer.weights[WeightRole::router_select_bias] = {0, 0, 100, 0, 0, 0, 0};
  ExecutorOptions options = executor_options(layer, DType::bf16, 64, 200);
  const Blocks blocks = make_blocks(true);
  options.blocks_max = blocks.blocks.size();
  const Bytes state = to_bytes(TestRandom(3).vector(blocks.rows * kHidden, 2.0F), DType::bf16);
  const auto roomy = cpu_device(best_cpu_isa(), 2);
  RecordingSink expected;
  run_blocks(*loaded_executor(layer, *roomy, options), blocks.blocks, state, expected);
  const Bytes ids = expected.rows[CapturePoint::router_ids];
  ASSERT_EQ(ids.size(), blocks.rows * sizeof(std::int32_t));
  for (std::size_t i = 0; i < ids.size(); i += sizeof(std::int32_t)) {
    ASSERT_EQ(ids[i], std::byte{2});
  }
  constexpr int kNeeded = 4 + 1 + 3;  // Attention's, the router's, expert 2's.
  options.streamed = true;
  CountingDevice device(cpu_device(best_cpu_isa(), 2), 64U << 20U, LimitedDevice::Kind::own_memory);
  const auto executor = LayerExecutor::create(layer.model, options, device);
  ASSERT_TRUE(executor) << executor.error().message();
  (*executor)->begin_layer(0);
  Bytes rows = state;
  StreamingSink sink(**executor, layer);
  sink.rows.begin(blocks.blocks, rows);
  ASSERT_TRUE((*executor)->run(blocks.blocks, sink, {}));
  EXPECT_EQ(sink.rows.rows, expected.rows);
  EXPECT_EQ(device.packed_matrices, kNeeded);
}

// Goal: the two extremes were really there in the test above.
TEST(Stages, AreAsSmallAsTheLargestStepAndMeetAsManyBlocksAsFit) {
  const TestLayer layer = make_layer(kHidden, wide_flavours().back().layer, DType::bf16);
  const ExecutorOptions options = sliced(layer, DType::bf16);
  const auto inner = cpu_device(best_cpu_isa(), 1);
  std::uint64_t least = 0;
  std::vector<std::uint64_t> together;
  for (std::uint64_t limit = 100'000; limit < 4'000'000; limit += 50'000) {
    LimitedDevice device(cpu_device(best_cpu_isa(), 1), limit, LimitedDevice::Kind::own_memory);
    const auto memory = LayerExecutor::memory(layer.model, options, device);
    if (!memory) {
      EXPECT_EQ(least, 0U) << "more memory never fits less";
      EXPECT_THAT(memory.error().message(), HasSubstr("too small"));
      continue;
    }
    least = least == 0 ? limit : least;
    EXPECT_LE(memory->device_bytes(), limit);
    if (memory->staged) {
      together.push_back(memory->rows_together);
    }
  }
  ASSERT_GE(together.size(), 2U);
  EXPECT_TRUE(std::is_sorted(together.begin(), together.end()));
  EXPECT_EQ(together.front() % 64, 0U);
  EXPECT_GT(together.back(), together.front());
}

void expect_covered(const TestLayer& layer) {
  const LayerSpec& spec = layer.model.layers[0];
  const auto device = cpu_device(best_cpu_isa(), 1);
  const std::vector<Step> steps =
      layer_steps(layer.model, spec, DType::bf16, std::uint64_t{128} * kHidden * 2);
  std::map<WeightKey, std::uint64_t> rows;
  for (const Step& step : steps) {
    for (const StepWeight& weight : step.weights) {
      if (weight.inputs != 0) {
        EXPECT_EQ(rows[weight.key], weight.begin) << "slices follow one another";
        rows[weight.key] = weight.end;
      }
    }
  }
  for (const WeightRole role : weight_roles(layer.model, spec)) {
    for (const WeightPart& part : weight_parts(layer.model, spec, role)) {
      if (part.inputs != 0) {
        EXPECT_EQ(rows[part.role], part.outputs) << weight_role_name(part.role);
      }
    }
  }
  for (const std::uint64_t stage_bytes :
       {std::uint64_t{0}, std::uint64_t{200'000}, ~std::uint64_t{0}}) {
    std::vector<StepKind> kinds;
    for (const Stage& stage : make_stages(spec, steps, DType::bf16, stage_bytes, false, *device)) {
      for (const Step& step : stage.steps) {
        kinds.push_back(step.kind);
        for (const StepWeight& weight : step.weights) {
          EXPECT_TRUE(std::any_of(stage.slots.begin(), stage.slots.end(), [&](const WeightSlot& s) {
            return s.weight.key == weight.key && s.weight.begin == weight.begin &&
                   s.weight.end == weight.end;
          }));
        }
      }
    }
    ASSERT_EQ(kinds.size(), steps.size());
    for (std::size_t i = 0; i < steps.size(); ++i) {
      EXPECT_EQ(kinds[i], steps[i].kind);
    }
  }
}

// Goal: a stage is made of whole steps in order, every weight is in a stage that uses it, and the
// cut into slices depends on shapes alone.
TEST(LayerSteps, CoverEveryWeightOnceInSlicesThatDoNotDependOnTheStages) {
  for (const char* name : {"awkward", "latent", "latent_direct", "latent_tiles"}) {
    expect_covered(make_layer(kHidden, wide_flavour(name).layer, DType::bf16));
  }
}

/// Layers of a published size.
ModelSpec model_of(std::uint32_t layers, std::uint32_t hidden, std::uint32_t heads,
                   std::uint32_t kv_heads, std::uint32_t head_dim, std::uint32_t width,
                   bool gated) {
  LayerSpec layer;
  layer.attention.heads = heads;
  layer.attention.kv_heads = kv_heads;
  layer.attention.head_dim = head_dim;
  layer.attention.rope = default_rope(head_dim);
  layer.mlp.width = width;
  layer.mlp.gated = gated;
  ModelSpec model;
  model.hidden_size = hidden;
  model.layers.assign(layers, layer);
  return model;
}

// Goal: the teachers that this is for run within 16 GiB, the largest of them by stages.
// Method: plans from shapes alone; nothing is allocated. tests/ingest/plan_test.cc plans them from
// headers, through the job.
TEST(Stages, LetBigTeachersRunWithinSixteenGiB) {
  constexpr std::uint64_t kLimit = 15ULL << 30U;
  LimitedDevice device(cpu_device(best_cpu_isa(), 2), kLimit, LimitedDevice::Kind::own_memory);
  ExecutorOptions options;
  options.block_rows_max = 2048;
  options.sample_rows_max = 4096;
  options.blocks_max = 1024;
  options.captures_max = 2;

  const auto llama_70b =
      LayerExecutor::memory(model_of(80, 8192, 64, 8, 128, 28672, true), options, device);
  ASSERT_TRUE(llama_70b) << llama_70b.error().message();
  EXPECT_FALSE(llama_70b->staged);
  EXPECT_EQ(llama_70b->weight_buffers, 2U);

  const ModelSpec llama_405b = model_of(126, 16384, 128, 8, 128, 53248, true);
  const auto memory = LayerExecutor::memory(llama_405b, options, device);
  ASSERT_TRUE(memory) << memory.error().message();
  EXPECT_FALSE(memory->staged) << "two layers of 5.9 GiB and 2 GiB of all else";
  EXPECT_LE(memory->device_bytes(), kLimit);
  LimitedDevice smaller(cpu_device(best_cpu_isa(), 2), 8ULL << 30U,
                        LimitedDevice::Kind::own_memory);
  const auto staged = LayerExecutor::memory(llama_405b, options, smaller);
  ASSERT_TRUE(staged) << staged.error().message();
  EXPECT_TRUE(staged->staged);
  EXPECT_GE(staged->rows_together, 16384U) << "few uploads for many tokens";

  options.dtype = DType::f32;
  options.weight_dtype_max = DType::f32;
  options.sample_rows_max = 131072;
  const ModelSpec f32_teacher = model_of(96, 8192, 128, 128, 64, 32768, true);
  const auto f32_memory = LayerExecutor::memory(f32_teacher, options, device);
  ASSERT_TRUE(f32_memory) << f32_memory.error().message();
  EXPECT_TRUE(f32_memory->staged);
  EXPECT_LE(f32_memory->device_bytes(), kLimit);
}

}  // namespace
}  // namespace librarian::gpu_exec
