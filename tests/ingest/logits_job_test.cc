// Goal: how much of the head is there at once, blocks, threads and deaths change no bit of
// logits.topk, and the head is fetched once for each part.
// Method: whole jobs over a model of three vocabulary tiles; files and network are in memory.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "gpu_exec/cuda_device.h"
#include "ingest/job.h"
#include "tests/ingest/tiny_model.h"
#include "tests/support/emulated_cuda.h"
#include "tests/support/memory_file_system.h"

namespace librarian::ingest {
namespace {

using librarian::testing::MemoryFileSystem;
using testing::MapTransport;

constexpr int kLayers = 2;
constexpr int kVocabulary = 5000;
constexpr std::uint64_t kTiles = 3;

const std::map<std::string, std::string>& model() {
  static const std::map<std::string, std::string> files =
      testing::tiny_model({.layers = kLayers, .vocab = kVocabulary});
  return files;
}

/// A directory, and the machines that work on it one after the other.
class Job {
 public:
  Job() {
    LIB_CHECK(replace_file(files_, "/tokens.safetensors",
                           testing::token_file({5, 7, 1, 20, 3, 11, 1}, kVocabulary, 7))
                  .has_value());
    options.model = testing::kModelUri;
    options.tokens = "/tokens.safetensors";
    options.out = "/out";
    options.captures = {"logits.topk(k=2000)", "final.post_norm"};
    options.part_tokens = 24;
    options.block_tokens = 8;
    options.chunk_tokens = 4;
    options.shard_tokens = 8;
    options.host_memory_bytes = 256U << 20U;
    options.threads = 1;
  }

  Result<RunReport> run() {
    JobEnvironment environment = JobEnvironment::real();
    environment.files = &files_;
    environment.make_transport = [&](const JobOptions& /*options*/) {
      auto transport = std::make_unique<MapTransport>(model());
      transport->fail_after(fail_after);
      return transport;
    };
    if (gpu_bytes != 0) {
      environment.make_device = [&](const JobOptions& /*options*/) {
        return make_cuda_device(gpu_exec::make_emulated_cuda({}), gpu_bytes);
      };
    }
    LIB_TRY(const std::unique_ptr<PreparedJob> job, PreparedJob::create(options, environment, {}));
    head_passes = job->memory().head_passes;
    parts = job->parts().size();
    JobObserver nobody;
    return job->run(nobody, {});
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

  JobOptions options;
  std::uint64_t fail_after = ~std::uint64_t{0};
  std::uint64_t gpu_bytes = 0;
  std::uint64_t head_passes = 0;
  std::size_t parts = 0;

 private:
  MemoryFileSystem files_;
};

TEST(LogitsJob, AHeadInPartsGivesTheStoreOfAWholeOne) {
  // What is known of a whole part is more than the head; of a block it is less.
  constexpr std::uint64_t kTokens = 48;
  Job whole;
  whole.options.part_tokens = kTokens;
  const auto report = whole.run();
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_EQ(whole.head_passes, 1U);
  EXPECT_EQ(report->outcome, "complete");
  EXPECT_TRUE(whole.store().contains("/out/part-00000/logits.topk.ids/c/0/0"));
  EXPECT_TRUE(whole.store().contains("/out/part-00000/logits.topk.logsumexp/c/0"));

  Job apart;
  apart.options.part_tokens = kTokens;
  apart.options.block_tokens = kTokens;
  ASSERT_TRUE(apart.run());
  EXPECT_EQ(apart.head_passes, kTiles);
  EXPECT_EQ(apart.store(), whole.store());

  Job on_disk;
  on_disk.options.part_tokens = kTokens;
  on_disk.options.block_tokens = kTokens;
  on_disk.options.state = StateMode::disk;
  on_disk.options.threads = 2;
  ASSERT_TRUE(on_disk.run());
  EXPECT_EQ(on_disk.store(), whole.store());
}

TEST(LogitsJob, FetchesTheHeadOncePerPart) {
  Job job;
  job.options.staging = StagingMode::memory;  // Ranges, not whole files;
  job.options.skeleton = false;               // which holds the head and the table once more.
  const auto report = job.run();
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_EQ(job.parts, 3U);
  constexpr std::uint64_t kTable = std::uint64_t{kVocabulary} * 16 * 2;
  EXPECT_GE(report->needed_bytes, job.parts * 2 * kTable);
  EXPECT_LT(report->needed_bytes, job.parts * (2 * kTable + 20000));
}

// Catches: a head that died half-way leaving arrays or a journal that the next run trips over.
TEST(LogitsJob, ResumesWhereverTheFetchBrokeOff) {
  Job whole;
  ASSERT_TRUE(whole.run());
  for (std::uint64_t bytes = 20000; bytes < 1200000; bytes += 97000) {
    Job job;
    job.fail_after = bytes;
    static_cast<void>(job.run());
    job.fail_after = ~std::uint64_t{0};
    const auto report = job.run();
    ASSERT_TRUE(report) << report.error().message() << " after " << bytes;
    EXPECT_EQ(job.store(), whole.store()) << bytes;
  }
}

TEST(LogitsJob, ADeviceOfItsOwnGivesOneStoreWhateverItsRoom) {
  Job roomy;
  roomy.options.captures = {"logits.topk(k=20)"};
  roomy.gpu_bytes = 1ULL << 30U;
  const auto report = roomy.run();
  ASSERT_TRUE(report) << report.error().message();
  Job blocks;
  blocks.options.captures = {"logits.topk(k=20)"};
  blocks.gpu_bytes = 1ULL << 30U;
  blocks.options.block_tokens = 24;
  ASSERT_TRUE(blocks.run());
  EXPECT_EQ(blocks.store(), roomy.store());
}

}  // namespace
}  // namespace librarian::ingest
