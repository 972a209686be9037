// Goal: what goes to make room is what is needed last, and nothing that a layer still needs.
// Method: the tiny model, whose table and layers 0 to 2 are in one file and 3 to 5 in another.
#include "weightmap/layer_queue.h"

#include <gtest/gtest.h>

#include "tests/weightmap/checkpoint_files.h"

namespace librarian::weightmap {
namespace {

using Objects = std::vector<std::size_t>;
using testing::CheckpointFiles;
using testing::OpenedCheckpoint;

constexpr std::int32_t kLastLayer = 5;

class LayerQueueTest : public ::testing::Test {
 protected:
  LayerQueueTest() : opened_(CheckpointFiles::tiny().contents()) {
    LIB_CHECK(opened_.checkpoint.has_value());
  }
  const Checkpoint& checkpoint() const { return *opened_.checkpoint; }
  /// All of a layer is asked for and arrives.
  void read(LayerQueue& queue, std::int32_t layer, Verification how = Verification::sha256) {
    const std::uint64_t bytes = checkpoint().layer(layer).bytes;
    queue.arrived(queue.asked_for(bytes), bytes, how);
  }

  OpenedCheckpoint opened_;
};

TEST_F(LayerQueueTest, AnObjectIsFreeWhenTheLastLayerThatNeedsItIsDurable) {
  LayerQueue queue(checkpoint(), {0, 1}, kLastLayer);
  for (std::int32_t layer = kEmbeddingLayer; layer <= kLastLayer; ++layer) {
    queue.announce(layer, 1);
    EXPECT_EQ(queue.wanted(), layer <= 2 ? (Objects{0, 1}) : (Objects{1})) << layer;
    read(queue, layer);
    EXPECT_EQ(queue.durable(layer), layer == 2            ? Objects{0}
                                    : layer == kLastLayer ? Objects{1}
                                                          : Objects{})
        << layer;
  }
  EXPECT_TRUE(queue.wanted().empty());
}

TEST_F(LayerQueueTest, DistancesOrderWhatIsNeededWhen) {
  LayerQueue queue(checkpoint(), {0, 1}, kLastLayer);
  EXPECT_EQ(queue.distance(0, false), LayerQueue::kNever);
  queue.announce(kEmbeddingLayer, 1);
  EXPECT_LT(queue.distance(0, false), queue.distance(1, false));
  for (std::int32_t layer = kEmbeddingLayer; layer <= 2; ++layer) {
    if (layer > kEmbeddingLayer) {
      queue.announce(layer, 1);
    }
    read(queue, layer);
  }
  // The first file is only there for a crash now, or for another pass.
  EXPECT_LT(queue.distance(1, true), queue.distance(0, true));
  EXPECT_LT(queue.distance(0, true), queue.distance(0, false));
  EXPECT_LT(queue.distance(0, false), LayerQueue::kNever);
  for (std::int32_t layer = kEmbeddingLayer; layer <= 2; ++layer) {
    static_cast<void>(queue.durable(layer));
  }
  EXPECT_EQ(queue.distance(0, false), LayerQueue::kNever);
  EXPECT_EQ(queue.wanted(), Objects{1});
}

TEST_F(LayerQueueTest, AResumedPassWantsNoFileOfFinishedLayers) {
  LayerQueue queue(checkpoint(), {0, 1}, kLastLayer);
  queue.announce(3, 1);
  EXPECT_EQ(queue.wanted(), Objects{1});
  // The next part begins behind it.
  for (std::int32_t layer = 4; layer <= kLastLayer; ++layer) {
    queue.announce(layer, 1);
  }
  queue.announce(kEmbeddingLayer, 1);
  EXPECT_EQ(queue.wanted(), (Objects{1, 0}));
}

TEST_F(LayerQueueTest, ALayerIsAsVerifiedAsItsWeakestBytes) {
  LayerQueue queue(checkpoint(), {0, 1}, kLastLayer);
  queue.announce(1, 1);
  queue.announce(2, 1);
  const std::uint64_t bytes = checkpoint().layer(1).bytes;
  EXPECT_FALSE(queue.is_waited_for(0));
  const std::uint64_t first = queue.asked_for(bytes - 10);
  EXPECT_TRUE(queue.is_waited_for(0));
  EXPECT_FALSE(queue.is_waited_for(1));
  queue.arrived(queue.asked_for(10), 10, Verification::sha256);
  EXPECT_EQ(queue.asked_for(1), first + 1) << "what follows is the next layer's";
  queue.arrived(first, bytes - 10, Verification::stream);
  EXPECT_EQ(queue.verification(1), Verification::stream);
  EXPECT_EQ(queue.verification(2), Verification::sha256);
}

// Catches: a file given up after the first of several readings, and bytes that nobody asked for
// because they were not needed, taken for those of the next layer.
TEST_F(LayerQueueTest, ALayerIsReadWhenAllItsReadingsAre) {
  LayerQueue queue(checkpoint(), {0, 1}, kLastLayer);
  queue.announce(2, 2);
  queue.announce(3, 1);
  const std::uint64_t bytes = checkpoint().layer(2).bytes;
  const std::uint64_t number = queue.asked_for(bytes);
  queue.arrived(number, bytes, Verification::sha256);
  EXPECT_EQ(queue.wanted(), (Objects{0, 1}));
  EXPECT_EQ(queue.asked_for(bytes - 10), number);
  queue.arrived(number, bytes - 10, Verification::sha256);
  EXPECT_EQ(queue.wanted(), (Objects{0, 1}));
  queue.pass_over(10);
  EXPECT_EQ(queue.wanted(), Objects{1});
  EXPECT_FALSE(queue.is_waited_for(0));
  EXPECT_EQ(queue.asked_for(1), number + 1);
  EXPECT_EQ(queue.durable(2), Objects{0});
}

}  // namespace
}  // namespace librarian::weightmap
