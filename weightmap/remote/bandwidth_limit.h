#pragma once
/// A token bucket over received bytes. Arithmetic only: time is passed in. Thread-safe.

#include <chrono>
#include <cstdint>
#include <mutex>

namespace librarian::weightmap::remote {

class BandwidthLimit {
 public:
  using Time = std::chrono::steady_clock::time_point;

  /// @param bytes_per_second  0: no limit.
  explicit BandwidthLimit(std::uint64_t bytes_per_second);

  /// `bytes` were received. They may exceed what was there: then the debt is waited for.
  void spend(std::uint64_t bytes, Time now);
  /// How long to receive nothing; 0: go on.
  std::chrono::nanoseconds wait(Time now);
  /// The limit holds us back, or did a moment ago.
  bool binds(Time now);

 private:
  void refill(Time now);  // With mutex_ held.

  const double rate_;   // Bytes per second.
  const double burst_;  // Bytes that may come at once after silence.
  std::mutex mutex_;
  double bytes_;  // There to be spent; negative: debt.
  Time refilled_at_{};
};

}  // namespace librarian::weightmap::remote
