#include "weightmap/remote/bandwidth_limit.h"

#include <algorithm>

namespace librarian::weightmap::remote {
namespace {

using Seconds = std::chrono::duration<double>;

constexpr double kBurstSeconds = 0.1;

}  // namespace

BandwidthLimit::BandwidthLimit(std::uint64_t bytes_per_second)
    : rate_(static_cast<double>(bytes_per_second)), burst_(rate_ * kBurstSeconds), bytes_(burst_) {}

void BandwidthLimit::refill(Time now) {
  if (refilled_at_ != Time{} && now > refilled_at_) {
    bytes_ = std::min(burst_, bytes_ + rate_ * Seconds(now - refilled_at_).count());
  }
  refilled_at_ = now;
}

void BandwidthLimit::spend(std::uint64_t bytes, Time now) {
  if (rate_ > 0) {
    const std::lock_guard<std::mutex> guard(mutex_);
    refill(now);
    bytes_ -= static_cast<double>(bytes);
  }
}

std::chrono::nanoseconds BandwidthLimit::wait(Time now) {
  if (rate_ == 0) {
    return std::chrono::nanoseconds(0);
  }
  const std::lock_guard<std::mutex> guard(mutex_);
  refill(now);
  if (bytes_ >= 0) {
    return std::chrono::nanoseconds(0);
  }
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Seconds(-bytes_ / rate_)) +
         std::chrono::nanoseconds(1);
}

bool BandwidthLimit::binds(Time now) {
  if (rate_ == 0) {
    return false;
  }
  const std::lock_guard<std::mutex> guard(mutex_);
  refill(now);
  return bytes_ < burst_;
}

}  // namespace librarian::weightmap::remote
