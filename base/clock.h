#pragma once
/// Time and waiting as one seam: everything in the pipeline that waits does so through a Clock, so
/// tests run schedules of hours on virtual time, exactly and without sleeping.

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>
#include <utility>

namespace librarian {

using Duration = std::chrono::nanoseconds;
/// Monotonic time since an arbitrary origin of the clock.
using TimePoint = std::chrono::nanoseconds;

/// Source of time and the place where threads wait. All members are thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;

  virtual TimePoint now() const = 0;

  /// Waits on `condition` (whose mutex `lock` holds) until `changed()`, `deadline` or `stop`.
  /// May also wake for no reason: callers look again. Use Monitor, not this.
  virtual void wait(std::condition_variable_any& condition, std::unique_lock<std::mutex>& lock,
                    const std::stop_token& stop, std::optional<TimePoint> deadline,
                    const std::function<bool()>& changed) = 0;
  /// Says that threads waiting on `condition` are about to run. Called with its mutex held.
  virtual void notified(std::condition_variable_any& condition) = 0;

  /// Counts one more running participant (a thread, or work queued elsewhere). Virtual time stands
  /// still while any participant runs; the real clock ignores this. Use Activity, not this.
  virtual void begin_activity() = 0;
  virtual void end_activity() = 0;

  /// Sleeps until `time`. Returns false if `stop` was requested first.
  bool sleep_until(TimePoint time, std::stop_token stop);
  bool sleep_for(Duration duration, std::stop_token stop) {
    return sleep_until(now() + duration, std::move(stop));
  }
};

/// The machine's steady clock; lives for the whole program.
Clock& real_clock();

/// While one exists, virtual time does not pass unless its holder waits through the clock.
/// Take it before handing work to another thread, so that the work is never unseen.
class Activity {
 public:
  explicit Activity(Clock& clock) : clock_(&clock) { clock_->begin_activity(); }
  Activity(Activity&& other) noexcept : clock_(std::exchange(other.clock_, nullptr)) {}
  Activity& operator=(Activity&&) = delete;
  Activity(const Activity&) = delete;
  Activity& operator=(const Activity&) = delete;
  ~Activity() {
    if (clock_ != nullptr) {
      clock_->end_activity();
    }
  }

 private:
  Clock* clock_;
};

/// A mutex and a condition whose waits the clock can see. Guard your data with `lock()`.
class Monitor {
 public:
  explicit Monitor(Clock& clock) : clock_(clock) {}
  Monitor(const Monitor&) = delete;
  Monitor& operator=(const Monitor&) = delete;

  std::unique_lock<std::mutex> lock() { return std::unique_lock<std::mutex>(mutex_); }

  /// Wakes every waiter to look at its condition again. `lock` must be held.
  void notify_all(const std::unique_lock<std::mutex>& lock);

  /// Waits until `ready()` is true. Returns ready() at the end: false means `stop` came first.
  template <typename Ready>
  bool wait(std::unique_lock<std::mutex>& lock, const std::stop_token& stop, Ready ready) {
    return wait_until(lock, stop, std::nullopt, ready);
  }

  /// As wait(), and gives up at `deadline`: false means stop or deadline came first.
  template <typename Ready>
  bool wait_until(std::unique_lock<std::mutex>& lock, const std::stop_token& stop,
                  std::optional<TimePoint> deadline, Ready ready) {
    while (!ready()) {
      if (stop.stop_requested() || (deadline && clock_.now() >= *deadline)) {
        return false;
      }
      const std::uint64_t seen = generation_;
      clock_.wait(condition_, lock, stop, deadline, [&] { return generation_ != seen; });
    }
    return true;
  }

  Clock& clock() { return clock_; }

 private:
  Clock& clock_;
  std::mutex mutex_;
  std::condition_variable_any condition_;
  std::uint64_t generation_ = 0;  // Counts notifications, so that none is lost or spurious.
};

/// Starts a thread that takes part in the clock's time from before it runs until it ends.
/// @param body  Called with the thread's stop token; exceptions end the program.
template <typename Body>
std::jthread start_thread(Clock& clock, Body body) {
  return std::jthread([activity = Activity(clock), body = std::move(body)](
                          std::stop_token stop) mutable { body(std::move(stop)); });
}

}  // namespace librarian
