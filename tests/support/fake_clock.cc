#include "tests/support/fake_clock.h"

#include <algorithm>

namespace librarian::testing {

using namespace std::chrono_literals;

TimePoint FakeClock::now() const {
  const std::lock_guard<std::mutex> guard(mutex_);
  return now_;
}

void FakeClock::wait(std::condition_variable_any& condition, std::unique_lock<std::mutex>& lock,
                     const std::stop_token& stop, std::optional<TimePoint> deadline,
                     const std::function<bool()>& changed) {
  Waiter waiter{&condition, deadline};
  {
    const std::lock_guard<std::mutex> guard(mutex_);
    waiters_.push_back(&waiter);
    --running_;
    advance_if_all_wait();
  }
  const auto done = [&] { return changed() || (deadline && now() >= *deadline); };
  // Time may be moved by a thread that does not hold this waiter's mutex, so its notification can
  // fall between our check and our sleep; looking again every millisecond makes that harmless.
  while (!done() && !stop.stop_requested()) {
    condition.wait_for(lock, stop, 1ms, done);
  }
  const std::lock_guard<std::mutex> guard(mutex_);
  waiters_.erase(std::find(waiters_.begin(), waiters_.end(), &waiter));
  if (!waiter.woken) {
    ++running_;
  }
}

void FakeClock::notified(std::condition_variable_any& condition) {
  const std::lock_guard<std::mutex> guard(mutex_);
  for (Waiter* waiter : waiters_) {
    if (waiter->condition == &condition && !waiter->woken) {
      waiter->woken = true;
      ++running_;
    }
  }
}

void FakeClock::begin_activity() {
  const std::lock_guard<std::mutex> guard(mutex_);
  ++running_;
}

void FakeClock::end_activity() {
  const std::lock_guard<std::mutex> guard(mutex_);
  --running_;
  advance_if_all_wait();
}

void FakeClock::advance_if_all_wait() {
  if (running_ > 0) {
    return;
  }
  std::optional<TimePoint> next;
  for (const Waiter* waiter : waiters_) {
    if (waiter->deadline && (!next || *waiter->deadline < *next)) {
      next = waiter->deadline;
    }
  }
  if (!next) {
    return;
  }
  now_ = std::max(now_, *next);
  for (Waiter* waiter : waiters_) {
    if (waiter->deadline && *waiter->deadline <= now_ && !waiter->woken) {
      waiter->woken = true;
      ++running_;
      waiter->condition->notify_all();
    }
  }
}

}  // namespace librarian::testing
