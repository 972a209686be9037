#pragma once
/// Private to PartRun: a layer between its computation and its commit.

#include <map>
#include <string>
#include <vector>

#include "ingest/capture_sink.h"
#include "ingest/part_run.h"

namespace librarian::ingest {

/// A layer on its way from compute to its commit.
struct PartRun::LayerWork {
  std::int32_t layer = 0;
  std::vector<CaptureSink> outputs;
  std::map<std::string, std::string> weights;
  std::uint64_t weight_bytes = 0;  // That came for it.
  StatePlace place;
  LayerTimes times;
  TimePoint begin{};
};

}  // namespace librarian::ingest
