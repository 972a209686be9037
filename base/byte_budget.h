#pragma once
/// A limit in bytes that producers wait for: the pipeline's back-pressure.

#include <cstdint>
#include <stop_token>

#include "base/clock.h"
#include "base/error.h"

namespace librarian {

/// Counting semaphore over bytes. Thread-safe; waiting order is not guaranteed.
class ByteBudget {
 public:
  ByteBudget(Clock& clock, std::uint64_t bytes_max) : monitor_(clock), bytes_max_(bytes_max) {}

  /// Waits until `bytes` are free and takes them.
  /// @error cancelled         `stop` was requested first; nothing was taken.
  /// @error invalid_argument  `bytes` is above the whole budget: it would never fit.
  Result<void> acquire(std::uint64_t bytes, const std::stop_token& stop);
  void release(std::uint64_t bytes);

  std::uint64_t bytes_max() const { return bytes_max_; }
  std::uint64_t bytes_in_use();
  std::uint64_t bytes_peak();

 private:
  Monitor monitor_;
  const std::uint64_t bytes_max_;
  std::uint64_t bytes_in_use_ = 0;
  std::uint64_t bytes_peak_ = 0;
};

}  // namespace librarian
