// The CUDA device, whole layers: on emulated GPUs everywhere, and on a real one where there is one
// (CTest label gpu). Right, the same bits for a row whatever surrounds it, within its memory, and
// in an order that the queues' tickets alone make safe.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>

#include "gpu_exec/cuda_device.h"
#include "gpu_exec/cuda_tables.h"
#include "tests/gpu_exec/reference.h"
#include "tests/support/emulated_cuda.h"

namespace librarian::gpu_exec {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::StartsWith;

constexpr std::uint32_t kHidden = 72;
constexpr std::uint64_t kMemory = 1ULL << 30U;

struct Gpu {
  const char* name;
  bool real = false;
  EmulatedCudaOptions emulated;
};
void PrintTo(const Gpu& gpu, std::ostream* out) { *out << gpu.name; }

std::vector<Gpu> gpus() {
  return {{"emulated", false, {}},
          {"emulated_sm75", false, {7, 5, 0, 2}},
          {"emulated_library", false, {8, 0, 32, 3}},
          {"gpu", true, {}}};
}

std::unique_ptr<Device> emulated_device(const EmulatedCudaOptions& options,
                                        EmulatedCudaRecord* record = nullptr,
                                        std::uint64_t memory = kMemory) {
  return *make_cuda_device(make_emulated_cuda(options, record), memory);
}

class CudaLayer : public testing::TestWithParam<Gpu> {
 protected:
  void SetUp() override {
    if (GetParam().real) {
      CudaOptions options;
      options.memory_bytes = 4ULL << 30U;
      auto device = make_cuda_device(options);
      if (!device) {
        GTEST_SKIP() << "no GPU to test on: " << device.error().message();
      }
      device_ = *std::move(device);
    } else {
      device_ = emulated_device(GetParam().emulated);
    }
  }
  Device& device() { return *device_; }

 private:
  std::unique_ptr<Device> device_;
};

/// Sizes that a library takes, too: multiples of 8.
LayerSpec aligned_layer() {
  LayerSpec layer = awkward_layer();
  layer.attention.heads = 4;
  layer.attention.kv_heads = 2;
  layer.attention.head_dim = 16;
  layer.attention.rope = default_rope(16);
  layer.mlp.width = 304;
  return layer;
}

std::vector<Flavour> all_flavours() {
  std::vector<Flavour> all = flavours();
  all.push_back({"aligned", aligned_layer(), {NormKind::rms, false, false, 1e-5F}});
  all.push_back({"awkward", awkward_layer(), {NormKind::rms, false, false, 1e-5F}});
  Flavour windowed = all.back();
  windowed.name = "windowed";
  windowed.layer.attention.window = 20;
  all.push_back(windowed);
  return all;
}

/// Each capture's rows of samples run one by one through the reference.
/// @param experts  Where the rows' experts go, best first, if not null.
std::map<CapturePoint, Rows> truth(const TestLayer& layer, const std::vector<float>& x,
                                   const std::vector<std::uint64_t>& lengths,
                                   Bytes* experts = nullptr) {
  std::map<CapturePoint, Rows> result;
  const Rows rows = to_rows(x, kHidden);
  std::size_t at = 0;
  for (const std::uint64_t length : lengths) {
    const auto begin = rows.begin() + static_cast<std::ptrdiff_t>(at);
    const ReferenceLayer one =
        reference_layer(layer, Rows(begin, begin + static_cast<std::ptrdiff_t>(length)));
    const auto append = [&](CapturePoint point, const Rows& from) {
      result[point].insert(result[point].end(), from.begin(), from.end());
    };
    append(CapturePoint::attn_out, one.attn_out);
    append(CapturePoint::mlp_out, one.mlp_out);
    append(CapturePoint::resid_post, one.resid_post);
    for (const std::vector<std::int32_t>& chosen : one.experts) {
      const auto bytes = std::as_bytes(std::span(chosen));
      if (experts != nullptr) {
        experts->insert(experts->end(), bytes.begin(), bytes.end());
      }
    }
    at += length;
  }
  return result;
}

// Goal: f32 is the definition's, with all optional parts and types of weights.
TEST_P(CudaLayer, IsAccurateInF32) {
  const std::vector<std::uint64_t> lengths = {1, 70, 13};
  for (const Flavour& flavour : all_flavours()) {
    for (const DType weights : {DType::bf16, DType::f32}) {
      const TestLayer layer = make_layer(kHidden, flavour.layer, weights, 1, flavour.norm);
      const auto x = TestRandom(21).vector(std::size_t{84} * kHidden, 2.0F);
      const auto executor = loaded_executor(layer, device(), DType::f32, 84, 0);
      RecordingSink sink;
      run_block(*executor, segments_of(lengths), to_bytes(x, DType::f32), sink);
      Bytes experts;
      for (const auto& [point, rows] : truth(layer, x, lengths, &experts)) {
        EXPECT_LE(worst_row_error(to_floats(sink.rows[point], DType::f32), rows), 1e-5)
            << flavour.name << " capture " << static_cast<int>(point);
      }
      EXPECT_EQ(sink.rows[CapturePoint::router_ids], experts) << flavour.name;
    }
  }
}

/// The error of each row, in the middle of them all.
double median_row_error(const std::vector<float>& actual, const Rows& expected) {
  std::vector<double> errors;
  for (std::size_t row = 0; row < expected.size(); ++row) {
    const auto begin = actual.begin() + static_cast<std::ptrdiff_t>(row * expected[row].size());
    errors.push_back(worst_row_error(
        std::vector<float>(begin, begin + static_cast<std::ptrdiff_t>(expected[row].size())),
        Rows{expected[row]}));
  }
  std::nth_element(errors.begin(), errors.begin() + static_cast<std::ptrdiff_t>(errors.size() / 2),
                   errors.end());
  return errors[errors.size() / 2];
}

// Goal: in 16 bits it is as near to the truth as the CPU device is.
// Method: the median over rows of the distance to double precision, at most 1.15 times the CPU's.
TEST_P(CudaLayer, IsAsAccurateAsTheCpuInSixteenBits) {
  const std::vector<std::uint64_t> lengths = {1, 70, 13};
  for (const DType type : {DType::bf16, DType::f16}) {
    for (const Flavour& flavour : all_flavours()) {
      const TestLayer layer = make_layer(kHidden, flavour.layer, type, 1, flavour.norm);
      const auto x = rounded(TestRandom(21).vector(std::size_t{84} * kHidden, 2.0F), type);
      const auto cpu = cpu_device(best_cpu_isa(), 2);
      RecordingSink from_cpu;
      RecordingSink from_gpu;
      run_block(*loaded_executor(layer, *cpu, type, 84, 0), segments_of(lengths), to_bytes(x, type),
                from_cpu);
      run_block(*loaded_executor(layer, device(), type, 84, 0), segments_of(lengths),
                to_bytes(x, type), from_gpu);
      for (const auto& [point, rows] : truth(layer, x, lengths)) {
        EXPECT_LE(median_row_error(to_floats(from_gpu.rows[point], type), rows),
                  1.15 * median_row_error(to_floats(from_cpu.rows[point], type), rows))
            << flavour.name << " " << dtype_name(type) << " capture " << static_cast<int>(point);
      }
    }
  }
}

// Goal: a row has the same bits whatever block, tile or neighbours it met.
// Method: three samples in one block, against: the samples in another order, each alone, and the
// long one in tiles.
TEST_P(CudaLayer, GivesARowTheSameBitsInAnyBlock) {
  const std::vector<std::uint64_t> lengths = {13, 150, 1};
  for (const DType type : {DType::bf16, DType::f32}) {
    for (const Flavour& flavour : all_flavours()) {
      if (type == DType::f32 && std::string(flavour.name) != "awkward") {
        continue;  // Slow, and the flavours share their kernels.
      }
      const TestLayer layer = make_layer(kHidden, flavour.layer, DType::bf16, 1, flavour.norm);
      std::vector<Bytes> samples;
      for (const std::uint64_t length : lengths) {
        samples.push_back(to_bytes(TestRandom(length).vector(length * kHidden, 2.0F), type));
      }
      const auto executor = loaded_executor(layer, device(), type, 164, 150);
      const std::uint64_t row_bytes = kHidden * dtype_bytes(type);
      /// The blocks' samples in this order; what became of each.
      const auto run = [&](const std::vector<std::vector<std::size_t>>& order) {
        std::vector<std::vector<Segment>> segments;
        std::vector<Block> blocks;
        Bytes state;
        for (const std::vector<std::size_t>& block : order) {
          std::vector<std::uint64_t> rows;
          for (const std::size_t sample : block) {
            rows.push_back(lengths[sample]);
            state.insert(state.end(), samples[sample].begin(), samples[sample].end());
          }
          segments.push_back(segments_of(rows));
        }
        for (const std::vector<Segment>& block : segments) {
          blocks.push_back({block, block.back().row_begin + block.back().rows});
        }
        RecordingSink sink;
        run_blocks(*executor, blocks, state, sink);
        std::map<std::size_t, std::map<CapturePoint, Bytes>> result;
        std::uint64_t at = 0;
        for (const std::vector<std::size_t>& block : order) {
          for (const std::size_t sample : block) {
            for (const auto& [point, bytes] : sink.rows) {
              const std::uint64_t bytes_of_row = bytes.size() / 164;
              const auto begin = bytes.begin() + static_cast<std::ptrdiff_t>(at * bytes_of_row);
              result[sample][point] =
                  Bytes(begin, begin + static_cast<std::ptrdiff_t>(lengths[sample] * bytes_of_row));
            }
            at += lengths[sample];
          }
        }
        return result;
      };
      const auto together = run({{0, 1, 2}});
      EXPECT_EQ(run({{2, 1, 0}}), together) << flavour.name;
      EXPECT_EQ(run({{2}, {1}, {0}}), together) << flavour.name;
      if (!flavour.layer.attention.causal) {
        continue;
      }
      std::vector<Segment> tiles;
      std::vector<Block> blocks;
      for (const std::uint64_t rows : {65, 64, 1, 20}) {
        const std::uint64_t position =
            tiles.empty() ? 0 : tiles.back().position + tiles.back().rows;
        tiles.push_back({0, rows, position, 150});
      }
      for (const Segment& tile : tiles) {
        blocks.push_back({{&tile, 1}, tile.rows});
      }
      RecordingSink sink;
      run_blocks(*executor, blocks, samples[1], sink);
      EXPECT_EQ(sink.rows, together.at(1)) << flavour.name << " in tiles";
      EXPECT_EQ(sink.rows.begin()->second.size(), 150 * row_bytes);
    }
  }
}

// Goal: stages change no bit, with a library whose sums depend on shapes too: slices are the same
// in every stage. On memory from much to the least that does.
TEST_P(CudaLayer, GivesTheSameBitsInStages) {
  const TestLayer layer = make_layer(kHidden * 2, aligned_layer(), DType::bf16);
  ExecutorOptions options = executor_options(layer, DType::bf16, 40, 100);
  options.slice_bytes_max = std::uint64_t{128} * kHidden * 2 * 2;
  options.blocks_max = 5;
  std::vector<std::vector<Segment>> segments = {
      segments_of({10, 1, 20}), segments_of({40}), {{0, 40, 0, 60}}, {{0, 20, 40, 60}}};
  std::vector<Block> blocks;
  std::uint64_t rows = 0;
  for (const std::vector<Segment>& block : segments) {
    blocks.push_back({block, block.back().row_begin + block.back().rows});
    rows += blocks.back().rows;
  }
  const Bytes state = to_bytes(TestRandom(3).vector(rows * kHidden * 2, 2.0F), DType::bf16);
  RecordingSink expected;
  run_blocks(*loaded_executor(layer, device(), options), blocks, state, expected);
  const std::uint64_t whole = LayerExecutor::memory(layer.model, options, device())->device_bytes();
  std::set<std::size_t> stages;
  std::set<std::uint64_t> together;
  for (std::uint64_t limit = whole - 1;; limit -= 20'000) {
    std::unique_ptr<Device> small;
    if (GetParam().real) {
      break;  // Its arena is planned from its own limit: tests/gpu does this with whole jobs.
    }
    small = emulated_device(GetParam().emulated, nullptr, limit);
    const auto memory = LayerExecutor::memory(layer.model, options, *small);
    if (!memory) {
      break;
    }
    EXPECT_TRUE(memory->staged);
    stages.insert(LayerExecutor::stages(layer.model, 0, options, *small)->size());
    if (!together.insert(memory->rows_together).second) {
      continue;
    }
    RecordingSink sink;
    run_blocks(*loaded_executor(layer, *small, options), blocks, state, sink);
    EXPECT_EQ(sink.rows, expected.rows) << limit;
  }
  if (!GetParam().real) {
    EXPECT_GE(*stages.rbegin(), 3U);
    EXPECT_GE(together.size(), 2U);
  }
}

INSTANTIATE_TEST_SUITE_P(Gpus, CudaLayer, testing::ValuesIn(gpus()),
                         [](const auto& gpu) { return std::string(gpu.param.name); });

/// Two layers with the second one's weights loaded while the first one runs.
class LoadingAhead final : public LayerIo {
 public:
  LoadingAhead(RecordingSink& sink, LayerExecutor& executor, const TestLayer& layer)
      : sink_(sink), executor_(executor), layer_(layer) {}

  bool wants(CapturePoint point) const override { return sink_.wants(point); }
  Result<std::span<std::byte>> load(std::size_t block) override { return sink_.load(block); }
  Result<void> capture(CapturePoint point, std::size_t block,
                       std::span<const std::byte> rows) override {
    return sink_.capture(point, block, rows);
  }
  Result<void> store(std::size_t block, std::span<std::byte> rows) override {
    return sink_.store(block, rows);
  }
  Result<void> idle() override {
    if (!loaded_) {
      loaded_ = true;
      executor_.begin_layer(0);
      load_weights(executor_, layer_);
    }
    return {};
  }

 private:
  RecordingSink& sink_;
  LayerExecutor& executor_;
  const TestLayer& layer_;
  bool loaded_ = false;
};

struct TwoLayers {
  Bytes state;
  std::map<CapturePoint, Bytes> rows;
  bool operator==(const TwoLayers&) const = default;
};

TwoLayers run_two_layers(Device& device, bool ahead, const LayerSpec& spec = aligned_layer()) {
  const TestLayer layer = make_layer(kHidden, spec, DType::bf16);
  const auto executor = loaded_executor(layer, device, DType::bf16, 20, 50);
  const std::vector<std::vector<Segment>> segments = {
      segments_of({20}), segments_of({7, 3}), {{0, 20, 0, 30}}, {{0, 10, 20, 30}}};
  std::vector<Block> blocks;
  for (const std::vector<Segment>& block : segments) {
    blocks.push_back({block, block.back().row_begin + block.back().rows});
  }
  TwoLayers result;
  result.state = to_bytes(TestRandom(8).vector(std::size_t{60} * kHidden, 1.0F), DType::bf16);
  RecordingSink sink;
  sink.begin(blocks, result.state);
  LoadingAhead io(sink, *executor, layer);
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(executor->run(blocks, ahead && i == 0 ? static_cast<LayerIo&>(io) : sink, {}));
    if (i == 0 && !ahead) {
      executor->begin_layer(0);
      load_weights(*executor, layer);
    }
  }
  result.rows = sink.rows;
  return result;
}

// Goal: every copy and kernel waits for what it needs, and nothing else makes it right by chance.
// Method: queues go on in another odd order for each seed, as late as they may; host memory that a
// copy still has to read is filled with the next rows meanwhile, and memory begins as NaN.
TEST(CudaQueues, GiveTheSameBitsInWhateverOrderTheyMayRun) {
  const TwoLayers expected = run_two_layers(*emulated_device({}), false);
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    EXPECT_EQ(run_two_layers(*emulated_device({8, 0, 0, seed}), true), expected) << "seed " << seed;
  }
}

// Goal: the same where rows go to experts that the host has sorted: each block's choices are its
// own until its rows have met them.
TEST(CudaQueues, GiveExpertsTheirRowsInWhateverOrderTheyMayRun) {
  LayerSpec spec = aligned_layer();
  spec.moe.experts = 6;
  spec.moe.top_k = 2;
  spec.moe.width = 40;
  spec.moe.shared_width = 24;
  const TwoLayers expected = run_two_layers(*emulated_device({}), false, spec);
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    EXPECT_EQ(run_two_layers(*emulated_device({8, 0, 0, seed}), true, spec), expected)
        << "seed " << seed;
  }
}

// Goal: a library whose sums depend on where a row lies never reaches a store.
// Method: with such a one, layers have the bits of our own kernels.
TEST(CudaDevice, DoesWithoutALibraryThatTreatsRowsUnlike) {
  EmulatedCudaOptions uneven{8, 0, 32};
  uneven.library_rows_differ = true;
  const TwoLayers ours = run_two_layers(*emulated_device({}), false);
  EXPECT_EQ(run_two_layers(*emulated_device(uneven), false), ours);
  EXPECT_NE(run_two_layers(*emulated_device({8, 0, 32}), false), ours) << "a library in earnest";
}

// Goal: the next layer's weights arrive while this one computes, rows come and go meanwhile.
// Method: copies go as early as their tickets let them; then some of the second layer's weights are
// there, and captures of the first have left, before the first layer's last kernel.
TEST(CudaQueues, OverlapUploadsAndDownloadsWithCompute) {
  EmulatedCudaRecord record;
  EmulatedCudaOptions options;
  options.copies_first = true;
  run_two_layers(*emulated_device(options, &record), true);
  std::vector<std::size_t> attention;
  std::vector<std::size_t> weights;
  std::vector<std::size_t> uploads;
  std::vector<std::size_t> downloads;
  for (std::size_t i = 0; i < record.done.size(); ++i) {
    const std::string& what = record.done[i];
    (what == "compute attention"       ? attention
     : what.starts_with("weights")     ? weights
     : what.starts_with("upload copy") ? uploads
                                       : downloads)
        .push_back(i);
  }
  downloads.erase(
      std::remove_if(downloads.begin(), downloads.end(),
                     [&](std::size_t i) { return !record.done[i].starts_with("download"); }),
      downloads.end());
  // Two layers of four blocks: attention 4 is the second layer's first.
  ASSERT_EQ(attention.size(), 8U);
  ASSERT_EQ(uploads.size(), 8U);
  EXPECT_LT(weights.back(), attention[3]) << "weights wait for the layer before to end";
  EXPECT_LT(uploads[1], attention[0]) << "rows wait for the block before";
  EXPECT_LT(downloads[0], attention[1]) << "captures wait for the block after";
}

// Goal: memory is what was planned: one arena, and host memory as said.
TEST(CudaMemory, IsOneArenaOfThePlannedSize) {
  EmulatedCudaRecord record;
  const auto device = emulated_device({}, &record);
  const TestLayer layer = make_layer(kHidden, awkward_layer(), DType::bf16);
  const ExecutorOptions options = executor_options(layer, DType::bf16, 20, 50);
  const ExecutorMemory memory = *LayerExecutor::memory(layer.model, options, *device);
  const auto executor = loaded_executor(layer, *device, options);
  RecordingSink sink;
  run_block(*executor, segments_of({20}),
            to_bytes(TestRandom(8).vector(std::size_t{20} * kHidden, 1.0F), DType::bf16), sink);
  EXPECT_THAT(record.allocations, testing::ElementsAre(memory.device_bytes()));
  std::uint64_t host = 0;
  for (const std::uint64_t bytes : record.host_allocations) {
    host += bytes;
  }
  EXPECT_EQ(host, memory.host_bytes);
}

// Goal: a table on its way is not overwritten by those after it, however far behind the GPU is.
TEST(CudaQueues, KeepTablesUntilTheyWereRead) {
  const auto runtime = make_emulated_cuda({});
  DeviceMemory memory = *runtime->allocate_host(CudaTables::kHostBytes);
  CudaTables tables(*runtime, std::move(memory));
  std::vector<std::uint32_t> seen(5 * CudaTables::kSlots);
  for (std::uint32_t i = 0; i < seen.size(); ++i) {
    tables.with(std::span<const std::uint32_t>(&i, 1), [&](const std::uint32_t* table) {
      runtime->copy(Queue::compute, {reinterpret_cast<const std::byte*>(table),
                                     reinterpret_cast<std::byte*>(&seen[i]), 4, 1, 4, 4});
    });
  }
  while (!*runtime->reached(runtime->mark(Queue::compute))) {
  }
  for (std::uint32_t i = 0; i < seen.size(); ++i) {
    ASSERT_EQ(seen[i], i);
  }
}

// Goal: a GPU that fails is an error, not a hang and not numbers.
TEST(CudaQueues, PassOnThatTheGpuFailed) {
  for (const std::uint64_t after : {0, 3, 20, 40}) {
    const auto device = emulated_device({8, 0, 0, 1, false, after});
    const TestLayer layer = make_layer(kHidden, awkward_layer(), DType::bf16);
    const auto executor = loaded_executor(layer, *device, DType::bf16, 20, 50);
    Bytes state(std::size_t{20} * kHidden * 2);
    const std::vector<Segment> segments = segments_of({20});
    const Block block{segments, 20};
    RecordingSink sink;
    sink.begin({&block, 1}, state);
    const auto done = executor->run({&block, 1}, sink, {});
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().code(), ErrorCode::internal);
    EXPECT_THAT(done.error().message(), HasSubstr("failed"));
  }
}

// Goal: when a run ends early, nothing on its way reads tensors or rows that may go away now.
// Method: a capture fails while stages are being uploaded; no work is done after run() returned.
TEST(CudaQueues, AreEmptyWhenARunHasFailed) {
  const TestLayer layer = make_layer(kHidden * 2, aligned_layer(), DType::bf16);
  ExecutorOptions options = executor_options(layer, DType::bf16, 20, 20);
  options.slice_bytes_max = std::uint64_t{128} * kHidden * 2 * 2;
  const std::uint64_t whole =
      LayerExecutor::memory(layer.model, options, *emulated_device({}))->device_bytes();
  EmulatedCudaRecord record;
  const auto device = emulated_device({}, &record, whole - 1);
  auto executor = loaded_executor(layer, *device, options);
  ASSERT_TRUE(executor->keeps_tensors());
  const std::vector<Segment> segments = segments_of({20});
  const Block block{segments, 20};
  Bytes state(std::size_t{20} * kHidden * 2 * 2);
  RecordingSink sink;
  sink.failure = Error(ErrorCode::no_space, "full");
  sink.begin({&block, 1}, state);
  EXPECT_EQ(executor->run({&block, 1}, sink, {}).error().code(), ErrorCode::no_space);
  const std::size_t done = record.done.size();
  executor.reset();
  EXPECT_EQ(record.done.size(), done);
}

TEST(CudaDevice, RefusesBlocksThatItsTablesCannotHold) {
  const auto device = emulated_device({});
  const TestLayer layer = make_layer(kHidden, awkward_layer(), DType::bf16);
  const auto refused = LayerExecutor::create(
      layer.model, executor_options(layer, DType::bf16, 1U << 20U, 50), *device);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message(), HasSubstr("at most"));
}

TEST(CudaDevice, SaysWhatItIs) {
  const auto turing = emulated_device({7, 5});
  EXPECT_THAT(turing->kind(), StartsWith("cuda-sm75-"));
  EXPECT_THAT(turing->warnings(DType::bf16), Contains(HasSubstr("no tensor cores for bf16")));
  EXPECT_THAT(emulated_device({})->warnings(DType::bf16),
              testing::Not(Contains(HasSubstr("tensor cores"))));
  // The record of a part: every way a matrix of this size may be multiplied.
  const std::vector<ProductSize> sizes = {{4096, 512, false}};
  EXPECT_THAT(*turing->plan_products(sizes, DType::bf16),
              testing::ElementsAre(HasSubstr("bf16 512 to 4096 bf16: own kernel in f32"),
                                   HasSubstr("bf16 512 to 4096 f32: own kernel in f32")));
  EXPECT_THAT(*emulated_device({8, 0, 32})->plan_products(sizes, DType::f16),
              Contains(HasSubstr("cuBLASLt emulated")));
  // A library that gives a row other bits in another place is not used, and the record says why.
  EmulatedCudaOptions uneven{8, 0, 32};
  uneven.library_rows_differ = true;
  EXPECT_THAT(*emulated_device(uneven)->plan_products(sizes, DType::f16),
              testing::Each(HasSubstr("own kernel on tensor cores, since cuBLASLt's")));
}

}  // namespace
}  // namespace librarian::gpu_exec
