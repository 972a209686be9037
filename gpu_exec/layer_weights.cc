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
  const std::string name = weight_role_name(tensor.role);
  const std::vector<WeightRole> roles = weight_roles(model, layer);
  if (std::find(roles.begin(), roles.end(), tensor.role) == roles.end()) {
    return invalid("the layer has no " + name);
  }
  if (dtype_bytes(tensor.type) > dtype_bytes(weight_dtype_max)) {
    return invalid(name + ": " + dtype_name(tensor.type) + " is wider than planned for");
  }
  std::uint64_t count = 0;
  std::uint64_t outputs = 0;
  std::uint64_t inputs = 0;
  for (const WeightPart& part : weight_parts(model, layer, tensor.role)) {
    count += part.outputs * std::max<std::uint64_t>(part.inputs, 1);
    outputs += part.outputs;
    inputs = part.inputs;
  }
  if (tensor.quantised) {
    if (layer.transposed || tensor.quantised->outputs != outputs ||
        tensor.quantised->inputs != inputs) {
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
  if (layer.attention.alibi && stage.steps.front().kind == StepKind::attention) {
    slopes_ = gpu_exec::alibi_slopes(layer.attention.heads);
    device_->load_vector({reinterpret_cast<const std::byte*>(slopes_.data()), DType::f32, {}, 0},
                         slopes_.size(), reinterpret_cast<float*>(buffer + stage.slopes));
  }
}

void StageWeights::load(const LayerTensor& tensor) {
  const std::vector<WeightPart> parts = weight_parts(*model_, *layer_, tensor.role);
  std::uint64_t tensor_rows = 0;
  for (const WeightPart& part : parts) {
    tensor_rows += part.outputs;
  }
  for (std::size_t i = 0; i < loaded_.size(); ++i) {
    const StepWeight& weight = stage_->slots[i].weight;
    const auto part = std::find_if(parts.begin(), parts.end(), [&](const WeightPart& candidate) {
      return candidate.role == weight.role;
    });
    if (part == parts.end()) {
      continue;
    }
    std::byte* to = buffer_ + stage_->slots[i].offset;
    if (part->inputs == 0) {
      const bool plus_one = model_->norm.one_plus && is_norm_weight(part->role);
      device_->load_vector({tensor.bytes.data(), tensor.type, part->rows, plus_one ? 1.0F : 0.0F},
                           part->outputs, reinterpret_cast<float*>(to));
    } else {
      device_->pack_matrix(
          {tensor.bytes.data(), tensor.type, slice_of(part->rows, weight.begin, weight.end),
           layer_->transposed, tensor_rows, tensor.quantised ? &*tensor.quantised : nullptr},
          weight.end - weight.begin, part->inputs, to);
    }
    loaded_[i] = {to, tensor.type, nullptr, layer_->transposed};
  }
}

Result<void> StageWeights::check_complete() const {
  for (std::size_t i = 0; i < loaded_.size(); ++i) {
    if (loaded_[i].packed == nullptr) {
      return invalid(std::string(weight_role_name(stage_->slots[i].weight.role)) +
                     " is not loaded");
    }
  }
  return {};
}

const float* StageWeights::vector(WeightRole role) const {
  for (std::size_t i = 0; i < loaded_.size(); ++i) {
    if (stage_->slots[i].weight.role == role) {
      return reinterpret_cast<const float*>(loaded_[i].packed);
    }
  }
  return nullptr;
}

PackedMatrix StageWeights::matrix(WeightRole role, WeightRole bias, std::uint64_t begin) const {
  for (std::size_t i = 0; i < loaded_.size(); ++i) {
    const StepWeight& weight = stage_->slots[i].weight;
    if (weight.role == role && weight.begin == begin) {
      PackedMatrix result = loaded_[i];
      const float* all = vector(bias);
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
