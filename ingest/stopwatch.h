#pragma once
/// Adds the time it lives to a duration.

#include "base/clock.h"

namespace librarian::ingest {

class Stopwatch {
 public:
  Stopwatch(Clock& clock, Duration& total) : clock_(clock), total_(total), begin_(clock.now()) {}
  ~Stopwatch() { total_ += clock_.now() - begin_; }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  Clock& clock_;
  Duration& total_;
  TimePoint begin_;
};

}  // namespace librarian::ingest
