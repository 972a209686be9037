// A device too small for a layer: weights come in stages, and nobody can tell from the bits.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "gpu_exec/layer_steps.h"
#include "tests/gpu_exec/exec_testing.h"
#include "tests/gpu_exec/streaming.h"
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

// Goal: weights that come and go stage by stage give the bits of a layer that is there, whether all
// blocks meet them or groups do.
// Method: every kind of layer, on a device that works on host memory and on one that copies rows;
// what was loaded becomes NaN as soon as the executor says that it has it. Groups of two end within
// the sample that comes in tiles, and the last one is of a single block.
TEST(Stages, GiveTheSameBitsWhenTheirWeightsAreStreamed) {
  for (const Flavour& flavour : wide_flavours()) {
    const TestLayer layer = make_layer(kHidden, flavour.layer, DType::bf16, 1, flavour.norm);
    ExecutorOptions options = sliced(layer, DType::bf16);
    const Blocks blocks = make_blocks(flavour.layer.attention.causal);
    const Bytes state = to_bytes(TestRandom(3).vector(blocks.rows * kHidden, 2.0F), DType::bf16);
    const auto roomy = cpu_device(best_cpu_isa(), 2);
    RecordingSink expected;
    const Bytes expected_state =
        run_blocks(*loaded_executor(layer, *roomy, options), blocks.blocks, state, expected);
    options.streamed = true;
    for (const std::size_t together : {blocks.blocks.size(), std::size_t{2}}) {
      options.blocks_max = together;
      for (const auto kind : {LimitedDevice::Kind::host_memory, LimitedDevice::Kind::own_memory}) {
        LimitedDevice device(cpu_device(best_cpu_isa(), 2), 64U << 20U, kind);
        const auto memory = LayerExecutor::memory(layer.model, options, device);
        ASSERT_TRUE(memory) << memory.error().message();
        const auto executor = *LayerExecutor::create(layer.model, options, device);
        EXPECT_EQ(device.allocated_bytes, memory->device_bytes());
        EXPECT_TRUE(executor->streams());
        EXPECT_FALSE(executor->keeps_tensors());
        EXPECT_EQ(executor->blocks_together(), together);
        for (int layers = 0; layers < 2; ++layers) {
          std::map<CapturePoint, Bytes> captures;
          EXPECT_EQ(run_streamed(*executor, layer, blocks.blocks, state, captures,
                                 flavour.layer.moe.experts == 0 ? 2 : 3),
                    expected_state)
              << flavour.name;
          EXPECT_EQ(captures, expected.rows) << flavour.name;
        }
      }
      // Fewer blocks together would need the weights again.
      LimitedDevice small(cpu_device(best_cpu_isa(), 2),
                          LayerExecutor::memory(layer.model, options, *roomy)->device_bytes() - 1);
      EXPECT_FALSE(LayerExecutor::memory(layer.model, options, small)) << flavour.name;
    }
  }
}

TEST(Stages, AreNotRunBeforeALayerHasBegun) {
  const TestLayer layer = make_layer(kHidden, wide_flavour("awkward").layer, DType::bf16);
  ExecutorOptions options = executor_options(layer, DType::bf16, 64, 200);
  options.streamed = true;
  const auto device = cpu_device(best_cpu_isa(), 1);
  const auto executor = *LayerExecutor::create(layer.model, options, *device);
  StreamingSink sink(*executor, layer);
  const auto done = executor->run({}, sink, {});
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code(), ErrorCode::invalid_argument);
}

// Goal: what lies between two products of a half is kept for every block only where that saves
// memory: with many blocks, and a stage that is larger for it, it is one buffer.
// Method: a layer whose widest rows are its widest matrices' outputs, planned for one block and for
// many.
TEST(Stages, ManyBlocksShareTheWidestBuffer) {
  const TestLayer layer = make_layer(kHidden, wide_flavour("awkward").layer, DType::bf16);
  ExecutorOptions options = executor_options(layer, DType::bf16, 64, 200);
  options.streamed = true;
  const auto device = cpu_device(best_cpu_isa(), 1);
  const auto bytes = [&](std::uint64_t blocks) {
    options.blocks_max = blocks;
    return *LayerExecutor::memory(layer.model, options, *device);
  };
  const std::uint64_t row_bytes = kHidden * dtype_bytes(DType::bf16);
  const std::uint64_t wide_bytes = 64 * 300 * dtype_bytes(DType::bf16);
  const std::uint64_t of_few = bytes(2).device_bytes() - bytes(1).device_bytes();
  const std::uint64_t of_many = bytes(101).device_bytes() - bytes(100).device_bytes();
  EXPECT_GE(of_few, of_many + wide_bytes);
  EXPECT_LE(of_many, 64 * 3 * row_bytes + 3 * 64) << "state, norm's output, projection's output";
  EXPECT_GT(bytes(100).weight_bytes, bytes(1).weight_bytes);
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
  sink.begin(blocks.blocks, rows);
  ASSERT_TRUE((*executor)->run(blocks.blocks, sink, {}));
  EXPECT_EQ(sink.rows, expected.rows);
  EXPECT_EQ(device.packed_matrices, kNeeded);
  EXPECT_EQ(sink.unneeded, (std::vector<bool>{true, true, false, true, true, true, true}));

  // Also in a group that is not full.
  device.packed_matrices = 0;
  (*executor)->begin_layer(0);
  StreamingSink one(**executor, layer);
  one.begin(std::span(blocks.blocks).first(1),
            std::span(rows).first(blocks.blocks[0].rows * kHidden * dtype_bytes(DType::bf16)));
  ASSERT_TRUE((*executor)->run(std::span(blocks.blocks).first(1), one, {}));
  EXPECT_EQ(one.unneeded, sink.unneeded);
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
    for (const Stage& stage : make_stages(spec, steps, {DType::bf16, stage_bytes}, *device)) {
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
