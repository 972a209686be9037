#pragma once
/// How many requests at a time an origin is sent and how large they are, from what it was seen to
/// deliver. Decisions only: no threads, no waiting; time is passed in. Not thread-safe.

#include <array>
#include <cstdint>
#include <optional>

#include "base/clock.h"

namespace librarian::weightmap::remote {

/// Sizes of requests that suit an origin.
struct RequestSizes {
  std::uint64_t request_bytes;  ///< Aim for one request.
  std::uint64_t hole_bytes;     ///< Unwanted bytes that cost less than another request.
};

class OriginPace {
 public:
  /// @param connections_begin, connections_max  Requests at a time, at first and at most.
  OriginPace(std::uint32_t connections_begin, std::uint32_t connections_max);

  /// A request that went well. @param took  From its start to its end, `first_byte` included.
  void landed(Duration first_byte, Duration took, std::uint64_t bytes);
  /// The origin asked for less: 429, 503, a Retry-After.
  void pushed_back(TimePoint now);
  /// Looks at what was delivered since the last time; at most every kTick.
  /// @param delivered_bytes  In all so far, of requests under way as well.
  /// @param all_busy         All connections() are in use and more requests wait.
  void tick(TimePoint now, std::uint64_t delivered_bytes, bool all_busy);

  std::uint32_t connections() const { return connections_; }
  /// When tick() may have something to say; nothing: it will not raise the number any more.
  std::optional<TimePoint> next_tick() const;
  RequestSizes sizes() const;
  /// How long a request of `bytes` usually takes; nothing until a few were seen.
  std::optional<Duration> usual(std::uint64_t bytes) const;

  static constexpr Duration kTick = std::chrono::milliseconds(500);

 private:
  void look(TimePoint now, std::uint64_t delivered_bytes, bool all_busy);
  void begin_window();

  const std::uint32_t connections_max_;
  std::uint32_t connections_;
  std::uint32_t connections_before_;  // The last increase.
  double first_byte_s_ = 0;           // Moving averages; 0 until known.
  double bytes_per_s_ = 0;            // Of one connection.
  // Nanoseconds per byte of the latest requests, for a median that stragglers do not move.
  std::array<double, 32> recent_{};
  std::uint64_t recent_count_ = 0;
  // The window between two judgements: the times in it in which all connections were in use, for
  // what is delivered while there is nothing to send says nothing about their number.
  std::optional<TimePoint> looked_at_;
  std::uint64_t looked_bytes_ = 0;
  bool was_busy_ = false;  // From looked_at_ on.
  bool settled_ = false;   // False: the first requests' wait for bytes is still to be left out.
  Duration busy_{};
  std::uint64_t busy_bytes_ = 0;
  double rate_before_ = 0;  // Bytes per second of all connections when there were fewer of them.
  bool grows_;
  std::optional<TimePoint> pushed_back_at_;
};

}  // namespace librarian::weightmap::remote
