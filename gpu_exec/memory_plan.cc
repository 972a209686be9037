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
  for (const WeightRole role : weight_roles(model, layer)) {
    for (const WeightPart& part : weight_parts(model, layer, role)) {
      slots.push_back({part.role, offset, part.outputs, part.inputs});
      offset += aligned(part.inputs == 0
                            ? part.outputs * sizeof(float)
                            : device.packed_bytes(part.outputs, part.inputs, weight_dtype_max));
    }
  }
  end = offset;
  return slots;
}

MemoryPlan make_memory_plan(const ModelSpec& model, const ExecutorOptions& options,
                            const Device& device) {
  MemoryPlan plan;
  const std::uint64_t norm_bytes = aligned(model.hidden_size * sizeof(float));
  plan.final_norm_bias = norm_bytes;
  plan.layer_weights = model.norm.bias ? 2 * norm_bytes : norm_bytes;
  plan.weight_bytes = plan.layer_weights;
  std::uint64_t wide = 0;
  std::uint64_t kv_width = 0;
  std::uint64_t slopes = 0;
  std::uint32_t rotary_dim = 0;
  bool parallel = false;
  ScratchNeeds needs;
  for (const LayerSpec& layer : model.layers) {
    std::uint64_t end = 0;
    place_weights(model, layer, options.weight_dtype_max, device, plan.layer_weights, end);
    plan.weight_bytes = std::max(plan.weight_bytes, end);
    const AttentionSpec& attention = layer.attention;
    const std::uint64_t head_dim = attention.head_dim;
    wide = std::max({wide, attention.heads * head_dim, std::uint64_t{layer.mlp.width}});
    kv_width = std::max(kv_width, attention.kv_heads * head_dim);
    slopes = std::max<std::uint64_t>(slopes, attention.alibi ? attention.heads : 0);
    rotary_dim = std::max(rotary_dim, attention.rope.rotary_dim);
    parallel = parallel || layer.residual == Residual::parallel;
    needs.head_dim_max = std::max(needs.head_dim_max, attention.head_dim);
    needs.group_max = std::max(needs.group_max, attention.heads / std::max(1U, attention.kv_heads));
  }
  plan.kv_rows = std::max(options.block_rows_max, options.sample_rows_max);
  const std::uint64_t element_bytes = dtype_bytes(options.dtype);
  const std::uint64_t hidden_bytes = options.block_rows_max * model.hidden_size * element_bytes;
  std::uint64_t at = plan.weight_bytes;
  const auto place = [&at](std::uint64_t bytes) {
    const std::uint64_t offset = at;
    at += aligned(bytes);
    return offset;
  };
  plan.slopes = place(slopes * sizeof(float));
  plan.hidden = place(hidden_bytes);
  plan.attention_out = parallel ? place(hidden_bytes) : plan.hidden;
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
        rope.inverse_frequency.size() != rope.rotary_dim / 2 ||
        (!rope.long_inverse_frequency.empty() &&
         rope.long_inverse_frequency.size() != rope.rotary_dim / 2)) {
      return bad_layer(
          i, "rotary_dim=" + std::to_string(rope.rotary_dim) + " with " +
                 std::to_string(rope.inverse_frequency.size()) +
                 " frequencies does not fit head_dim=" + std::to_string(attention.head_dim));
    }
    if (attention.storage == QkvStorage::per_head && attention.heads != attention.kv_heads) {
      return bad_layer(i, "q, k and v stored by head need as many kv_heads as heads");
    }
    if (model.layers[i].residual == Residual::norm_after &&
        (!model.layers[i].attention_out_norm || !model.layers[i].mlp_out_norm)) {
      return bad_layer(i, "norm_after needs both out norms");
    }
    if (model.layers[i].mlp.activation == Activation::identity) {
      return bad_layer(i, "the MLP has no activation");
    }
    if (model.layers[i].mlp.width == 0) {
      return bad_layer(i, "the MLP has no width");
    }
  }
  return {};
}

}  // namespace librarian::gpu_exec
