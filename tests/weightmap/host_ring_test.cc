// Goal: two slots that live at the same time never share a byte, and none reaches out of the ring.
// Method: random sequences against a list of the live slots; and the corner where the last slot
// ended exactly at the ring's end.
#include "weightmap/host_ring.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <deque>
#include <random>

namespace librarian::weightmap {
namespace {

struct Live {
  std::uint64_t begin;
  std::uint64_t end;
};

/// The ring's first byte: an empty ring begins there.
std::byte* base_of(HostRing& ring) {
  std::byte* const base = ring.allocate(1)->data();
  ring.release_oldest();
  return base;
}

/// One step: allocates `bytes`, checks the slot against the live ones. False if it broke a rule.
::testing::AssertionResult allocate(HostRing& ring, std::byte* base, std::uint64_t bytes,
                                    std::deque<Live>& live, bool& got) {
  const auto slot = ring.allocate(bytes);
  got = slot.has_value();
  if (!slot) {
    return live.empty() ? ::testing::AssertionFailure() << "an empty ring refused " << bytes
                        : ::testing::AssertionSuccess();
  }
  const auto begin = static_cast<std::uint64_t>(slot->data() - base);
  const std::uint64_t end = begin + HostRing::slot_bytes(bytes);
  if (slot->size() != bytes || begin % 64 != 0) {
    return ::testing::AssertionFailure() << "a slot of wrong size or alignment";
  }
  if (end > ring.bytes()) {
    return ::testing::AssertionFailure()
           << "slot " << begin << " to " << end << " reaches out of a ring of " << ring.bytes();
  }
  for (const Live& other : live) {
    if (begin < other.end && other.begin < end) {
      return ::testing::AssertionFailure() << "slot " << begin << " to " << end << " overlaps "
                                           << other.begin << " to " << other.end;
    }
  }
  live.push_back({begin, end});
  return ::testing::AssertionSuccess();
}

// Catches: wrong bookkeeping of the gap at the end, of a full ring, of the wrap.
TEST(HostRing, NeverHandsOutBytesThatAreInUse) {
  std::mt19937 engine(1);
  for (int round = 0; round < 400; ++round) {
    const std::uint64_t ring_bytes = 64 * (1 + engine() % 24);
    HostRing ring(ring_bytes);
    std::byte* const base = base_of(ring);
    std::deque<Live> live;
    for (int step = 0; step < 200; ++step) {
      bool got = false;
      if (live.empty() || engine() % 3 != 0) {
        const std::uint64_t bytes = 1 + engine() % ring_bytes;
        ASSERT_TRUE(allocate(ring, base, bytes, live, got))
            << "round " << round << " step " << step;
      } else {
        ring.release_oldest();
        live.pop_front();
      }
      ASSERT_LE(ring.bytes_in_use(), ring.bytes());
    }
  }
}

// Catches: a slot placed behind the end when the one before ended exactly there.
TEST(HostRing, BeginsAgainAfterASlotThatEndedAtItsEnd) {
  HostRing ring(128);
  std::byte* const base = base_of(ring);
  std::deque<Live> live;
  bool got = false;
  ASSERT_TRUE(allocate(ring, base, 64, live, got) && got);
  ASSERT_TRUE(allocate(ring, base, 64, live, got) && got);
  ring.release_oldest();
  live.pop_front();
  ASSERT_TRUE(allocate(ring, base, 64, live, got));
  ASSERT_TRUE(got) << "the first half is free";
  EXPECT_EQ(live.back().begin, 0U);
}

// Catches: a ring that can get stuck: room that was given back is never found again.
TEST(HostRing, AlwaysGoesOnWhenTheOldestSlotsAreGivenBack) {
  std::mt19937 engine(2);
  HostRing ring(1024);
  std::byte* const base = base_of(ring);
  std::deque<Live> live;
  for (int step = 0; step < 5000; ++step) {
    const std::uint64_t bytes = 1 + engine() % 1024;
    bool got = false;
    ASSERT_TRUE(allocate(ring, base, bytes, live, got));
    while (!got) {
      ASSERT_FALSE(live.empty());
      ring.release_oldest();
      live.pop_front();
      ASSERT_TRUE(allocate(ring, base, bytes, live, got));
    }
  }
}

TEST(HostRing, TakesASlotOfItsWholeSizeAgainAndAgain) {
  HostRing ring(1000);
  EXPECT_EQ(ring.bytes(), 1024U);
  for (int i = 0; i < 5; ++i) {
    const auto slot = ring.allocate(1024);
    ASSERT_TRUE(slot);
    slot->front() = std::byte{1};
    slot->back() = std::byte{2};
    EXPECT_FALSE(ring.allocate(1));
    EXPECT_EQ(ring.bytes_in_use(), 1024U);
    ring.release_oldest();
    EXPECT_EQ(ring.bytes_in_use(), 0U);
  }
}

TEST(HostRingDeathTest, RefusesAMisuseLoudly) {
  HostRing ring(64);
  EXPECT_DEATH(ring.release_oldest(), "");
  EXPECT_DEATH(static_cast<void>(ring.allocate(65)), "");
}

}  // namespace
}  // namespace librarian::weightmap
