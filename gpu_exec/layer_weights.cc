#include "gpu_exec/layer_weights.h"

#include <algorithm>
#include <string>
#include <utility>

namespace librarian::gpu_exec {
namespace {

Error invalid(std::string message) { return {ErrorCode::invalid_argument, std::move(message)}; }

bool is_norm_weight(WeightRole role) {
  switch (role) {
    case WeightRole::attention_norm:
    case WeightRole::q_norm:
    case WeightRole::k_norm:
    case WeightRole::attention_out_norm:
    case WeightRole::mlp_norm:
    case WeightRole::mlp_out_norm:
      return true;
    default:
      return false;
  }
}

/// Rows [begin, end) of `rows`, which lie in one run of it unless they are all.
RowRuns slice_of(const RowRuns& rows, std::uint64_t begin, std::uint64_t end) {
  if (begin == 0) {
    return rows;
  }
  LIB_CHECK(begin / rows.run == (end - 1) / rows.run);
  return {rows.at(begin), ~std::uint64_t{0}, 0};
}

}  // namespace

Result<void> check_tensor(const ModelSpec& model, const LayerSpec& layer, DType weight_dtype_max,
                          const LayerTensor& tensor) {
  const std::string name = weight_key_name(tensor.key);
  const std::vector<WeightRole> roles = weight_roles(model, layer);
  if (std::find(roles.begin(), roles.end(), tensor.key.role) == roles.end() ||
      tensor.key.expert >= (is_expert_role(tensor.key.role) ? layer.moe.experts : 1)) {
    return invalid("the layer has no " + name);
  }
  std::uint64_t count = 0;
  std::uint64_t outputs = 0;
  std::uint64_t inputs = 0;
  for (const WeightPart& part : weight_parts(model, layer, tensor.key.role)) {
    count += part.outputs * std::max<std::uint64_t>(part.inputs, 1);
    outputs += part.outputs;
    inputs = part.inputs;
  }
  if (inputs != 0 && !is_router_role(tensor.key.role) &&
      dtype_bytes(tensor.type) > dtype_bytes(weight_dtype_max)) {
    return invalid(name + ": " + dtype_name(tensor.type) + " is wider than planned for");
  }
  if (tensor.quantised) {
    if (tensor.quantised->outputs != outputs || tensor.quantised->inputs != inputs) {
      return invalid(name + ": a quantised [" + std::to_string(tensor.quantised->outputs) + ", " +
                     std::to_string(tensor.quantised->inputs) + "] is not this layer's");
    }
    return {};
  }
  if (tensor.bytes.size() != count * dtype_bytes(tensor.type)) {
    return invalid(name + ": " + std::to_string(tensor.bytes.size()) + " bytes for " +
                   std::to_string(count) + " elements of " + dtype_name(tensor.type));
  }
  return {};
}

void StageWeights::begin(const LayerSpec& layer, const Stage& stage, std::byte* buffer) {
  layer_ = &layer;
  stage_ = &stage;
  buffer_ = buffer;
  loaded_.assign(stage.slots.size(), {});
  slots_.clear();
  for (std::size_t i = 0; i < stage.slots.size(); ++i) {
    slots_.emplace(stage.slots[i].weight.key, i);
  }
  if (layer.attention.alibi && stage.steps.front().kind == StepKind::attention) {
    slopes_ = gpu_exec::alibi_slopes(layer.attention.heads);
    device_->load_vector({reinterpret_cast<const std::byte*>(slopes_.data()), DType::f32, {}, 0},
                         slopes_.size(), reinterpret_cast<float*>(buffer + stage.slopes));
  }
}

bool StageWeights::has(const WeightKey& tensor) const {
  const std::vector<WeightPart> parts = weight_parts(*model_, *layer_, tensor.role);
  return std::any_of(parts.begin(), parts.end(), [&](const WeightPart& part) {
    return slots_.contains({part.role, tensor.expert});
  });
}

void StageWeights::load(const LayerTensor& tensor) {
  const std::vector<WeightPart> parts = weight_parts(*model_, *layer_, tensor.key.role);
  std::uint64_t tensor_rows = 0;
  for (const WeightPart& part : parts) {
    tensor_rows += part.outputs;
  }
  const bool transposed = !tensor.quantised && weight_transposed(*layer_, tensor.key.role);
  for (const WeightPart& part : parts) {
    const auto [begin, end] = slots_.equal_range({part.role, tensor.key.expert});
    for (auto slot = begin; slot != end; ++slot) {
      const StepWeight& weight = stage_->slots[slot->second].weight;
      std::byte* to = buffer_ + stage_->slots[slot->second].offset;
      if (part.inputs == 0) {
        const bool plus_one = model_->norm.one_plus && is_norm_weight(part.role);
        device_->load_vector({tensor.bytes.data(), tensor.type, part.rows, plus_one ? 1.0F : 0.0F},
                             part.outputs, reinterpret_cast<float*>(to));
      } else {
        device_->pack_matrix(
            {tensor.bytes.data(), tensor.type, slice_of(part.rows, weight.begin, weight.end),
             transposed, tensor_rows, tensor.quantised ? &*tensor.quantised : nullptr, staging_,
             device_->staging_bytes()},
            weight.end - weight.begin, part.inputs, to);
      }
      loaded_[slot->second] = {to, tensor.type, nullptr, transposed};
    }
  }
}

Result<void> StageWeights::check_complete() const {
  for (std::size_t i = 0; i < loaded_.size(); ++i) {
    if (loaded_[i].packed == nullptr) {
      return invalid(weight_key_name(stage_->slots[i].weight.key) + " is not loaded");
    }
  }
  return {};
}

const float* StageWeights::vector(WeightKey key) const {
  const auto slot = slots_.find(key);
  return slot == slots_.end() ? nullptr
                              : reinterpret_cast<const float*>(loaded_[slot->second].packed);
}

PackedMatrix StageWeights::matrix(WeightKey key, std::optional<WeightKey> bias,
                                  std::uint64_t begin) const {
  const auto [first, last] = slots_.equal_range(key);
  for (auto slot = first; slot != last; ++slot) {
    if (stage_->slots[slot->second].weight.begin == begin) {
      PackedMatrix result = loaded_[slot->second];
      const float* all = bias ? vector(*bias) : nullptr;
      result.bias = all == nullptr ? nullptr : all + begin;
      return result;
    }
  }
  LIB_CHECK(false);
}

const float* StageWeights::alibi_slopes() const {
  return slopes_.empty() || !layer_->attention.alibi
             ? nullptr
             : reinterpret_cast<const float*>(buffer_ + stage_->slopes);
}

}  // namespace librarian::gpu_exec
