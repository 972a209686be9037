// Goal: wherever the machine dies, the same command afterwards leaves the same store, and does not
// fetch what a finished layer had fetched.
// Method: a whole job on a file system in memory that counts its durable operations, dies at one of
// them and forgets what was not synced. Every operation is a case.
#include <gtest/gtest.h>

#include <memory>

#include "activation_store/verify.h"
#include "ingest/directory_lock.h"
#include "ingest/job.h"
#include "ingest/part_journal.h"
#include "ingest/skeleton.h"
#include "tests/ingest/job_machine.h"
#include "tests/ingest/tiny_model.h"
#include "tests/support/memory_file_system.h"

namespace librarian::ingest {
namespace {

using librarian::testing::Survival;
using testing::CrashCase;
using testing::kOut;
using testing::Machine;
using testing::MapTransport;
using testing::ServedRange;

const std::map<std::string, std::string>& model() {
  static const std::map<std::string, std::string> files = [] {
    auto all = testing::tiny_model();
    // Longer than what one request for a small file brings.
    all["tokenizer.json"] = "{\"words\": \"" + std::string(100'000, 'w') + "\"}";
    all["generation_config.json"] = "{}";
    return all;
  }();
  return files;
}

/// Bytes of layer weights among what was served: everything behind the headers.
std::uint64_t weight_bytes(const std::vector<ServedRange>& served) {
  std::uint64_t bytes = 0;
  for (const ServedRange& range : served) {
    const bool whole_head = range.range.begin == 0;
    if (range.name.ends_with(".safetensors") && !whole_head) {
      bytes += range.range.size();
    }
  }
  return bytes;
}

class CrashTest : public ::testing::TestWithParam<CrashCase> {};

TEST_P(CrashTest, AtEveryDurableOperationResumesToTheSameStore) {
  Machine reference(model(), GetParam());
  const auto report = reference.run();
  ASSERT_TRUE(report) << report.error().message();
  const auto wanted = reference.store();
  const std::uint64_t operations = reference.files().operations();
  ASSERT_EQ(report->parts_total, 3U);
  ASSERT_GT(operations, 500U);
  const std::uint64_t embed_bytes = 32 * 16 * 2;
  const std::uint64_t layer_bytes = (2 * 16 + 3 * 16 * 24 + 2 * 8 * 16 + 2 * 16 * 16) * 2;

  for (std::uint64_t operation = 1; operation <= operations; ++operation) {
    for (const Survival survival : {Survival::durable_only, Survival::torn}) {
      // Every operation is tried with the strictest disk; torn tails at every fourth.
      if (survival == Survival::torn && operation % 4 != 0) {
        continue;
      }
      SCOPED_TRACE("operation " + std::to_string(operation) + " survival " +
                   std::to_string(static_cast<int>(survival)));
      Machine machine(model(), GetParam());
      const std::uint64_t before = machine.files().operations();
      machine.files().crash_at(before + operation);
      const auto crashed = machine.run();
      machine.files().restart(survival);
      // A crash behind the last commit may leave nothing to do.
      ASSERT_TRUE(!crashed || operation + 40 > operations);

      const std::uint64_t skeleton_bytes = 2 * embed_bytes + 2 * 16;  // Head and final norm, too.
      std::uint64_t needed = machine.has_skeleton() ? 0 : skeleton_bytes;
      for (std::uint64_t part = 0; part < 3; ++part) {
        if (machine.published(part)) {
          continue;
        }
        const std::size_t finished = machine.finished(part, 5);
        const std::uint64_t layers_left = finished == 0 ? 6 : 7 - finished;
        needed += (finished == 0 ? embed_bytes : 0) + layers_left * layer_bytes;
      }
      const auto transport = std::make_shared<MapTransport>(model());
      const auto resumed = machine.run(transport);
      ASSERT_TRUE(resumed) << resumed.error().message();
      ASSERT_EQ(machine.differences(wanted), "");
      ASSERT_EQ(weight_bytes(transport->served()), needed);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    States, CrashTest,
    ::testing::Values(
        CrashCase{"memory_captured",
                  {"resid_post@all", "attn_out@all"},
                  StateMode::memory,
                  std::chrono::hours(1)},
        CrashCase{"memory_saved_at_each_border",
                  {"attn_out@all", "mlp_out@all"},
                  StateMode::memory,
                  Duration(0)},
        CrashCase{"disk", {"attn_out@all", "mlp_out@all"}, StateMode::disk, std::chrono::hours(1)},
        CrashCase{
            "disk_captured", {"resid_post@all", "embed"}, StateMode::disk, std::chrono::hours(1)},
        // Nothing of these may serve as state, and the second part keeps no row of some.
        CrashCase{"disk_partial_and_lossy",
                  {"embed(positions=last)", "resid_post@[0,1](positions=loss)",
                   "resid_post@[2,3](dtype=fp8_e4m3,positions=loss)",
                   "resid_post@4(keep_mantissa_bits=4)", "resid_post@5"},
                  StateMode::disk,
                  std::chrono::hours(1),
                  StagingMode::memory,
                  true,
                  true}),
    [](const auto& param) { return param.param.name; });

// Goal: a crash of the run that resumes is no worse than one of the run before.
TEST(ChainedCrashes, StillEndInTheSameStore) {
  const CrashCase how{
      "", {"resid_post@all", "attn_out@all"}, StateMode::memory, std::chrono::hours(1)};
  Machine reference(model(), how);
  ASSERT_TRUE(reference.run());
  for (const std::uint64_t stride : {160U, 230U, 310U}) {
    Machine machine(model(), how);
    int crashes = 0;
    while (true) {
      machine.files().crash_at(machine.files().operations() + stride);
      const auto result = machine.run();
      machine.files().restart(crashes % 2 == 0 ? Survival::durable_only : Survival::everything);
      if (result) {
        break;
      }
      ASSERT_LT(++crashes, 200);
    }
    EXPECT_GT(crashes, 2);
    ASSERT_TRUE(machine.run());
    EXPECT_EQ(machine.differences(reference.store()), "");
  }
}

// Goal: the origin may be replaced by a model of the same shapes between crash and resume; no store
// may mix the two, whatever the origin says of its files.
TEST(ReplacedOrigin, IsNoticedWithAndWithoutValidators) {
  const CrashCase how{"", {"resid_post@all"}, StateMode::memory, std::chrono::hours(1)};
  testing::TinyModelOptions other_options;
  other_options.seed = 2;
  const auto other = testing::tiny_model(other_options);
  for (const std::uint64_t crash : {150U, 260U, 420U}) {
    for (const bool strong : {true, false}) {
      Machine machine(model(), how);
      machine.files().crash_at(machine.files().operations() + crash);
      ASSERT_FALSE(machine.run(std::make_shared<MapTransport>(model(), "a", strong)));
      machine.files().restart(Survival::durable_only);
      // With validators the replacement has another one; without, it looks the same.
      const auto replaced = std::make_shared<MapTransport>(other, strong ? "b" : "a", strong);
      const auto resumed = machine.run(replaced);
      ASSERT_FALSE(resumed) << "crash at " << crash << " strong " << strong;
      EXPECT_EQ(resumed.error().code(), ErrorCode::source_changed) << resumed.error().message();
      // The original, back in place, still completes it.
      const auto original = machine.run(std::make_shared<MapTransport>(model(), "a", strong));
      ASSERT_TRUE(original) << original.error().message();
      Machine reference(model(), how);
      ASSERT_TRUE(reference.run());
      EXPECT_EQ(machine.differences(reference.store()), "");
    }
  }
}

// Goal: the skeleton and the parts of a store are of the same weights, also where nothing but the
// bytes tells two models apart.
// Method: a crash when the skeleton is there and no layer is finished; then other weights.
TEST(ReplacedOrigin, IsNoticedByTheSkeleton) {
  const CrashCase how{"", {"resid_post@all"}, StateMode::memory, std::chrono::hours(1)};
  testing::TinyModelOptions other_options;
  other_options.seed = 2;
  auto other = testing::tiny_model(other_options);
  for (const char* name : {"tokenizer.json", "generation_config.json"}) {
    other[name] = model().at(name);
  }
  bool tried = false;
  for (std::uint64_t crash = 20; !tried; ++crash) {
    ASSERT_LT(crash, 200U);
    Machine machine(model(), how);
    machine.files().crash_at(machine.files().operations() + crash);
    ASSERT_FALSE(machine.run(std::make_shared<MapTransport>(model(), "a", false)));
    machine.files().restart(Survival::durable_only);
    if (!machine.has_skeleton()) {
      continue;
    }
    ASSERT_EQ(machine.finished(0, 5), 0U);
    const auto resumed = machine.run(std::make_shared<MapTransport>(other, "a", false));
    ASSERT_FALSE(resumed);
    EXPECT_EQ(resumed.error().code(), ErrorCode::source_changed) << resumed.error().message();
    tried = true;
  }
}

// Goal: two processes do not write one skeleton, and what one left at any moment the next one ends.
TEST(Skeleton, IsWrittenByWhoHoldsItsLock) {
  const CrashCase how{"", {"resid_post@all"}, StateMode::memory, std::chrono::hours(1)};
  Machine machine(model(), how);
  MapTransport transport(model());
  weightmap::remote::Fetcher fetcher(transport, real_clock(), {});
  const auto uri = weightmap::remote::parse_uri(testing::kModelUri);
  ASSERT_TRUE(uri);
  const auto checkpoint = weightmap::Checkpoint::open(fetcher, *uri, {});
  ASSERT_TRUE(checkpoint) << checkpoint.error().message();
  KnownWeights known;
  SkeletonInputs inputs;
  inputs.checkpoint = &*checkpoint;
  inputs.store_directory = kOut;
  inputs.identity_digest = std::string(64, 'd');
  inputs.known_weights = &known;
  const std::string directory = std::string(kOut) + "/model";
  ASSERT_TRUE(make_directories(machine.files(), directory));
  const auto write = [&] {
    return write_skeleton(fetcher, machine.files(), real_clock(), inputs, {});
  };
  {
    const auto held = DirectoryLock::try_acquire(machine.files(), real_clock(), directory);
    ASSERT_TRUE(held);
    ASSERT_TRUE(held->lock);
    const auto tried = write();
    ASSERT_TRUE(tried) << tried.error().message();
    EXPECT_FALSE(tried->there);
    EXPECT_NE(tried->holder, "");
    EXPECT_EQ(tried->fetched_bytes, 0U);
  }
  const auto written = write();
  ASSERT_TRUE(written) << written.error().message();
  EXPECT_TRUE(written->there);
  EXPECT_EQ(written->fetched_bytes, skeleton_tensor_bytes(*checkpoint) +
                                        model().at("config.json").size() +
                                        model().at("tokenizer.json").size() + 2);
  EXPECT_EQ(machine.files().snapshot().at(directory + "/model.safetensors").size(),
            skeleton_tensor_file_bytes(*checkpoint));
  const auto again = write();
  ASSERT_TRUE(again) << again.error().message();
  EXPECT_TRUE(again->there);
  EXPECT_EQ(again->fetched_bytes, 0U);
}

// Goal: the same model from another place resumes, without fetching finished layers again but for
// one small tensor of each.
TEST(MovedOrigin, ResumesAfterOneSmallTensorOfEachFinishedLayerAgrees) {
  const CrashCase how{"", {"resid_post@all"}, StateMode::memory, std::chrono::hours(1)};
  Machine machine(model(), how);
  machine.files().crash_at(machine.files().operations() + 200);
  ASSERT_FALSE(machine.run());
  machine.files().restart(Survival::durable_only);
  const std::size_t finished = machine.finished(0, 5);
  ASSERT_GT(finished, 1U);
  machine.options().model = "https://mirror.test/elsewhere/model/";
  const auto transport = std::make_shared<MapTransport>(model(), "mirror");
  const auto resumed = machine.run(transport);
  ASSERT_TRUE(resumed) << resumed.error().message();
  const auto served = transport->served();
  const auto small = std::count_if(served.begin(), served.end(), [](const ServedRange& range) {
    return range.range.size() == 16 * 2;
  });
  EXPECT_EQ(static_cast<std::size_t>(small), finished - 1);
}

}  // namespace
}  // namespace librarian::ingest
