#include "weightmap/remote/bandwidth_limit.h"

#include <gtest/gtest.h>

namespace librarian::weightmap::remote {
namespace {

using namespace std::chrono_literals;
using Time = BandwidthLimit::Time;

// Bytes per second that a reader of `piece` bytes at a time gets who reads as soon as it may.
double rate_of(std::uint64_t limit, std::uint64_t piece, std::chrono::nanoseconds between) {
  BandwidthLimit bandwidth(limit);
  const Time begin{1s};
  Time now = begin;
  std::uint64_t bytes = 0;
  while (now < begin + 60s) {
    now += bandwidth.wait(now) + between;
    bandwidth.spend(piece, now);
    bytes += piece;
  }
  return static_cast<double>(bytes) / std::chrono::duration<double>(now - begin).count();
}

// Goal: over a minute the rate is the limit's within 5 %, whatever the pieces.
TEST(BandwidthLimit, HoldsTheRate) {
  for (const std::uint64_t limit : {1'000'000ULL, 100'000'000ULL, 2'000'000'000ULL}) {
    for (const std::uint64_t piece : {1'000ULL, 16'384ULL, 524'288ULL}) {
      if (piece * 1'000'000 / limit < 1) {
        continue;  // The reader alone, at 1 us a piece, would not reach the limit.
      }
      const double rate = rate_of(limit, piece, 1us);
      EXPECT_NEAR(rate / static_cast<double>(limit), 1.0, 0.05) << limit << " in " << piece;
    }
  }
}

TEST(BandwidthLimit, ASilenceDoesNotSaveUpMuch) {
  BandwidthLimit bandwidth(1'000'000);
  bandwidth.spend(1, Time{1s});
  bandwidth.spend(100'001, Time{3600s});
  EXPECT_GT(bandwidth.wait(Time{3600s}), 0ns);
}

TEST(BandwidthLimit, SaysWhenItHoldsUsBack) {
  BandwidthLimit bandwidth(1'000'000);
  EXPECT_FALSE(bandwidth.binds(Time{1s}));
  bandwidth.spend(500'000, Time{1s});
  EXPECT_TRUE(bandwidth.binds(Time{1s}));
  EXPECT_TRUE(bandwidth.binds(Time{1400ms}));
  EXPECT_FALSE(bandwidth.binds(Time{1600ms}));
}

TEST(BandwidthLimit, NoneIsNone) {
  BandwidthLimit bandwidth(0);
  bandwidth.spend(1ULL << 40U, Time{1s});
  EXPECT_EQ(bandwidth.wait(Time{1s}), 0ns);
  EXPECT_FALSE(bandwidth.binds(Time{1s}));
}

}  // namespace
}  // namespace librarian::weightmap::remote
