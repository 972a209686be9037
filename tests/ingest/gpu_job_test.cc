// Goal: a job on a GPU keeps the promises that one on the CPU keeps: each weight is fetched once
// per pass and on its way while the layer before runs; no memory, order of queues, failure or death
// changes the store.
// Method: whole jobs over the CUDA device on an emulated GPU, which does its work as late and in as
// odd an order as it may; files and network are in memory.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <stop_token>

#include "gpu_exec/cuda_device.h"
#include "ingest/job.h"
#include "ingest/part_journal.h"
#include "tests/ingest/tiny_model.h"
#include "tests/support/emulated_cuda.h"
#include "tests/support/memory_file_system.h"

namespace librarian::ingest {
namespace {

using gpu_exec::EmulatedCudaOptions;
using gpu_exec::EmulatedCudaRecord;
using librarian::testing::MemoryFileSystem;
using testing::MapTransport;
using weightmap::remote::TransferRequest;
using weightmap::remote::TransferResult;

constexpr std::uint64_t kRoomy = 1ULL << 30U;
constexpr std::uint64_t kParts = 3;
constexpr std::uint64_t kEmbedBytes = 32ULL * 16 * 2;
constexpr std::uint64_t kLayerBytes = 2ULL * (2 * 16 + 3 * 16 * 24 + 2 * 8 * 16 + 2 * 16 * 16);
constexpr int kLayers = 4;
constexpr std::uint64_t kNormBytes = 16ULL * 2;

const std::map<std::string, std::string>& model() {
  static const std::map<std::string, std::string> files = testing::tiny_model({kLayers});
  return files;
}

/// Serves the model, but for one request.
class FailingTransport final : public weightmap::remote::Transport {
 public:
  /// @param fails  Whether a request fails; null: none does.
  explicit FailingTransport(std::function<bool(const TransferRequest&)> fails)
      : source_(model()), fails_(std::move(fails)) {}
  void start(TransferRequest request, std::function<void(TransferResult)> done) override {
    if (fails_ && fails_(request)) {
      TransferResult result;
      result.error = Error(ErrorCode::not_found, "gone");
      done(std::move(result));
      return;
    }
    source_.start(std::move(request), std::move(done));
  }

 private:
  MapTransport source_;
  std::function<bool(const TransferRequest&)> fails_;
};

/// A directory, and the machines that work on it one after the other.
class Job {
 public:
  Job() {
    LIB_CHECK(replace_file(files_, "/tokens.safetensors",
                           testing::token_file({5, 7, 1, 20, 3, 11, 1, 6, 4}, 32, 7))
                  .has_value());
    options.model = testing::kModelUri;
    options.tokens = "/tokens.safetensors";
    options.out = "/out";
    options.captures = {"embed", "resid_post@all,attn_out@all,mlp_out@all", "final.post_norm"};
    options.part_tokens = 24;
    options.block_tokens = 8;
    options.chunk_tokens = 4;
    options.shard_tokens = 8;
    options.host_memory_bytes = 256U << 20U;
    options.threads = 1;
    options.skeleton = false;  // Its bytes are no pass's.
  }

  Result<RunReport> run() {
    JobObserver nobody;
    return run(nobody, {});
  }
  Result<RunReport> run(JobObserver& observer, const std::stop_token& stop) {
    LIB_TRY(const std::unique_ptr<PreparedJob> job, prepare());
    stages = job->memory().executor_memory.staged;
    return job->run(observer, stop);
  }

  Result<std::unique_ptr<PreparedJob>> prepare() {
    JobEnvironment environment = JobEnvironment::real();
    environment.files = &files_;
    environment.make_transport = [&](const JobOptions& /*options*/) {
      return std::make_unique<FailingTransport>(fails);
    };
    if (!on_cpu) {
      environment.make_device = [&](const JobOptions& /*options*/) {
        return make_cuda_device(gpu_exec::make_emulated_cuda(gpu, record), memory_bytes);
      };
    }
    return PreparedJob::create(options, environment, {});
  }

  /// The store as `diff -r` sees it, run-specific files left out.
  std::map<std::string, std::string> store() const {
    std::map<std::string, std::string> contents;
    for (const auto& [path, text] : files_.snapshot()) {
      if (path.starts_with("/out") && path != "/out/report.json" && path != "/out/.lock") {
        contents[path] = text;
      }
    }
    return contents;
  }

  /// Whether every part's journal can be read; published parts have none.
  bool journals_are_valid() {
    for (std::uint64_t part = 0; part < kParts; ++part) {
      const std::string directory = "/out/part-0000" + std::to_string(part);
      if (files_.info(directory + "/.journal") && !read_part_journal(files_, directory)) {
        return false;
      }
    }
    return true;
  }

  JobOptions options;
  EmulatedCudaOptions gpu;
  EmulatedCudaRecord* record = nullptr;
  std::uint64_t memory_bytes = kRoomy;
  bool on_cpu = false;
  std::function<bool(const TransferRequest&)> fails;
  bool stages = false;  ///< Whether weights came in stages, once it ran.

 private:
  MemoryFileSystem files_;
};

/// Memory for whole layers, and the least that stages need.
struct Memories {
  std::uint64_t resident = 0, staged = 0;
};
Memories memories() {
  static const Memories known = [] {
    Job job;
    const auto report = job.run();
    LIB_CHECK(report.has_value());
    Memories found{report->device_planned_bytes, 0};
    std::uint64_t refused = 0;
    found.staged = found.resident;
    while (found.staged - refused > 64) {
      Job smaller;
      smaller.memory_bytes = (refused + found.staged) / 2;
      (smaller.run() ? found.staged : refused) = smaller.memory_bytes;
    }
    return found;
  }();
  return known;
}

/// Places with memory for whole layers, for stages of some blocks together, and of one.
std::vector<std::uint64_t> all_memories() {
  const Memories known = memories();
  return {known.resident, (known.resident + known.staged) / 2, known.staged};
}

// Goal: with more layers than the device holds, several parts, the embedding and the final norm,
// every weight comes over the network once per part, and the store is the same.
TEST(GpuJob, FetchesEachWeightOncePerPassWhateverTheDeviceHolds) {
  Job reference;
  ASSERT_TRUE(reference.run());
  EXPECT_FALSE(reference.stages);
  std::uint64_t seed = 2;
  for (const std::uint64_t memory : all_memories()) {
    for (const bool copies_first : {false, true}) {
      for (const StateMode state : {StateMode::memory, StateMode::disk}) {
        Job job;
        job.memory_bytes = memory;
        job.gpu.seed = seed++;
        job.gpu.copies_first = copies_first;
        job.options.state = state;
        const auto report = job.run();
        ASSERT_TRUE(report) << report.error().message();
        EXPECT_EQ(job.stages, memory < memories().resident);
        EXPECT_LE(report->device_planned_bytes, memory);
        const std::uint64_t pass = kEmbedBytes + kLayers * kLayerBytes + kNormBytes;
        EXPECT_EQ(report->needed_bytes, kParts * pass);
        EXPECT_EQ(report->fetched_bytes, kParts * pass);
        EXPECT_EQ(job.store(), reference.store()) << memory << " seed " << seed;
      }
    }
  }
}

// Goal: memory for weights on their way is used again only when the device has read it.
// Method: the least host memory, where they come piece by piece: the next piece takes the place of
// one whose copy the emulated GPU may not have begun.
TEST(GpuJob, LeavesTheSameStoreInTheLeastHostMemory) {
  Job reference;
  ASSERT_TRUE(reference.run());
  for (const std::uint64_t memory : all_memories()) {
    std::uint64_t refused = 0;
    std::uint64_t accepted = 256U << 20U;
    while (accepted - refused > 64) {
      Job smaller;
      smaller.memory_bytes = memory;
      smaller.options.host_memory_bytes = (refused + accepted) / 2;
      (smaller.prepare() ? accepted : refused) = *smaller.options.host_memory_bytes;
    }
    for (const std::uint64_t seed : {1U, 2U, 3U}) {
      Job job;
      job.memory_bytes = memory;
      job.gpu.seed = seed;
      job.options.host_memory_bytes = accepted;
      const auto plan = job.prepare();
      ASSERT_TRUE(plan) << plan.error().message();
      EXPECT_FALSE((*plan)->memory().whole_layer_prefetch);
      EXPECT_LT((*plan)->memory().ring_bytes, 3 * kLayerBytes);
      const auto report = job.run();
      ASSERT_TRUE(report) << report.error().message();
      EXPECT_EQ(job.store(), reference.store()) << memory << " seed " << seed;
    }
  }
}

// Goal: rows do not depend on blocks, in stages either.
TEST(GpuJob, LeavesTheSameStoreWithAnyBlocks) {
  Job reference;
  ASSERT_TRUE(reference.run());
  for (const std::uint64_t block : {1U, 7U, 16U, 100U}) {
    for (const std::uint64_t memory : {kRoomy, memories().resident - 1}) {
      Job job;
      job.options.block_tokens = block;
      job.memory_bytes = memory;
      const auto report = job.run();
      if (!report && report.error().code() == ErrorCode::does_not_fit) {
        EXPECT_GT(block, 8U);
        EXPECT_NE(memory, kRoomy);
        continue;
      }
      ASSERT_TRUE(report) << report.error().message();
      EXPECT_EQ(job.store(), reference.store()) << "blocks of " << block;
    }
  }
}

/// The request that brings this byte of the second weight file, which has the later layers.
std::function<bool(const TransferRequest&)> request_of(std::uint64_t byte) {
  return [byte](const TransferRequest& request) {
    return request.uri.text.find("-00002-of") != std::string::npos && request.expected &&
           request.range.begin <= byte && byte < request.range.end;
  };
}

// Goal: an origin that fails inside a layer ends the job at once with the origin's error, as on the
// CPU, and what was finished before is kept.
TEST(GpuJob, EndsWithTheOriginsErrorAndResumes) {
  Job reference;
  ASSERT_TRUE(reference.run());
  const std::uint64_t middle = model().at("model-00002-of-00002.safetensors").size() / 2;
  const auto on = [&](bool cpu, std::uint64_t memory) {
    auto job = std::make_unique<Job>();
    job->on_cpu = cpu;
    job->memory_bytes = memory;
    job->fails = request_of(middle);
    return job;
  };
  const auto cpu = on(true, 0)->run();
  ASSERT_FALSE(cpu);
  for (const std::uint64_t memory : all_memories()) {
    const auto job = on(false, memory);
    const auto report = job->run();
    ASSERT_FALSE(report);
    EXPECT_EQ(report.error().code(), cpu.error().code());
    EXPECT_EQ(report.error().message(), cpu.error().message());
    job->fails = nullptr;
    const auto resumed = job->run();
    ASSERT_TRUE(resumed) << resumed.error().message();
    EXPECT_LT(resumed->needed_bytes, kParts * (kEmbedBytes + kLayers * kLayerBytes + kNormBytes));
    EXPECT_EQ(job->store(), reference.store());
  }
}

// Goal: a GPU that fails at any moment is an internal error, and costs the layers that were not
// finished, no more.
TEST(GpuJob, SurvivesAGpuThatFailsAtAnyMoment) {
  Job reference;
  ASSERT_TRUE(reference.run());
  for (const std::uint64_t memory : {memories().resident, memories().staged}) {
    EmulatedCudaRecord record;
    Job whole;
    whole.memory_bytes = memory;
    whole.record = &record;
    ASSERT_TRUE(whole.run());
    // Waits are pieces of work, too, that the record does not list: so later moments come as well.
    const std::uint64_t pieces = record.done.size();
    for (std::uint64_t moment = 0; moment < pieces; moment += pieces / 9) {
      Job job;
      job.memory_bytes = memory;
      job.gpu.fails_after = moment;
      const auto report = job.run();
      ASSERT_FALSE(report) << "after " << moment << " of " << pieces;
      EXPECT_EQ(report.error().code(), ErrorCode::internal) << report.error().message();
      EXPECT_TRUE(job.journals_are_valid());
      job.gpu.fails_after = ~std::uint64_t{0};
      const auto resumed = job.run();
      ASSERT_TRUE(resumed) << resumed.error().message();
      EXPECT_EQ(job.store(), reference.store()) << "after " << moment << " of " << pieces;
    }
  }
}

/// Stops the job when so many blocks have gone through a layer.
class StoppingObserver final : public JobObserver {
 public:
  explicit StoppingObserver(int blocks) : blocks_(blocks) {}
  void rows_done(std::uint64_t /*part*/, std::int32_t /*layer*/, std::uint64_t /*done*/,
                 std::uint64_t /*total*/) override {
    if (--blocks_ == 0) {
      stop.request_stop();
    }
  }
  std::stop_source stop;

 private:
  int blocks_;
};

// Goal: a job that is stopped inside a layer, with work under way on the device, ends and resumes.
// Method: the emulated GPU ends the program if memory goes away that it still has to read.
TEST(GpuJob, CanBeStoppedWhileTheDeviceWorks) {
  Job reference;
  ASSERT_TRUE(reference.run());
  for (const std::uint64_t memory : all_memories()) {
    for (const int blocks : {1, 5, 26}) {
      Job job;
      job.memory_bytes = memory;
      job.gpu.seed = static_cast<std::uint64_t>(blocks);
      StoppingObserver observer(blocks);
      const auto stopped = job.run(observer, observer.stop.get_token());
      ASSERT_FALSE(stopped);
      EXPECT_EQ(stopped.error().code(), ErrorCode::cancelled) << stopped.error().message();
      EXPECT_TRUE(job.journals_are_valid());
      const auto resumed = job.run();
      ASSERT_TRUE(resumed) << resumed.error().message();
      EXPECT_EQ(job.store(), reference.store()) << "stopped after " << blocks << " blocks";
    }
  }
}

}  // namespace
}  // namespace librarian::ingest
