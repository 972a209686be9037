#pragma once
/// Virtual time for schedules: it moves only when every participant waits, straight to the next
/// deadline, so a test of hours takes milliseconds and measures exactly.

#include <vector>

#include "base/clock.h"

namespace librarian::testing {

/// Threads started by start_thread() and holders of an Activity are participants; the test's own
/// thread must hold an Activity while it calls into code under test. When every participant waits
/// and none has a deadline, time stands still (a notification from outside may still come).
class FakeClock final : public Clock {
 public:
  TimePoint now() const override;
  void wait(std::condition_variable_any& condition, std::unique_lock<std::mutex>& lock,
            const std::stop_token& stop, std::optional<TimePoint> deadline,
            const std::function<bool()>& changed) override;
  void notified(std::condition_variable_any& condition) override;
  void begin_activity() override;
  void end_activity() override;

 private:
  struct Waiter {
    std::condition_variable_any* condition;
    std::optional<TimePoint> deadline;
    bool woken = false;
  };
  void advance_if_all_wait();  // Called with mutex_ held.

  mutable std::mutex mutex_;
  TimePoint now_{0};
  int running_ = 0;
  std::vector<Waiter*> waiters_;
};

}  // namespace librarian::testing
