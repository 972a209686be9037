// Layers that come to a GPU stage by stage, on emulated ones whose queues go on as late as they
// may.
#include <gtest/gtest.h>

#include "gpu_exec/cuda_device.h"
#include "tests/gpu_exec/exec_testing.h"
#include "tests/gpu_exec/streaming.h"
#include "tests/support/emulated_cuda.h"

namespace librarian::gpu_exec {
namespace {

constexpr std::uint32_t kHidden = 48;

LayerSpec layer_of(bool experts) {
  LayerSpec spec = awkward_layer();
  if (experts) {
    spec.moe.experts = 6;
    spec.moe.top_k = 2;
    spec.moe.width = 40;
    spec.moe.shared_width = 24;
  }
  return spec;
}

std::unique_ptr<Device> device_of(std::uint64_t seed) {
  return *make_cuda_device(make_emulated_cuda({8, 0, 0, seed}), std::uint64_t{1} << 30U);
}

// Catches: a stage's weights, or the buffer that all blocks share between two products, written
// while the GPU still reads what was there; rows of a group that has not left when the next comes.
// Method: several blocks, in one group and in groups of two that part a sample, two layers one
// after the other; what was loaded becomes NaN as soon as the device says that it has it.
TEST(CudaStreaming, GivesTheSameBitsInWhateverOrderQueuesRun) {
  for (const bool experts : {false, true}) {
    const TestLayer layer = make_layer(kHidden, layer_of(experts), DType::bf16);
    ExecutorOptions options = executor_options(layer, DType::bf16, 20, 60);
    const std::vector<std::vector<Segment>> segments = {segments_of({20}), segments_of({7, 3}),
                                                        {{0, 20, 0, 50}},  {{0, 20, 20, 50}},
                                                        {{0, 10, 40, 50}}, segments_of({13})};
    std::vector<Block> blocks;
    std::uint64_t rows = 0;
    for (const std::vector<Segment>& block : segments) {
      blocks.push_back({block, block.back().row_begin + block.back().rows});
      rows += blocks.back().rows;
    }
    const Bytes state = to_bytes(TestRandom(8).vector(rows * kHidden, 1.0F), DType::bf16);
    options.blocks_max = blocks.size();
    options.captures_max = 6;
    RecordingSink expected;
    const auto whole = device_of(0);
    const Bytes expected_state =
        run_blocks(*loaded_executor(layer, *whole, options), blocks, state, expected);
    options.streamed = true;
    for (const std::size_t together : {blocks.size(), std::size_t{2}}) {
      options.blocks_max = together;
      for (std::uint64_t seed = 1; seed <= 4; ++seed) {
        const auto device = device_of(seed);
        const auto executor = *LayerExecutor::create(layer.model, options, *device);
        for (int layers = 0; layers < 2; ++layers) {
          std::map<CapturePoint, Bytes> captures;
          EXPECT_EQ(run_streamed(*executor, layer, blocks, state, captures, 2), expected_state)
              << "seed " << seed << ", groups of " << together;
          EXPECT_EQ(captures, expected.rows) << "seed " << seed << ", groups of " << together;
        }
      }
    }
  }
}

}  // namespace
}  // namespace librarian::gpu_exec
