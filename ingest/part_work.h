#pragma once
/// Private to PartRun: a layer between its computation and its commit.

#include <map>
#include <string>
#include <vector>

#include "activation_store/array_writer.h"
#include "ingest/part_run.h"

namespace librarian::ingest {

/// A layer on its way from compute to its commit.
struct PartRun::LayerWork {
  struct Output {
    std::string name;
    activation_store::ArrayWriter writer;
  };
  std::int32_t layer = 0;
  std::vector<Output> outputs;
  std::map<std::string, std::string> weights;
  StatePlace place;
  LayerTimes times;
  TimePoint begin{};
};

}  // namespace librarian::ingest
