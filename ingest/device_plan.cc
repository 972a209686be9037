#include "ingest/device_plan.h"

#include <algorithm>

namespace librarian::ingest {

std::optional<DevicePlan> plan_device(const weightmap::Checkpoint& checkpoint,
                                      const CaptureList& captures,
                                      std::span<const activation_store::PartRange> parts,
                                      const MemoryPlan& memory, const LayerSizes& sizes,
                                      const gpu_exec::Device& device) {
  if (device.works_on_host_memory()) {
    return std::nullopt;
  }
  DevicePlan plan;
  plan.limit_bytes = device.memory_limit();
  plan.weight_bytes = memory.executor_memory.weight_bytes;
  plan.workspace_bytes = memory.executor_memory.workspace_bytes;
  plan.weight_buffers = memory.executor_memory.weight_buffers;
  plan.staged = memory.executor_memory.staged;
  plan.rows_together = memory.executor_memory.rows_together;
  const std::int32_t layers = std::min(captures.last_layer() + 1, checkpoint.layer_count());
  for (const LayerKindSizes& kind : sizes.kinds) {
    if (kind.stages.size() > plan.stages.size()) {
      plan.stages = kind.stages;
    }
  }
  const std::uint64_t row_bytes =
      checkpoint.spec().hidden_size * gpu_exec::dtype_bytes(memory.executor.dtype);
  for (const activation_store::PartRange& part : parts) {
    const std::uint64_t uploads = !plan.staged ? 1
                                  : memory.executor_memory.streamed
                                      ? memory.readings_max
                                      : (part.tokens + plan.rows_together - 1) / plan.rows_together;
    plan.uploads_max = std::max(plan.uploads_max, uploads);
    const std::uint64_t rows = part.tokens * static_cast<std::uint64_t>(layers) * row_bytes;
    plan.upload_bytes += uploads * sizes.wire_bytes + rows;
    plan.download_bytes += rows;
    // resid_post is among the rows that come back anyway.
    for (std::int32_t layer = 0; layer < layers; ++layer) {
      const auto& wanted = captures.layers[static_cast<std::size_t>(layer)];
      const std::uint64_t more =
          wanted.size() - (wanted.contains(gpu_exec::CapturePoint::resid_post) ? 1 : 0);
      plan.download_bytes += more * part.tokens * row_bytes;
    }
  }
  return plan;
}

}  // namespace librarian::ingest
