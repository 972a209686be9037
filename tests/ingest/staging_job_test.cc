// Goal: a job whose weights go through whole files on disk leaves the same store as any other, says
// truly how its weights were verified, leaves no file behind, and survives every crash.
// Method: whole jobs on a file system in memory that crashes.
#include <gtest/gtest.h>

#include <memory>

#include "ingest/job.h"
#include "ingest/part_journal.h"
#include "tests/ingest/job_machine.h"
#include "tests/ingest/tiny_model.h"
#include "tests/support/memory_file_system.h"

namespace librarian::ingest {
namespace {

using librarian::testing::Survival;
using testing::CrashCase;
using testing::Machine;
using testing::MapTransport;

const std::map<std::string, std::string>& model() {
  static const std::map<std::string, std::string> files = testing::tiny_model();
  return files;
}

CrashCase how(StagingMode staging) {
  CrashCase how{
      "", {"resid_post@all", "attn_out@all"}, StateMode::memory, std::chrono::hours(1), staging};
  how.skeleton = false;  // Its bytes never wait on a disk.
  return how;
}

std::shared_ptr<MapTransport> origin(bool sha256) {
  auto transport = std::make_shared<MapTransport>(model());
  if (sha256) {
    transport->offer_sha256();
  }
  return transport;
}

std::string verified(const Machine& machine, int part) {
  const std::string text =
      machine.store().at("/out/part-0000" + std::to_string(part) + "/zarr.json");
  return Json::parse(text)["attributes"]["verified"].get<std::string>();
}

/// The store without the files that say how weights were verified.
std::map<std::string, std::string> arrays(const Machine& machine) {
  auto files = machine.store();
  for (int part = 0; part < 3; ++part) {
    files.erase("/out/part-0000" + std::to_string(part) + "/zarr.json");
  }
  return files;
}

std::uint64_t whole_files() {
  std::uint64_t bytes = 0;
  for (const auto& [name, text] : model()) {
    bytes += name.ends_with(".safetensors") ? text.size() : 0;
  }
  return bytes;
}

/// Bytes of weight files served behind the heads that opening reads.
std::uint64_t staged_bytes(const MapTransport& transport, int heads) {
  std::uint64_t bytes = 0;
  for (const auto& served : transport.served()) {
    bytes += served.name.ends_with(".safetensors") ? served.range.size() : 0;
  }
  return bytes - static_cast<std::uint64_t>(heads) * whole_files();  // A head is the whole file.
}

TEST(StagedJob, LeavesTheSameStoreAndNothingElse) {
  Machine ranges(model(), how(StagingMode::memory));
  ASSERT_TRUE(ranges.run(origin(true)));
  EXPECT_EQ(verified(ranges, 0), "stream");
  for (const bool sha256 : {true, false}) {
    Machine staged(model(), how(StagingMode::disk));
    const auto from = origin(sha256);
    const auto report = staged.run(from);
    ASSERT_TRUE(report) << report.error().message();
    EXPECT_EQ(report->staging, "disk");
    EXPECT_EQ(arrays(staged), arrays(ranges));
    for (int part = 0; part < 3; ++part) {
      EXPECT_EQ(verified(staged, part), sha256 ? "sha256" : "stream");
    }
    EXPECT_EQ(staged_bytes(*from, 1), whole_files()) << "three parts, one download";
    EXPECT_EQ(report->needed_bytes, whole_files());
    EXPECT_FALSE(staged.files().info("/out/scratch"));
  }
}

TEST(StagedJob, ACacheServesTheNextJob) {
  Machine machine(model(), how(StagingMode::disk));
  machine.options().weights_cache = "/cache";
  ASSERT_TRUE(machine.run(origin(true)));
  const auto first = arrays(machine);
  machine.options().out = "/second";
  const auto from = origin(true);
  const auto report = machine.run(from);
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_EQ(staged_bytes(*from, 1), 0U);
  EXPECT_EQ(report->needed_bytes, 0U);
  EXPECT_NE(machine.files().snapshot().at("/second/part-00000/zarr.json").find("sha256"),
            std::string::npos);
}

// Catches: weights let go before what they made is durable; a resume that trusts a half file.
TEST(StagedJob, ACrashAtAnyOperationResumesToTheSameStore) {
  Machine reference(model(), how(StagingMode::disk));
  ASSERT_TRUE(reference.run(origin(true)));
  const auto wanted = reference.store();
  const std::uint64_t operations = reference.files().operations();
  std::uint64_t tries = 0;
  std::uint64_t spared = 0;
  for (std::uint64_t operation = 1; operation <= operations; operation += 7) {
    const Survival survival = operation % 2 == 0 ? Survival::durable_only : Survival::everything;
    SCOPED_TRACE("operation " + std::to_string(operation));
    Machine machine(model(), how(StagingMode::disk));
    machine.files().crash_at(machine.files().operations() + operation);
    static_cast<void>(machine.run(origin(true)));
    machine.files().restart(survival);
    const auto from = origin(true);
    const auto resumed = machine.run(from);
    ASSERT_TRUE(resumed) << resumed.error().message();
    ASSERT_EQ(machine.differences(wanted), "");
    ASSERT_LE(staged_bytes(*from, 1), whole_files());
    ++tries;
    spared += staged_bytes(*from, 1) < whole_files() ? 1 : 0;
    ASSERT_FALSE(machine.files().info("/out/scratch"));
  }
  EXPECT_GT(spared, tries / 2) << "what was staged before the crash was hardly ever used";
}

TEST(StagedJob, APartIsAsVerifiedAsItsWeakestLayer) {
  Machine machine(model(), how(StagingMode::disk));
  const auto begin = machine.files().operations();
  Machine reference(model(), how(StagingMode::disk));
  ASSERT_TRUE(reference.run(origin(true)));
  machine.files().crash_at(begin + (reference.files().operations() - begin) / 5);
  ASSERT_FALSE(machine.run(origin(true)));
  machine.files().restart(Survival::everything);
  ASSERT_GT(machine.finished(0, 5), 1U);
  ASSERT_FALSE(machine.published(0));
  machine.options().staging = StagingMode::memory;
  ASSERT_TRUE(machine.run(origin(true)));
  EXPECT_EQ(verified(machine, 0), "stream");
  EXPECT_EQ(arrays(machine), arrays(reference));
  EXPECT_FALSE(machine.files().info("/out/scratch")) << "what the first run staged goes, too";
}

TEST(StagedJob, AWrongFileStopsItWithNothingPublished) {
  Machine machine(model(), how(StagingMode::disk));
  const auto from = origin(true);
  const std::string name = "model-00002-of-00002.safetensors";
  from->flip(name, model().at(name).size() - 1, 1000);
  const auto report = machine.run(from);
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code(), ErrorCode::corrupt);
  EXPECT_NE(report.error().message().find(name), std::string::npos);
  EXPECT_FALSE(machine.published(0));
}

TEST(StagedJob, ADiskThatFillsUpStopsItAndItResumes) {
  Machine reference(model(), how(StagingMode::disk));
  ASSERT_TRUE(reference.run(origin(true)));
  Machine machine(model(), how(StagingMode::disk));
  machine.options().disk_limit_bytes = 1U << 30U;
  const auto from = origin(true);
  {
    JobEnvironment environment = machine.environment(from);
    auto job = PreparedJob::create(machine.options(), environment, {});
    ASSERT_TRUE(job) << job.error().message();
    machine.files().set_free_bytes(12'000);  // Behind the plan: others are quick.
    JobObserver nobody;
    const auto report = (*job)->run(nobody, {});
    ASSERT_FALSE(report);
    EXPECT_TRUE(report.error().code() == ErrorCode::no_space ||
                report.error().code() == ErrorCode::does_not_fit)
        << report.error().message();
  }
  machine.files().set_free_bytes(1U << 30U);
  ASSERT_TRUE(machine.run(origin(true)));
  EXPECT_EQ(machine.differences(reference.store()), "");
}

TEST(StagedJob, WithoutRoomForTwoLayersRangesAreReadAndThatIsSaid) {
  Machine machine(model(), how(StagingMode::disk));
  machine.options().disk_limit_bytes = 40'000;  // The store's share of it is most.
  auto job = PreparedJob::create(machine.options(), machine.environment(origin(true)), {});
  ASSERT_TRUE(job) << job.error().message();
  EXPECT_FALSE((*job)->staging().on_disk);
  ASSERT_FALSE((*job)->warnings().empty());
  EXPECT_NE((*job)->warnings().back().find("two layers"), std::string::npos)
      << (*job)->warnings().back();
  JobObserver nobody;
  const auto report = (*job)->run(nobody, {});
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_EQ(report->staging, "memory");
  EXPECT_EQ(verified(machine, 0), "stream");
}

}  // namespace
}  // namespace librarian::ingest
