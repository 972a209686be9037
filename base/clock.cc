#include "base/clock.h"

#include "base/error.h"

namespace librarian {
namespace {

class RealClock final : public Clock {
 public:
  TimePoint now() const override {
    return std::chrono::duration_cast<TimePoint>(
        std::chrono::steady_clock::now().time_since_epoch());
  }

  void wait(std::condition_variable_any& condition, std::unique_lock<std::mutex>& lock,
            const std::stop_token& stop, std::optional<TimePoint> deadline,
            const std::function<bool()>& changed) override {
    if (deadline) {
      const std::chrono::steady_clock::time_point until(*deadline);
      condition.wait_until(lock, stop, until, changed);
    } else {
      condition.wait(lock, stop, changed);
    }
  }
  void notified(std::condition_variable_any& /*condition*/) override {}
  void begin_activity() override {}
  void end_activity() override {}
};

}  // namespace

bool Clock::sleep_until(TimePoint time, std::stop_token stop) {
  Monitor monitor(*this);
  auto lock = monitor.lock();
  monitor.wait_until(lock, stop, time, [] { return false; });
  return now() >= time;
}

Clock& real_clock() {
  static RealClock clock;
  return clock;
}

void Monitor::notify_all(const std::unique_lock<std::mutex>& lock) {
  LIB_CHECK(lock.owns_lock() && lock.mutex() == &mutex_);
  ++generation_;
  clock_.notified(condition_);
  condition_.notify_all();
}

}  // namespace librarian
