// Goal: everything a job derives from sizes alone is right and within its limit, for any sizes.
// Method: properties over random sample lengths; a small model planned at every limit.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "gpu_exec/cpu_isa.h"
#include "ingest/disk_plan.h"
#include "ingest/layer_flops.h"
#include "ingest/memory_plan.h"
#include "ingest/partition.h"
#include "ingest/run_report.h"
#include "tests/ingest/tiny_model.h"
#include "weightmap/remote/fetcher.h"

namespace librarian::ingest {
namespace {

using std::chrono::seconds;

std::vector<std::int64_t> random_offsets(std::mt19937& engine, std::int64_t origin = 0) {
  std::vector<std::int64_t> offsets{origin};
  const std::size_t samples = 1 + engine() % 40;
  for (std::size_t i = 0; i < samples; ++i) {
    const std::int64_t length = engine() % 5 == 0 ? 1 + engine() % 300 : 1 + engine() % 20;
    offsets.push_back(offsets.back() + length);
  }
  return offsets;
}

// Catches: a sample lost or doubled, a part that is not greedy, a limit that is broken.
TEST(Partition, CoversAllSamplesInOrderGreedily) {
  std::mt19937 engine(1);
  for (int round = 0; round < 500; ++round) {
    const std::vector<std::int64_t> offsets = random_offsets(engine);
    const std::uint64_t limit = 1 + engine() % 200;
    std::uint64_t sample = 0;
    const auto parts = partition_samples(offsets, limit);
    for (std::size_t i = 0; i < parts.size(); ++i) {
      ASSERT_EQ(parts[i].first_sample, sample);
      ASSERT_GE(parts[i].samples, 1U);
      const auto tokens =
          static_cast<std::uint64_t>(offsets[sample + parts[i].samples] - offsets[sample]);
      ASSERT_EQ(parts[i].tokens, tokens);
      ASSERT_TRUE(tokens <= limit || parts[i].samples == 1);
      sample += parts[i].samples;
      if (i + 1 < parts.size()) {
        const auto next = static_cast<std::uint64_t>(offsets[sample + 1] - offsets[sample]);
        ASSERT_GT(tokens + next, limit) << "the next sample would have fitted";
      }
    }
    ASSERT_EQ(sample + 1, offsets.size());
  }
}

TEST(Partition, OfAutomaticSizeIsAPowerOfTwoOfAtMost8GiB) {
  for (const std::uint64_t bytes :
       {1ULL, 2ULL, 4096ULL, 8192ULL, 16384ULL, 10240ULL, 1ULL << 33U, 1ULL << 40U}) {
    const std::uint64_t tokens = auto_part_tokens(bytes);
    EXPECT_EQ(tokens & (tokens - 1), 0U);
    EXPECT_TRUE(tokens == 1 || tokens * bytes <= kAutoPartStateBytes);
    EXPECT_GT(tokens * 2 * bytes, kAutoPartStateBytes);
  }
  EXPECT_EQ(auto_part_tokens(8192 * 2), 524288U);
}

// Catches: rows lost at tile borders, a short sample cut, a tile that shares its block.
TEST(Blocks, CoverTheRowsAndTileLongSamples) {
  std::mt19937 engine(2);
  for (int round = 0; round < 500; ++round) {
    const std::vector<std::int64_t> offsets = random_offsets(engine, engine() % 1000);
    const std::uint64_t limit = 1 + engine() % 64;
    std::uint64_t row = 0;
    std::size_t sample = 0;
    std::uint64_t position = 0;
    for (const BlockRange& block : plan_blocks(offsets, limit)) {
      ASSERT_EQ(block.row_begin, row);
      ASSERT_GE(block.rows, 1U);
      ASSERT_LE(block.rows, limit);
      std::uint64_t in_block = 0;
      for (const gpu_exec::Segment& segment : block.segments) {
        const auto length = static_cast<std::uint64_t>(offsets[sample + 1] - offsets[sample]);
        ASSERT_EQ(segment.row_begin, in_block);
        ASSERT_EQ(segment.position, position);
        if (length > limit) {
          ASSERT_EQ(block.segments.size(), 1U);
          ASSERT_EQ(segment.rows, std::min(limit, length - position));
        } else {
          ASSERT_EQ(segment.rows, length);
        }
        in_block += segment.rows;
        position += segment.rows;
        if (position == length) {
          position = 0;
          ++sample;
        }
      }
      ASSERT_EQ(in_block, block.rows);
      row += block.rows;
    }
    ASSERT_EQ(row, static_cast<std::uint64_t>(offsets.back() - offsets.front()));
    ASSERT_EQ(sample + 1, offsets.size());
  }
}

/// A small model and everything else that plan_memory() asks for.
class MemoryWorld {
 public:
  MemoryWorld()
      : files_(testing::tiny_model({6, 256, 1024, 500, 1})),
        transport_(files_),
        fetcher_(transport_, real_clock(), {}),
        checkpoint_(weightmap::Checkpoint::open(
                        fetcher_, *weightmap::remote::parse_uri(testing::kModelUri), {})
                        .value()),
        captures_(parse_captures({"resid_post@all,attn_out@all"}, {6}).value()),
        device_(gpu_exec::make_cpu_device(gpu_exec::CpuIsa::portable, 1).value()) {
    inputs.checkpoint = &checkpoint_;
    inputs.captures = &captures_;
    inputs.device = device_.get();
    inputs.codec = activation_store::Codec::zstd;
    inputs.chunk_tokens = 64;
    inputs.shard_tokens = 1024;
    inputs.part_tokens_max = 20'000;
    inputs.sample_tokens_max = 3'000;
    inputs.token_bytes = 100'000;
    inputs.blocks_max = [this](std::uint64_t block_tokens) {
      return 2 * inputs.part_tokens_max / block_tokens + 1;
    };
  }
  MemoryInputs inputs;

 private:
  std::map<std::string, std::string> files_;
  testing::MapTransport transport_;
  weightmap::remote::Fetcher fetcher_;
  weightmap::Checkpoint checkpoint_;
  CaptureList captures_;
  std::unique_ptr<gpu_exec::Device> device_;
};

/// The limit that an error of plan_memory() says would do, in MiB.
std::uint64_t suggested_mib(const Error& error) {
  const std::string& text = error.message();
  const std::size_t at = text.find("would do is ");
  EXPECT_NE(at, std::string::npos) << text;
  return at == std::string::npos ? 0 : std::stoull(text.substr(at + 12));
}

std::uint64_t sum_of(const MemoryPlan& plan) {
  return plan.packed_weight_bytes + plan.workspace_bytes + plan.ring_bytes + plan.state_bytes +
         plan.encode_bytes + plan.table_bytes;
}

// Catches: a plan above its limit; more memory that gives a worse plan; advice that is not enough,
// or more than is needed.
TEST(MemoryPlan, StaysWithinEveryLimitAndSaysTheSmallest) {
  MemoryWorld world;
  for (const StateMode state : {StateMode::automatic, StateMode::memory, StateMode::disk}) {
    for (const std::uint64_t block : {0U, 1U, 48U, 512U, 100'000U}) {
      for (const std::uint64_t part : {1U, 15U, 300U, 20'000U}) {
        MemoryInputs& in = world.inputs;
        in.state = state;
        in.block_tokens = block;
        in.part_tokens_max = part;
        in.sample_tokens_max = std::min<std::uint64_t>(part, 3'000);
        SCOPED_TRACE("state " + std::to_string(static_cast<int>(state)) + " block " +
                     std::to_string(block) + " part " + std::to_string(part));
        in.limit_bytes = 1;
        const auto nothing = plan_memory(in);
        ASSERT_FALSE(nothing);
        EXPECT_EQ(nothing.error().code(), ErrorCode::does_not_fit);
        const std::uint64_t smallest = suggested_mib(nothing.error());
        in.limit_bytes = smallest << 20U;
        EXPECT_TRUE(plan_memory(in)) << smallest << " MiB, as advised";
        in.limit_bytes = (smallest - 1) << 20U;
        const auto less = plan_memory(in);
        EXPECT_FALSE(less) << "less than the smallest of " << smallest << " MiB did";
        MemoryPlan before;
        bool first = true;
        for (std::uint64_t mib = smallest; mib < smallest + 80; mib += 1 + (mib - smallest) / 8) {
          in.limit_bytes = mib << 20U;
          const auto plan = plan_memory(in);
          ASSERT_TRUE(plan) << mib;
          ASSERT_LE(plan->total_bytes, in.limit_bytes);
          EXPECT_EQ(plan->total_bytes, sum_of(*plan));
          EXPECT_GE(plan->block_tokens, 1U);
          if (plan->readings_max > 1) {
            EXPECT_TRUE(plan->executor_memory.streamed);
            const std::uint64_t blocks = in.blocks_max(plan->block_tokens);
            const std::uint64_t together = plan->executor_memory.rows_together / plan->block_tokens;
            EXPECT_EQ(plan->readings_max, (blocks + together - 1) / together);
            EXPECT_GE(plan->executor_memory.rows_together, std::min<std::uint64_t>(4096, part));
          }
          if (state != StateMode::automatic) {
            EXPECT_EQ(plan->state_in_memory, state == StateMode::memory);
          }
          if (!first) {
            EXPECT_GE(plan->whole_layer_prefetch, before.whole_layer_prefetch) << mib;
            if (plan->whole_layer_prefetch == before.whole_layer_prefetch &&
                std::min<std::uint64_t>(256, plan->block_tokens) ==
                    std::min<std::uint64_t>(256, before.block_tokens)) {
              EXPECT_GE(plan->state_in_memory, before.state_in_memory) << mib;
            }
          }
          before = *plan;
          first = false;
        }
      }
    }
  }
}

TEST(MemoryPlan, PutsTheStateOnDiskWhereItDoesNotFit) {
  MemoryWorld world;
  MemoryInputs& in = world.inputs;
  in.part_tokens_max = 1'000'000;  // 512 MB of state.
  in.limit_bytes = 200U << 20U;
  auto plan = plan_memory(in);
  ASSERT_TRUE(plan) << plan.error().message();
  EXPECT_FALSE(plan->state_in_memory);
  in.limit_bytes = 2000ULL << 20U;
  plan = plan_memory(in);
  ASSERT_TRUE(plan);
  EXPECT_TRUE(plan->state_in_memory);
  EXPECT_GE(plan->state_bytes, 512'000'000U);
  in.state = StateMode::memory;
  in.limit_bytes = 200U << 20U;
  plan = plan_memory(in);
  ASSERT_FALSE(plan);
  EXPECT_NE(plan.error().message().find("--state"), std::string::npos);
}

// Catches: arrays of scales that find no free slot, and so a job that stands still; lists of rows
// and buffers of lossy copies that nobody counted.
TEST(MemoryPlan, CountsWhatCapturesWithParametersAddToIt) {
  MemoryWorld world;
  MemoryInputs& in = world.inputs;
  in.limit_bytes = 1ULL << 30U;
  const auto plain = plan_memory(in);
  ASSERT_TRUE(plain);
  const CaptureList lossy =
      parse_captures(
          {"resid_post@all(dtype=fp8_e4m3,positions=last)", "attn_out@all(dtype=fp8_e4m3)"}, {6})
          .value();
  in.captures = &lossy;
  in.kept_row_bytes = 1'000'000;
  const auto plan = plan_memory(in);
  ASSERT_TRUE(plan);
  // Four arrays of two layers at a time, each with a slot that is being filled.
  EXPECT_GE(plan->encode.slots, 2U * 4 + 2);
  EXPECT_GE(plan->table_bytes, plain->table_bytes + in.kept_row_bytes);
  EXPECT_GT(plan->encode_bytes, plain->encode_bytes + 4 * 2 * (256U << 10U));
}

// Rows and types of each array decide, and lossy ones take less.
TEST(DiskPlan, ExpectsLessOfLossyArrays) {
  using activation_store::StoredType;
  DiskInputs in;
  in.codec = activation_store::Codec::zstd;
  in.arrays = {{"whole", 1000, 512, StoredType::bf16},
               {"rounded", 1000, 512, StoredType::bf16, 4},
               {"fp8", 1000, 256, StoredType::f8_e4m3},
               {"some", 10, 512, StoredType::bf16}};
  const DiskPlan plan = plan_disk(in);
  ASSERT_EQ(plan.arrays.size(), 4U);
  EXPECT_EQ(plan.raw_bytes, 512'000U + 512'000 + 256'000 + 5'120);
  EXPECT_EQ(plan.arrays[0].store_bytes, 365'714U);
  EXPECT_LT(plan.arrays[1].store_bytes, plan.arrays[0].store_bytes * 3 / 4);
  EXPECT_LT(plan.arrays[2].store_bytes, plan.arrays[1].store_bytes);
  EXPECT_EQ(plan.arrays[3].store_bytes, 3'657U);
}

TEST(DiskPlan, AddsUpForAHandComputedJob) {
  DiskInputs in;
  in.tokens = 1000;
  in.part_tokens_max = 400;
  in.row_bytes = 512;
  in.arrays = {{"a", 1000, 512}, {"b", 1000, 512}, {"c", 500, 1024}};
  in.codec = activation_store::Codec::none;
  DiskPlan plan = plan_disk(in);
  EXPECT_EQ(plan.raw_bytes, 1000U * 512 * 3);
  EXPECT_EQ(plan.store_bytes, plan.raw_bytes);
  EXPECT_EQ(plan.scratch_peak_bytes, 0U) << "every layer's state is a capture";
  EXPECT_EQ(plan.written_bytes, plan.store_bytes);
  in.uncovered_layers = 5;
  plan = plan_disk(in);
  EXPECT_EQ(plan.scratch_peak_bytes, 2U * 400 * 512);
  EXPECT_EQ(plan.peak_bytes, plan.store_bytes + plan.scratch_peak_bytes);
  in.state_in_memory = false;
  EXPECT_EQ(plan_disk(in).written_bytes, plan.store_bytes + 1000U * 512 * 5);
  in.codec = activation_store::Codec::zstd;
  EXPECT_LT(plan_disk(in).store_bytes, plan.store_bytes);
}

TEST(LayerFlops, AreThoseOfAHandComputedLayer) {
  gpu_exec::ModelSpec model;
  model.hidden_size = 8;
  model.layers.resize(2);
  gpu_exec::LayerSpec& layer = model.layers[0];
  layer.attention.heads = 4;
  layer.attention.kv_heads = 2;
  layer.attention.head_dim = 3;
  layer.mlp.width = 10;
  model.layers[1] = layer;
  model.layers[1].attention.window = 2;
  const std::vector<std::int64_t> offsets{5, 8, 9};  // Samples of 3 and 1.
  const double parameters = 8 * 12 + 2 * 8 * 6 + 12 * 8 + 3 * 8 * 10;
  EXPECT_DOUBLE_EQ(layer_flops(model, 0, offsets), 2 * parameters * 4 + 4 * 12 * (1 + 2 + 3 + 1));
  EXPECT_DOUBLE_EQ(layer_flops(model, 1, offsets), 2 * parameters * 4 + 4 * 12 * (1 + 2 + 2 + 1));
}

struct PaceCase {
  std::vector<LayerPace> layers;
  int bound, fetch, compute, write;
  const char* pacemaker;
};

// First fetch, then per layer the slowest of: the next one's fetch, its compute, its write; then
// the last write.
TEST(PaceBound, IsThatOfHandComputedCases) {
  const auto pace = [](int fetch, int compute, int write) {
    return LayerPace{seconds(fetch), seconds(compute), seconds(write)};
  };
  const PaceCase cases[] = {
      {{}, 0, 0, 0, 0, "compute"},
      {{pace(3, 5, 2)}, 10, 3, 5, 2, "compute"},
      {{pace(9, 1, 2)}, 12, 9, 1, 2, "network"},
      {{pace(1, 1, 9)}, 11, 1, 1, 9, "encode+write"},
      {{pace(1, 10, 1), pace(1, 10, 1), pace(1, 10, 1)}, 32, 1, 30, 1, "compute"},
      {{pace(10, 1, 1), pace(10, 1, 1), pace(10, 1, 1)}, 32, 30, 1, 1, "network"},
      {{pace(1, 1, 10), pace(1, 1, 10), pace(1, 1, 10)}, 32, 1, 1, 30, "encode+write"},
      {{pace(2, 3, 7), pace(5, 6, 4), pace(8, 1, 3)}, 2 + 7 + 8 + 1 + 3, 10, 1, 10, "network"},
  };
  for (const PaceCase& row : cases) {
    const PaceBound bound = pace_bound(row.layers);
    EXPECT_EQ(bound.bound, seconds(row.bound));
    EXPECT_EQ(bound.fetch_bound, seconds(row.fetch));
    EXPECT_EQ(bound.compute_bound, seconds(row.compute));
    EXPECT_EQ(bound.write_bound, seconds(row.write));
    EXPECT_EQ(bound.pacemaker(), row.pacemaker);
  }
}

}  // namespace
}  // namespace librarian::ingest
