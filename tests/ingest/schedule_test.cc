// Goal: the slowest part sets the pace (design 1.5): fetch, compute and write overlap so that the
// wall is the bound: first fetch + sum over layers of the slowest stage + last write. On a GPU the
// way of the weights to the device is one more stage: they go there while the layer before runs.
// Method: the whole job on virtual time, with a network, a device and a disk of known speeds. All
// else takes no time there, so what the wall has above the bound is a hole in the schedule.
#include <gtest/gtest.h>

#include <memory>

#include "ingest/job.h"
#include "ingest/run_report.h"
#include "tests/ingest/paced_doubles.h"
#include "tests/ingest/tiny_model.h"
#include "tests/support/fake_clock.h"
#include "tests/support/memory_file_system.h"

namespace librarian::ingest {
namespace {

using librarian::testing::FakeClock;
using librarian::testing::MemoryFileSystem;

constexpr int kLayers = 12;
constexpr int kHidden = 64;
constexpr int kWidth = 128;
constexpr int kTokens = 96;

struct Pace {
  const char* name;
  double fetch_seconds;    ///< Of one layer.
  double compute_seconds;  ///< Of one layer over all tokens.
  double write_seconds;    ///< Of one layer's captures.
  double load_seconds;     ///< Of one layer to a GPU; 0: on the CPU, where it takes no time.
};
void PrintTo(const Pace& pace, std::ostream* out) { *out << pace.name; }

double layer_bytes() {
  const double head = kHidden / 2.0;
  return 2.0 *
         (2 * kHidden + 3.0 * kHidden * kWidth + 2 * head * kHidden + 2.0 * kHidden * kHidden);
}
double layer_flops_without_attention() {
  const double head = kHidden / 2.0;
  return 2.0 * kTokens * (3.0 * kHidden * kWidth + 2 * head * kHidden + 2.0 * kHidden * kHidden);
}
/// One raw capture of a layer: --codec none, so that its size is known beforehand.
double capture_bytes() { return 2.0 * kTokens * kHidden; }

struct Timed {
  double wall_seconds;
  RunReport report;
  std::vector<double> file_seconds;  ///< On the wire, of each whole file.
};

/// Runs the job at this pace, on virtual time.
Result<Timed> run_job(const Pace& pace, StagingMode staging) {
  testing::TinyModelOptions model_options;
  model_options.layers = kLayers;
  model_options.hidden = kHidden;
  model_options.width = kWidth;
  const auto model = testing::tiny_model(model_options);
  FakeClock clock;
  const Activity test_thread(clock);
  MemoryFileSystem memory;
  LIB_TRY_VOID(
      replace_file(memory, "/tokens.safetensors", testing::token_file({40, 30, 26}, 32, 5)));
  testing::PacedFileSystem files(clock, memory, capture_bytes() / pace.write_seconds);

  JobOptions options;
  options.model = testing::kModelUri;
  options.tokens = "/tokens.safetensors";
  options.out = "/out";
  options.codec = activation_store::Codec::none;
  options.block_tokens = 40;
  options.chunk_tokens = 4;
  options.shard_tokens = 32;
  options.host_memory_bytes = 1U << 30U;
  options.threads = 2;
  options.staging = staging;
  const double network = layer_bytes() / pace.fetch_seconds;
  JobEnvironment environment = JobEnvironment::real();
  environment.clock = &clock;
  environment.files = &files;
  environment.make_transport = [&](const JobOptions& /*options*/) {
    return std::make_unique<testing::PacedTransport>(
        clock, std::make_shared<testing::MapTransport>(model), network);
  };
  environment.make_device =
      [&](const JobOptions& job) -> Result<std::unique_ptr<gpu_exec::Device>> {
    LIB_TRY(std::unique_ptr<gpu_exec::Device> inner,
            gpu_exec::make_cpu_device(gpu_exec::CpuIsa::portable, job.threads));
    const double flops_per_second = layer_flops_without_attention() / pace.compute_seconds;
    if (pace.load_seconds != 0) {
      return std::make_unique<testing::PacedGpu>(clock, std::move(inner), flops_per_second,
                                                 layer_bytes() / pace.load_seconds);
    }
    return std::make_unique<testing::PacedDevice>(clock, std::move(inner), flops_per_second);
  };
  LIB_TRY(const auto job, PreparedJob::create(options, environment, {}));
  JobObserver nobody;
  const TimePoint begin = clock.now();
  LIB_TRY(RunReport report, job->run(nobody, {}));
  Timed timed{std::chrono::duration<double>(clock.now() - begin).count(), std::move(report), {}};
  for (const auto& [name, text] : model) {
    if (name.ends_with(".safetensors")) {
      timed.file_seconds.push_back(static_cast<double>(text.size()) / network);
    }
  }
  return timed;
}

class ScheduleTest : public ::testing::TestWithParam<Pace> {};

TEST_P(ScheduleTest, TheWallIsTheBoundWithinTwoPercent) {
  const Pace& pace = GetParam();
  const auto timed = run_job(pace, StagingMode::memory);
  ASSERT_TRUE(timed) << timed.error().message();
  const double wall = timed->wall_seconds;
  const RunReport& report = timed->report;

  const double embedding_fetch = 32.0 * kHidden * 2 * pace.fetch_seconds / layer_bytes();
  // Checksums, index and the padding of the last chunk are written too.
  const double write =
      pace.write_seconds * static_cast<double>(report.stored_bytes) / (kLayers * capture_bytes());
  const double slowest =
      std::max({pace.fetch_seconds, pace.compute_seconds, write, pace.load_seconds});
  // The embedding only waits for the first layer; the last layer has nothing to fetch behind it.
  const double bound = embedding_fetch + pace.fetch_seconds + pace.load_seconds +
                       (kLayers - 1) * slowest + pace.compute_seconds + write;
  EXPECT_LE(wall, bound * 1.02) << "a hole in the schedule";
  EXPECT_GE(wall, bound * 0.90) << "the doubles did not take their time";
  if (pace.load_seconds != 0) {
    return;
  }
  // What the run says of itself is the same.
  const double reported = std::chrono::duration<double>(report.bound.bound).count();
  EXPECT_NEAR(reported, bound, 0.03 * bound);
  EXPECT_EQ(report.bound.pacemaker(), slowest == pace.fetch_seconds     ? "network"
                                      : slowest == pace.compute_seconds ? "compute"
                                                                        : "encode+write");
}

// Goal: files come while the layers of those before run: nothing but the first file is waited for
// where the processor is slow, nothing but the last one's layers follow where the network is.
TEST(StagedSchedule, OnlyTheFirstFileOrTheLastLayersStandAlone) {
  for (const Pace& pace : {Pace{"network", 10, 4, 2, 0}, Pace{"compute", 2, 10, 3, 0}}) {
    SCOPED_TRACE(pace.name);
    const auto timed = run_job(pace, StagingMode::disk);
    ASSERT_TRUE(timed) << timed.error().message();
    ASSERT_EQ(timed->report.staging, "disk");
    ASSERT_EQ(timed->file_seconds.size(), 2U);
    const double first = timed->file_seconds[0];
    const double both = first + timed->file_seconds[1];
    const double after_network = both + kLayers / 2.0 * pace.compute_seconds;
    const double after_compute = first + kLayers * pace.compute_seconds;
    const double bound = std::max(after_network, after_compute);
    EXPECT_LE(timed->wall_seconds, 1.02 * (bound + 1.2 * pace.write_seconds));
    EXPECT_GE(timed->wall_seconds, bound);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Regimes, ScheduleTest,
    ::testing::Values(Pace{"network", 10, 4, 2, 0}, Pace{"compute", 4, 10, 3, 0},
                      Pace{"write", 3, 4, 10, 0}, Pace{"balanced", 10, 9.9, 9.8, 0},
                      Pace{"gpu_network", 10, 4, 2, 3}, Pace{"gpu_compute", 4, 10, 3, 6},
                      Pace{"gpu_load", 3, 6, 2, 10}, Pace{"gpu_write", 3, 4, 10, 5},
                      Pace{"gpu_balanced", 10, 9.9, 9.8, 9.7}),
    [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace librarian::ingest
