#include "base/clock.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/bounded_queue.h"
#include "base/byte_budget.h"
#include "tests/support/fake_clock.h"

namespace librarian {
namespace {

using namespace std::chrono_literals;

// Goal: virtual time measures a pipeline exactly, or the schedule tests prove nothing.
// Method: a producer at 3 s an item feeds a consumer at 5 s an item through a queue of one; the
// slower one sets the pace after the first item.
TEST(FakeClock, MeasuresATwoStagePipelineExactly) {
  for (int round = 0; round < 50; ++round) {
    testing::FakeClock clock;
    BoundedQueue<int> queue(clock, 1);
    TimePoint end{};
    {
      auto hold = std::make_optional<Activity>(clock);
      std::jthread consumer = start_thread(clock, [&](std::stop_token stop) {
        while (queue.pop(stop)) {
          clock.sleep_for(5s, stop);
        }
        end = clock.now();
      });
      std::jthread producer = start_thread(clock, [&](std::stop_token stop) {
        for (int i = 0; i < 10; ++i) {
          clock.sleep_for(3s, stop);
          EXPECT_TRUE(queue.push(i, stop));
        }
        queue.close();
      });
      hold.reset();
      producer.join();
      consumer.join();
    }
    EXPECT_EQ(end, 3s + 10 * 5s);
  }
}

TEST(ByteBudget, MakesTheProducerWaitAndRemembersThePeak) {
  ByteBudget budget(real_clock(), 100);
  ASSERT_TRUE(budget.acquire(60, {}));
  std::jthread releaser([&] { budget.release(60); });
  ASSERT_TRUE(budget.acquire(70, {}));
  EXPECT_EQ(budget.bytes_in_use(), 70U);
  EXPECT_EQ(budget.bytes_peak(), 70U);
  EXPECT_EQ(budget.acquire(101, {}).error().code(), ErrorCode::invalid_argument);
}

TEST(ByteBudget, AStopEndsTheWaitAndTakesNothing) {
  ByteBudget budget(real_clock(), 10);
  ASSERT_TRUE(budget.acquire(10, {}));
  std::stop_source source;
  std::jthread stopper([&] { source.request_stop(); });
  EXPECT_EQ(budget.acquire(1, source.get_token()).error().code(), ErrorCode::cancelled);
  EXPECT_EQ(budget.bytes_in_use(), 10U);
}

TEST(BoundedQueue, DrainsAfterCloseAndRefusesMore) {
  BoundedQueue<int> queue(real_clock(), 3);
  ASSERT_TRUE(queue.push(1, {}));
  ASSERT_TRUE(queue.push(2, {}));
  queue.close();
  EXPECT_FALSE(queue.push(3, {}));
  EXPECT_EQ(queue.pop({}), 1);
  EXPECT_EQ(queue.pop({}), 2);
  EXPECT_EQ(queue.pop({}), std::nullopt);
}

}  // namespace
}  // namespace librarian
