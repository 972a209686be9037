#include "weightmap/remote/origin_pace.h"

#include <algorithm>
#include <cmath>

namespace librarian::weightmap::remote {
namespace {

using Seconds = std::chrono::duration<double>;

constexpr double kWeight = 0.2;           // Of the newest sample in a moving average.
constexpr std::uint64_t kSamplesMin = 8;  // Before a median means anything.
constexpr double kWorthOne = 1.05;        // One connection more must bring this much,
constexpr double kWorthTwice = 1.2;       // and twice as many this much.
constexpr double kTimeOfTransfer = 24;    // One request: 24 parts of transfer for one of waiting.
constexpr std::uint64_t kRequestMin = 8U << 20U;
constexpr std::uint64_t kRequestMax = 64U << 20U;
constexpr std::uint64_t kRequestUnknown = 32U << 20U;
constexpr std::uint64_t kHoleMin = 64U << 10U;
constexpr std::uint64_t kHoleMax = 1U << 20U;
// One storm is answered once, and the number grows again when it is over.
constexpr Duration kOneStorm = std::chrono::seconds(2);
constexpr Duration kAfterStorm = std::chrono::seconds(20);

double average(double before, double now) {
  return before == 0 ? now : before + kWeight * (now - before);
}

}  // namespace

OriginPace::OriginPace(std::uint32_t connections_begin, std::uint32_t connections_max)
    : connections_max_(connections_max),
      connections_(std::clamp(connections_begin, 1U, connections_max)),
      connections_before_(connections_),
      grows_(connections_ < connections_max) {}

void OriginPace::landed(Duration first_byte, Duration took, std::uint64_t bytes) {
  // Of tiny requests the rate says nothing.
  constexpr std::uint64_t kTelling = 64U << 10U;
  if (first_byte.count() > 0) {
    first_byte_s_ = average(first_byte_s_, Seconds(first_byte).count());
  }
  const double seconds = Seconds(took - first_byte).count();
  if (bytes >= kTelling && seconds > 0) {
    bytes_per_s_ = average(bytes_per_s_, static_cast<double>(bytes) / seconds);
    recent_[recent_count_++ % recent_.size()] = seconds / static_cast<double>(bytes);
  }
}

void OriginPace::pushed_back(TimePoint now) {
  if (pushed_back_at_ && now - *pushed_back_at_ < kOneStorm) {
    return;
  }
  pushed_back_at_ = now;
  connections_ = std::max(connections_ / 2, 1U);
  connections_before_ = connections_;
  rate_before_ = 0;
  grows_ = true;
  begin_window();
}

void OriginPace::begin_window() {
  busy_ = Duration(0);
  busy_bytes_ = 0;
  settled_ = false;
}

void OriginPace::look(TimePoint now, std::uint64_t delivered_bytes, bool all_busy) {
  if (looked_at_ && was_busy_ && !settled_) {
    settled_ = delivered_bytes > looked_bytes_;
  } else if (looked_at_ && was_busy_) {
    busy_ += now - *looked_at_;
    // A failed request's bytes may count no more.
    busy_bytes_ += std::max(delivered_bytes, looked_bytes_) - looked_bytes_;
  }
  looked_at_ = now;
  looked_bytes_ = delivered_bytes;
  was_busy_ = all_busy;
}

void OriginPace::tick(TimePoint now, std::uint64_t delivered_bytes, bool all_busy) {
  look(now, delivered_bytes, all_busy);
  if (!grows_ || busy_ < kTick) {
    return;
  }
  const double rate = static_cast<double>(busy_bytes_) / Seconds(busy_).count();
  const bool calm = !pushed_back_at_ || now - *pushed_back_at_ >= kAfterStorm;
  if (calm && rate > 0) {
    const bool worth_it = rate >= rate_before_ * (pushed_back_at_ ? kWorthOne : kWorthTwice);
    if (worth_it && connections_ < connections_max_) {
      connections_before_ = connections_;
      rate_before_ = rate;
      // After a storm one at a time: the origin has said where its limit is.
      connections_ =
          std::min(pushed_back_at_ ? connections_ + 1 : 2 * connections_, connections_max_);
    } else {
      connections_ = worth_it ? connections_ : connections_before_;
      grows_ = false;
    }
  }
  begin_window();
}

std::optional<TimePoint> OriginPace::next_tick() const {
  if (!grows_ || !looked_at_ || !was_busy_) {
    return std::nullopt;
  }
  return *looked_at_ + (kTick - busy_);
}

RequestSizes OriginPace::sizes() const {
  if (first_byte_s_ == 0 || bytes_per_s_ == 0) {
    return {kRequestUnknown, kHoleMin};
  }
  const double waiting = first_byte_s_ * bytes_per_s_;  // Bytes that one request's wait costs.
  const auto clamped = [](double bytes, std::uint64_t low, std::uint64_t high) {
    return static_cast<std::uint64_t>(
        std::clamp(bytes, static_cast<double>(low), static_cast<double>(high)));
  };
  return {clamped(kTimeOfTransfer * waiting, kRequestMin, kRequestMax),
          clamped(waiting, kHoleMin, kHoleMax)};
}

std::optional<Duration> OriginPace::usual(std::uint64_t bytes) const {
  if (recent_count_ < kSamplesMin) {
    return std::nullopt;
  }
  std::array<double, 32> sorted = recent_;
  const auto count =
      static_cast<std::ptrdiff_t>(std::min<std::uint64_t>(recent_count_, recent_.size()));
  const auto middle = sorted.begin() + count / 2;
  std::nth_element(sorted.begin(), middle, sorted.begin() + count);
  return std::chrono::duration_cast<Duration>(
      Seconds(first_byte_s_ + *middle * static_cast<double>(bytes)));
}

}  // namespace librarian::weightmap::remote
