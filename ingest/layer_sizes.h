#pragma once
/// What the layers of a job weigh, on the wire and decoded, and at how many tokens each link stops
/// being slower than the arithmetic. Pure arithmetic over a plan.

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "gpu_exec/layer_executor.h"
#include "ingest/capture_list.h"
#include "ingest/memory_plan.h"
#include "weightmap/checkpoint.h"

namespace librarian::ingest {

/// Layers of one kind and size.
struct LayerKindSizes {
  std::vector<std::uint32_t> layers;
  std::uint64_t tensors = 0;        ///< Of one layer, as are the sizes.
  std::uint64_t wire_bytes = 0;     ///< As the checkpoint has them.
  std::uint64_t decoded_bytes = 0;  ///< As the device holds them.
  std::uint32_t experts = 0;        ///< 0: dense.
  /// What is resident at once, in order; one if layers are resident.
  std::vector<gpu_exec::StageSummary> stages;
};

struct LayerSizes {
  std::vector<LayerKindSizes> kinds;  ///< In the order in which they come first.
  std::uint64_t wire_bytes = 0;       ///< Of all layers that the job computes.
  std::uint64_t decoded_bytes = 0;
};

/// @param memory  The job's plan on `device`.
Result<LayerSizes> layer_sizes(const weightmap::Checkpoint& checkpoint, const CaptureList& captures,
                               const MemoryPlan& memory, const gpu_exec::Device& device);

/// Tokens that must meet weights of so many bytes for their arithmetic to take as long as the bytes
/// take on a link.
/// @param flops_per_token   Of the arithmetic with those weights; 0 gives 0.
std::uint64_t break_even_tokens(std::uint64_t weight_bytes, double link_bytes_per_second,
                                double flops_per_token, double flops_per_second);

}  // namespace librarian::ingest
