#pragma once
/// When a request that takes too long is asked for a second time, beside the first. Decisions only.
/// Not thread-safe.

#include <cstdint>
#include <optional>

#include "base/clock.h"

namespace librarian::weightmap::remote {

class HedgeRule {
 public:
  /// @param budget  Extra bytes per wanted byte, at most; 0: never.
  explicit HedgeRule(double budget) : budget_(budget) {}

  bool enabled() const { return budget_ > 0; }
  /// `bytes` more are wanted: the budget is a share of these.
  void wanted(std::uint64_t bytes) { wanted_bytes_ += bytes; }
  /// A request ended. While many fail, asking twice only makes matters worse.
  void ended(bool failed);
  /// After what time a request that usually takes `usual` is late.
  static Duration late_after(Duration usual);
  /// Takes `bytes` from the budget, if they are there and few requests fail.
  bool take(std::uint64_t bytes);
  /// Of the bytes taken, so many were not sent twice after all.
  void give_back(std::uint64_t bytes);

 private:
  const double budget_;
  std::uint64_t wanted_bytes_ = 0;
  std::uint64_t extra_bytes_ = 0;
  double failing_ = 0;  // Moving average.
};

}  // namespace librarian::weightmap::remote
