// Memory is a number that is known before: one arena of the planned size and nothing outside it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "tests/gpu_exec/exec_testing.h"
#include "tests/support/forwarding_device.h"

namespace librarian::gpu_exec {
namespace {

/// Passes everything on to a real device; arenas are heap blocks of exactly the asked size with a
/// canary behind, filled with NaN patterns: reading before writing would show.
class CanaryDevice final : public ForwardingDevice {
 public:
  using ForwardingDevice::ForwardingDevice;

  Result<DeviceMemory> allocate(std::uint64_t bytes) override {
    if (bytes > bytes_max) {
      return Error(ErrorCode::does_not_fit, "the test's device is full");
    }
    allocated.push_back(bytes);
    DeviceMemory memory = aligned_memory(bytes + kCanaryBytes);
    std::memset(memory.get(), 0xFF, bytes);
    std::memset(memory.get() + bytes, 0x5A, kCanaryBytes);
    end_ = memory.get() + bytes;
    return memory;
  }
  void rope_table(const RopeTableOp& op, std::byte* scratch) override {
    ++rope_tables;
    ForwardingDevice::rope_table(op, scratch);
  }

  bool canary_is_alive() const {
    for (std::size_t i = 0; i < kCanaryBytes; ++i) {
      if (end_[i] != std::byte{0x5A}) {
        return false;
      }
    }
    return true;
  }

  std::uint64_t bytes_max = std::numeric_limits<std::uint64_t>::max();
  std::vector<std::uint64_t> allocated;
  int rope_tables = 0;

 private:
  static constexpr std::size_t kCanaryBytes = 4096;
  std::byte* end_ = nullptr;
};

class MemoryOnPath : public testing::TestWithParam<CpuIsa> {};

// Goal: the arena is exactly what memory() said, nothing writes behind it, and nothing reads what
// was not written (a NaN pattern fills the arena).
// Method: a canary behind the arena; full blocks, the longest sample in tiles, all types; the
// results are those of an arena of zeros.
TEST_P(MemoryOnPath, OneArenaOfThePlannedSizeIsEnough) {
  for (const DType type : {DType::bf16, DType::f32}) {
    for (const int threads : {1, 2}) {
      CanaryDevice device(cpu_device(GetParam(), threads));
      const auto plain = cpu_device(GetParam(), threads);
      const TestLayer layer = make_layer(72, awkward_layer(), type);
      ExecutorOptions options;
      options.dtype = type;
      options.weight_dtype_max = type;
      options.block_rows_max = 150;
      options.sample_rows_max = 200;
      const ExecutorMemory memory = *LayerExecutor::memory(layer.model, options, device);
      const auto executor = loaded_executor(layer, device, type, 150, 200);
      const auto expected = loaded_executor(layer, *plain, type, 150, 200);
      const std::vector<std::vector<Segment>> blocks = {
          segments_of({150}), {{0, 50, 150}}, segments_of({100, 49, 1})};
      for (const auto& segments : blocks) {
        const std::uint64_t rows = segments.back().row_begin + segments.back().rows;
        const Bytes state = to_bytes(TestRandom(rows).vector(rows * 72, 1.0F), type);
        RecordingSink sink;
        EXPECT_EQ(run_block(*executor, segments, state, sink),
                  run_block(*expected, segments, state, sink));
      }
      EXPECT_THAT(device.allocated,
                  testing::ElementsAre(memory.weight_bytes + memory.workspace_bytes));
      EXPECT_TRUE(device.canary_is_alive());
    }
  }
}

// Catches: bf16 matrices written beyond their place in a checkpoint that has f32 ones besides,
// where few inputs are padded to a multiple.
TEST_P(MemoryOnPath, HoldsMatricesNarrowerThanTheWidest) {
  LayerSpec layer;
  layer.attention.heads = layer.attention.kv_heads = 1;
  layer.attention.head_dim = 8;
  layer.attention.rope = default_rope(8);
  layer.mlp.width = 8;
  ModelSpec model;
  model.hidden_size = 8;
  model.layers.assign(1, layer);
  const auto device = cpu_device(GetParam(), 1);
  ExecutorOptions options;
  options.weight_dtype_max = DType::bf16;
  const std::uint64_t narrow = LayerExecutor::memory(model, options, *device)->weight_bytes;
  options.weight_dtype_max = DType::f32;
  EXPECT_GE(LayerExecutor::memory(model, options, *device)->weight_bytes, narrow);
}

INSTANTIATE_TEST_SUITE_P(Paths, MemoryOnPath, testing::ValuesIn(machine_isas()),
                         [](const auto& isa) { return std::string(cpu_isa_name(isa.param)); });

// Goal: the plan follows the sizes: weights of the largest layer once, K and V by the longest
// sample, block buffers by the block; checkpoint bytes are not widened.
TEST(ExecutorMemory, IsLean) {
  LayerSpec layer;
  layer.attention.heads = 32;
  layer.attention.kv_heads = 8;
  layer.attention.head_dim = 128;
  layer.attention.rope = default_rope(128);
  layer.mlp.width = 14336;
  ModelSpec model;
  model.hidden_size = 4096;
  model.layers.assign(3, layer);
  const auto device = cpu_device(best_cpu_isa(), 1);
  ExecutorOptions options;
  options.block_rows_max = 1024;
  const ExecutorMemory base = *LayerExecutor::memory(model, options, *device);
  const std::uint64_t parameters = 4096ULL * 128 * (2 * 32 + 2 * 8) + 3ULL * 4096 * 14336;
  EXPECT_GE(base.weight_bytes, parameters * 2);
  EXPECT_LE(base.weight_bytes, parameters * 2 + (1U << 20U));
  const std::uint64_t block_buffers = 1024ULL * (4096 + 14336 + 2 * 1024) * 2 + 1024 * 128 * 4;
  // The path with the largest scratch, AMX, keeps 2 MiB a thread.
  EXPECT_LE(base.workspace_bytes, block_buffers + (2U << 20U) + 4096);

  options.sample_rows_max = 131072;
  const ExecutorMemory long_sample = *LayerExecutor::memory(model, options, *device);
  EXPECT_EQ(long_sample.weight_bytes, base.weight_bytes);
  EXPECT_EQ(long_sample.workspace_bytes - base.workspace_bytes, (131072ULL - 1024) * 2 * 1024 * 2);

  options.weight_dtype_max = DType::f32;
  EXPECT_GE(LayerExecutor::memory(model, options, *device)->weight_bytes, parameters * 4);

  const auto more_threads = cpu_device(best_cpu_isa(), 8);
  const std::uint64_t more = LayerExecutor::memory(model, options, *more_threads)->workspace_bytes;
  EXPECT_GT(more, long_sample.workspace_bytes);
  EXPECT_LE(more - long_sample.workspace_bytes, 7ULL << 21U);
}

TEST(ExecutorMemory, AFullDeviceIsAnErrorNotACrash) {
  CanaryDevice device(cpu_device(best_cpu_isa(), 1));
  const TestLayer layer = make_layer(72, awkward_layer(), DType::bf16);
  ExecutorOptions options;
  options.block_rows_max = 10;
  const ExecutorMemory memory = *LayerExecutor::memory(layer.model, options, device);
  device.bytes_max = memory.weight_bytes + memory.workspace_bytes - 1;
  const auto refused = LayerExecutor::create(layer.model, options, device);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), ErrorCode::does_not_fit);
  ++device.bytes_max;
  EXPECT_TRUE(LayerExecutor::create(layer.model, options, device));
}

TEST(ExecutorMemory, SpecsThatContradictThemselvesAreRefused) {
  const auto device = cpu_device(best_cpu_isa(), 1);
  const auto code_of = [&](const LayerSpec& layer, std::uint64_t rows) {
    ModelSpec model;
    model.hidden_size = 64;
    model.layers = {layer};
    ExecutorOptions options;
    options.block_rows_max = rows;
    const auto executor = LayerExecutor::create(model, options, *device);
    return executor ? std::string() : executor.error().message();
  };
  EXPECT_EQ(code_of(awkward_layer(), 1), "");
  EXPECT_THAT(code_of(awkward_layer(), 0), testing::HasSubstr("block_rows_max"));
  LayerSpec layer = awkward_layer();
  layer.attention.kv_heads = 4;
  EXPECT_THAT(code_of(layer, 1), testing::HasSubstr("does not divide"));
  layer = awkward_layer();
  layer.attention.head_dim = 257;
  EXPECT_THAT(code_of(layer, 1), testing::HasSubstr("head_dim=257"));
  layer = awkward_layer();
  layer.attention.rope.inverse_frequency.pop_back();
  EXPECT_THAT(code_of(layer, 1), testing::HasSubstr("frequencies"));
}

// Goal: cosines are computed once for blocks at the same position, and anew when that changes.
TEST(RopeTable, IsKeptBetweenBlocks) {
  CanaryDevice device(cpu_device(best_cpu_isa(), 1));
  const TestLayer layer = make_layer(72, awkward_layer(), DType::bf16);
  const auto executor = loaded_executor(layer, device, DType::bf16, 20, 40);
  const auto run = [&](const std::vector<Segment>& segments) {
    const std::uint64_t rows = segments.back().row_begin + segments.back().rows;
    RecordingSink sink;
    run_block(*executor, segments, Bytes(rows * 72 * 2), sink);
    return device.rope_tables;
  };
  EXPECT_EQ(run(segments_of({10, 10})), 1);
  EXPECT_EQ(run(segments_of({5, 10, 5})), 1);
  EXPECT_EQ(run(segments_of({20})), 2);
  EXPECT_EQ(run({{0, 20, 20}}), 3);
  EXPECT_EQ(run(segments_of({20})), 4);
}

TEST(CpuDevice, SaysWhatItIs) {
  const auto device = cpu_device(CpuIsa::portable, 3);
  EXPECT_EQ(device->kind(), "cpu-portable");
  EXPECT_EQ(device->threads(), 3);
  EXPECT_TRUE(cpu_has_isa(best_cpu_isa()));
  EXPECT_EQ(make_cpu_device(CpuIsa::portable, 0).error().code(), ErrorCode::invalid_argument);
  for (const CpuIsa isa : kCpuIsas) {
    EXPECT_EQ(make_cpu_device(isa, 1).has_value(), cpu_has_isa(isa)) << cpu_isa_name(isa);
  }
}

TEST(CpuDevice, RefusesMoreMemoryThanThereIs) {
  const auto device = cpu_device(CpuIsa::portable, 1);
  const auto memory = device->allocate(std::uint64_t{1} << 60U);
  ASSERT_FALSE(memory);
  EXPECT_EQ(memory.error().code(), ErrorCode::does_not_fit);
}

}  // namespace
}  // namespace librarian::gpu_exec
