#include "gpu_exec/memory_plan.h"

#include <algorithm>
#include <string>

namespace librarian::gpu_exec {
namespace {

constexpr std::uint64_t kAlignment = 64;  // A cache line and the widest vector.

std::uint64_t aligned(std::uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

Error bad_layer(std::size_t index, const std::string& what) {
  return {ErrorCode::invalid_argument, "layer " + std::to_string(index) + ": " + what};
}

}  // namespace

std::vector<WeightSlot> place_weights(const ModelSpec& model, const LayerSpec& layer,
                                      DType weight_dtype_max, const Device& device,
                                      std::uint64_t offset, std::uint64_t& end) {
  std::vector<WeightSlot> slots;
  for (const WeightRole role : weight_roles(layer)) {
    const std::vector<std::uint64_t> shape = weight_shape(model, layer, role);
    const bool is_matrix = shape.size() == 2;
    slots.push_back({role, offset, shape[0], is_matrix ? shape[1] : 0});
    offset += aligned(is_matrix ? device.packed_bytes(shape[0], shape[1], weight_dtype_max)
                                : shape[0] * sizeof(float));
  }
  end = offset;
  return slots;
}

MemoryPlan make_memory_plan(const ModelSpec& model, const ExecutorOptions& options,
                            const Device& device) {
  MemoryPlan plan;
  plan.layer_weights = aligned(model.hidden_size * sizeof(float));
  plan.weight_bytes = plan.layer_weights;
  std::uint64_t wide = 0;
  std::uint64_t kv_width = 0;
  std::uint32_t rotary_dim = 0;
  ScratchNeeds needs;
  for (const LayerSpec& layer : model.layers) {
    std::uint64_t end = 0;
    place_weights(model, layer, options.weight_dtype_max, device, plan.layer_weights, end);
    plan.weight_bytes = std::max(plan.weight_bytes, end);
    const AttentionSpec& attention = layer.attention;
    const std::uint64_t head_dim = attention.head_dim;
    wide = std::max({wide, attention.heads * head_dim, std::uint64_t{layer.mlp.width}});
    kv_width = std::max(kv_width, attention.kv_heads * head_dim);
    rotary_dim = std::max(rotary_dim, attention.rope.rotary_dim);
    needs.head_dim_max = std::max(needs.head_dim_max, attention.head_dim);
    needs.group_max = std::max(needs.group_max, attention.heads / std::max(1U, attention.kv_heads));
  }
  plan.kv_rows = std::max(options.block_rows_max, options.sample_rows_max);
  const std::uint64_t element_bytes = dtype_bytes(options.dtype);
  std::uint64_t at = plan.weight_bytes;
  const auto place = [&at](std::uint64_t bytes) {
    const std::uint64_t offset = at;
    at += aligned(bytes);
    return offset;
  };
  plan.hidden = place(options.block_rows_max * model.hidden_size * element_bytes);
  plan.wide = place(options.block_rows_max * wide * element_bytes);
  plan.keys = place(plan.kv_rows * kv_width * element_bytes);
  plan.values = place(plan.kv_rows * kv_width * element_bytes);
  plan.rope_table = place(rope_table_floats(options.block_rows_max, rotary_dim) * sizeof(float));
  plan.scratch = place(device.scratch_bytes(needs));
  plan.workspace_bytes = at - plan.weight_bytes;
  return plan;
}

Result<void> check_spec(const ModelSpec& model, const ExecutorOptions& options) {
  if (options.block_rows_max == 0 || model.hidden_size == 0) {
    return Error(ErrorCode::invalid_argument, "block_rows_max and hidden_size must be above 0");
  }
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    const AttentionSpec& attention = model.layers[i].attention;
    const RopeSpec& rope = attention.rope;
    if (attention.heads == 0 || attention.kv_heads == 0 ||
        attention.heads % attention.kv_heads != 0) {
      return bad_layer(i, "kv_heads=" + std::to_string(attention.kv_heads) +
                              " does not divide heads=" + std::to_string(attention.heads));
    }
    if (attention.head_dim == 0 || attention.head_dim > kHeadDimMax) {
      return bad_layer(i, "head_dim=" + std::to_string(attention.head_dim) + " is not in 1.." +
                              std::to_string(kHeadDimMax));
    }
    if (rope.rotary_dim > attention.head_dim || rope.rotary_dim % 2 != 0 ||
        rope.inverse_frequency.size() != rope.rotary_dim / 2) {
      return bad_layer(
          i, "rotary_dim=" + std::to_string(rope.rotary_dim) + " with " +
                 std::to_string(rope.inverse_frequency.size()) +
                 " frequencies does not fit head_dim=" + std::to_string(attention.head_dim));
    }
    if (model.layers[i].mlp.width == 0) {
      return bad_layer(i, "the MLP has no width");
    }
  }
  return {};
}

}  // namespace librarian::gpu_exec
