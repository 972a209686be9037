// Goal: whole files are chosen where they pay and fit, never elsewhere, and the reason is said.
#include "ingest/staging_plan.h"

#include <gtest/gtest.h>

#include "base/units.h"
#include "tests/ingest/tiny_model.h"
#include "weightmap/remote/file_staging.h"
#include "weightmap/remote/staging_directory.h"

namespace librarian::ingest {
namespace {

struct World {
  explicit World(int vocab, const std::string& uri = testing::kModelUri)
      : files(testing::tiny_model({6, 256, 1024, vocab, 1})),
        transport(files),
        fetcher(transport, real_clock(), {}),
        checkpoint(
            weightmap::Checkpoint::open(fetcher, *weightmap::remote::parse_uri(uri), {}).value()) {
    inputs.checkpoint = &checkpoint;
    inputs.last_layer = 5;
    inputs.limit_bytes = kGiB;
    inputs.spare_memory_bytes = kGiB;
    inputs.connections = 8;
  }
  std::uint64_t size(int file) const {
    return files.at("model-0000" + std::to_string(file) + "-of-00002.safetensors").size();
  }

  std::map<std::string, std::string> files;
  testing::MapTransport transport;
  weightmap::remote::Fetcher fetcher;
  weightmap::Checkpoint checkpoint;
  StagingInputs inputs;
};

TEST(StagingPlan, ByItselfTakesWholeFilesWhereTheyAddLittle) {
  World small_table(64);
  const StagingPlan plan = plan_staging(small_table.inputs);
  EXPECT_TRUE(plan.on_disk) << plan.reason;
  EXPECT_EQ(plan.file_bytes, small_table.size(1) + small_table.size(2));
  EXPECT_EQ(plan.largest_file_bytes, std::max(small_table.size(1), small_table.size(2)));
  EXPECT_LT(static_cast<double>(plan.file_bytes), 1.02 * static_cast<double>(plan.needed_bytes));
  EXPECT_TRUE(plan.holds_all());

  // The head, which nobody asked for, is as large as the table.
  World large_table(2000);
  EXPECT_FALSE(plan_staging(large_table.inputs).on_disk);
  EXPECT_NE(plan_staging(large_table.inputs).reason.find("would add"), std::string::npos);
  large_table.inputs.mode = StagingMode::disk;
  EXPECT_TRUE(plan_staging(large_table.inputs).on_disk) << "who asks for it gets it";
}

TEST(StagingPlan, NeedsRoomForTheFilesOfTwoLayers) {
  World world(64);
  // Layer 2 is in the first file, layer 3 in the second one.
  const std::uint64_t both = weightmap::remote::staging_footprint_bytes(world.size(1)) +
                             weightmap::remote::staging_footprint_bytes(world.size(2));
  for (const StagingMode mode : {StagingMode::automatic, StagingMode::disk}) {
    world.inputs.mode = mode;
    world.inputs.limit_bytes = both;
    EXPECT_TRUE(plan_staging(world.inputs).on_disk);
    EXPECT_EQ(plan_staging(world.inputs).two_layers_bytes, both);
    world.inputs.limit_bytes = both - 1;
    const StagingPlan plan = plan_staging(world.inputs);
    EXPECT_FALSE(plan.on_disk);
    EXPECT_NE(plan.reason.find("two layers"), std::string::npos);
    EXPECT_EQ(plan.memory_bytes, 0U);
  }
  // Layers 0 to 2 and the table are all in the first file.
  world.inputs.last_layer = 2;
  EXPECT_TRUE(plan_staging(world.inputs).on_disk);
  EXPECT_EQ(plan_staging(world.inputs).file_bytes, world.size(1));
}

TEST(StagingPlan, TakesFewerSlabsWhereMemoryIsTight) {
  World world(64);
  weightmap::remote::FileStagingOptions one;
  one.object_bytes_max = std::max(world.size(1), world.size(2));
  one.slabs = 1;
  const std::uint64_t slab = weightmap::remote::FileStaging::memory_bytes(one) / 2;
  EXPECT_EQ(plan_staging(world.inputs).slabs, 8U);
  for (const std::uint64_t slabs : {1U, 2U, 5U}) {
    world.inputs.spare_memory_bytes = (slabs + 2) * slab - 1;
    const StagingPlan plan = plan_staging(world.inputs);
    EXPECT_TRUE(plan.on_disk);
    EXPECT_EQ(plan.slabs, slabs);
    EXPECT_LE(plan.memory_bytes, world.inputs.spare_memory_bytes);
  }
  world.inputs.spare_memory_bytes = 2 * slab - 1;
  const StagingPlan plan = plan_staging(world.inputs);
  EXPECT_FALSE(plan.on_disk);
  EXPECT_NE(plan.reason.find("--host-memory"), std::string::npos);
}

TEST(StagingPlan, NeverStagesALocalModelOrAgainstTheUsersWish) {
  World local(64, "/models/model");
  World remote(64);
  local.inputs.mode = StagingMode::disk;
  remote.inputs.mode = StagingMode::memory;
  EXPECT_FALSE(plan_staging(local.inputs).on_disk);
  EXPECT_FALSE(plan_staging(remote.inputs).on_disk);
}

}  // namespace
}  // namespace librarian::ingest
