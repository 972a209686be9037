#include "ingest/staging_plan.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <set>

#include "base/units.h"
#include "weightmap/remote/file_staging.h"

namespace librarian::ingest {
namespace {

using weightmap::remote::FileStaging;
using weightmap::remote::FileStagingOptions;

constexpr double kMoreThanNeededMax = 0.02;

std::set<std::uint32_t> files_of(const weightmap::LayerPlan& layer) {
  std::set<std::uint32_t> files;
  for (const weightmap::WeightTensor& tensor : layer.tensors) {
    files.insert(tensor.file);
  }
  return files;
}

std::string percent(double ratio) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.1f %%", 100 * ratio);
  return text.data();
}

/// Bytes of the weights that a pass reads to `last_layer`, those of layers `readings` times.
std::uint64_t pass_bytes(const weightmap::Checkpoint& checkpoint, std::int32_t last_layer,
                         std::uint64_t readings) {
  std::uint64_t bytes = 0;
  for (std::int32_t layer = weightmap::kEmbeddingLayer; layer <= last_layer; ++layer) {
    const bool is_layer = layer >= 0 && layer < checkpoint.layer_count();
    bytes += checkpoint.layer(layer).bytes * (is_layer ? readings : 1);
  }
  return bytes;
}

void add_sizes(const StagingInputs& in, StagingPlan& plan) {
  const std::vector<weightmap::WeightFile>& files = in.checkpoint->files();
  plan.needed_bytes = pass_bytes(*in.checkpoint, in.last_layer, in.readings_max);
  std::set<std::uint32_t> all;
  std::set<std::uint32_t> before;
  for (std::int32_t layer = weightmap::kEmbeddingLayer; layer <= in.last_layer; ++layer) {
    const weightmap::LayerPlan& of_layer = in.checkpoint->layer(layer);
    const std::set<std::uint32_t> now = files_of(of_layer);
    std::set<std::uint32_t> both = now;
    both.insert(before.begin(), before.end());
    std::uint64_t bytes = 0;
    for (const std::uint32_t file : both) {
      bytes += weightmap::remote::staging_footprint_bytes(files[file].info.size);
    }
    plan.two_layers_bytes = std::max(plan.two_layers_bytes, bytes);
    all.insert(now.begin(), now.end());
    before = now;
  }
  for (const std::uint32_t file : all) {
    plan.file_bytes += files[file].info.size;
    plan.largest_file_bytes = std::max(plan.largest_file_bytes, files[file].info.size);
  }
}

void add_memory(const StagingInputs& in, StagingPlan& plan) {
  FileStagingOptions options;
  options.object_bytes_max = plan.largest_file_bytes;
  for (options.slabs = in.connections;
       options.slabs > 1 && FileStaging::memory_bytes(options) > in.spare_memory_bytes;
       --options.slabs) {
  }
  plan.slabs = options.slabs;
  plan.memory_bytes = FileStaging::memory_bytes(options);
}

}  // namespace

std::uint64_t staging_segment_bytes(const weightmap::Checkpoint& checkpoint, StagingMode mode) {
  if (checkpoint.directory().scheme == "file" || mode == StagingMode::memory) {
    return 0;
  }
  FileStagingOptions options;
  for (const weightmap::WeightFile& file : checkpoint.files()) {
    options.object_bytes_max = std::max(options.object_bytes_max, file.info.size);
  }
  options.slabs = 1;
  return FileStaging::memory_bytes(options);
}

StagingPlan plan_staging(const StagingInputs& in) {
  StagingPlan plan;
  plan.limit_bytes = in.limit_bytes;
  add_sizes(in, plan);
  add_memory(in, plan);
  const double more =
      plan.needed_bytes == 0
          ? 0
          : static_cast<double>(plan.file_bytes) / static_cast<double>(plan.needed_bytes) - 1;
  if (in.checkpoint->directory().scheme == "file") {
    plan.reason = "the model is on a disk already";
  } else if (in.mode == StagingMode::memory) {
    plan.reason = "as asked for";
  } else if (plan.two_layers_bytes > plan.limit_bytes) {
    plan.reason = "the files of two layers take " + format_bytes(plan.two_layers_bytes) + " and " +
                  format_bytes(plan.limit_bytes) + " of disk are there for them";
  } else if (plan.memory_bytes > in.spare_memory_bytes) {
    plan.reason = "--host-memory leaves " + format_bytes(in.spare_memory_bytes) +
                  " where staging needs " + format_bytes(plan.memory_bytes);
  } else if (in.mode == StagingMode::automatic && more > kMoreThanNeededMax) {
    plan.reason = "whole files would add " + percent(more) +
                  " to the bytes needed (--staging disk takes them all the same)";
  } else {
    plan.on_disk = true;
    plan.reason = in.mode == StagingMode::disk ? "as asked for"
                  : in.readings_max > 1
                      ? "layers are read " + std::to_string(in.readings_max) +
                            " times a part, and whole files are fetched once"
                      : "whole files add " + percent(more) +
                            " to the bytes needed, and can be hashed and kept over a crash";
  }
  if (!plan.on_disk) {
    plan.slabs = 0;
    plan.memory_bytes = 0;
  }
  return plan;
}

}  // namespace librarian::ingest
