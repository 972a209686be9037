#include "ingest/layer_sizes.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace librarian::ingest {
namespace {

/// The kind that a layer is of, if one before it was of it.
LayerKindSizes* find_kind(LayerSizes& sizes, const weightmap::Checkpoint& checkpoint,
                          std::uint32_t layer) {
  const weightmap::LayerPlan& plan = checkpoint.layer(static_cast<std::int32_t>(layer));
  const auto found =
      std::find_if(sizes.kinds.begin(), sizes.kinds.end(), [&](const LayerKindSizes& kind) {
        return kind.wire_bytes == plan.bytes && kind.tensors == plan.tensors.size() &&
               checkpoint.spec().layers[kind.layers.front()] == checkpoint.spec().layers[layer];
      });
  return found == sizes.kinds.end() ? nullptr : &*found;
}

}  // namespace

Result<LayerSizes> layer_sizes(const weightmap::Checkpoint& checkpoint, const CaptureList& captures,
                               const MemoryPlan& memory, const gpu_exec::Device& device) {
  LayerSizes sizes;
  const auto layers =
      static_cast<std::uint32_t>(std::min(captures.last_layer() + 1, checkpoint.layer_count()));
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    LayerKindSizes* kind = find_kind(sizes, checkpoint, layer);
    if (kind == nullptr) {
      const weightmap::LayerPlan& plan = checkpoint.layer(static_cast<std::int32_t>(layer));
      LayerKindSizes made;
      made.tensors = plan.tensors.size();
      made.wire_bytes = plan.bytes;
      made.experts = checkpoint.spec().layers[layer].moe.experts;
      LIB_TRY(made.stages,
              gpu_exec::LayerExecutor::stages(checkpoint.spec(), layer, memory.executor, device));
      for (const gpu_exec::StageSummary& stage : made.stages) {
        made.decoded_bytes += stage.bytes;
      }
      kind = &sizes.kinds.emplace_back(std::move(made));
    }
    kind->layers.push_back(layer);
    sizes.wire_bytes += kind->wire_bytes;
    sizes.decoded_bytes += kind->decoded_bytes;
  }
  return sizes;
}

std::uint64_t break_even_tokens(std::uint64_t weight_bytes, double link_bytes_per_second,
                                double flops_per_token, double flops_per_second) {
  if (flops_per_token <= 0) {
    return 0;
  }
  const double seconds = static_cast<double>(weight_bytes) / link_bytes_per_second;
  return static_cast<std::uint64_t>(std::ceil(seconds * flops_per_second / flops_per_token));
}

}  // namespace librarian::ingest
