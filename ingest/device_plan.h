#pragma once
/// What a job does with the memory and the bus of a device that has its own. Pure arithmetic.

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "activation_store/store_files.h"
#include "base/error.h"
#include "gpu_exec/layer_executor.h"
#include "ingest/capture_list.h"
#include "ingest/layer_sizes.h"
#include "ingest/memory_plan.h"
#include "weightmap/checkpoint.h"

namespace librarian::ingest {

struct DevicePlan {
  /// Of host memory that driver and libraries keep resident beside --host-memory, measured when the
  /// device was opened.
  std::uint64_t host_overhead_bytes = 0;
  std::uint64_t limit_bytes = 0;      ///< For weights and workspace.
  std::uint64_t weight_bytes = 0;     ///< All weight buffers.
  std::uint64_t workspace_bytes = 0;  ///< Block buffers, keys, values, rows on their way.
  std::uint64_t weight_buffers = 0;
  bool staged = false;              ///< Layers come in stages, else whole.
  std::uint64_t rows_together = 0;  ///< Tokens that meet a stage before it goes.
  /// How often the largest part's layers go up: once, or once for every `rows_together` tokens.
  std::uint64_t uploads_max = 0;
  std::vector<gpu_exec::StageSummary> stages;  ///< Of the layer that has the most.
  std::uint64_t upload_bytes = 0;              ///< Over the bus in the whole job: weights and rows.
  std::uint64_t download_bytes = 0;            ///< Likewise: rows and captures.
};

/// Nothing if the device works on host memory.
/// @param memory  The job's plan on this device.
/// @param sizes   Of the layers under that plan.
std::optional<DevicePlan> plan_device(const weightmap::Checkpoint& checkpoint,
                                      const CaptureList& captures,
                                      std::span<const activation_store::PartRange> parts,
                                      const MemoryPlan& memory, const LayerSizes& sizes,
                                      const gpu_exec::Device& device);

}  // namespace librarian::ingest
