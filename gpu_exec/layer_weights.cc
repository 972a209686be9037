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
    case WeightRole::final_norm:
      return true;
    default:
      return false;
  }
}

bool contains(const std::vector<WeightRole>& roles, WeightRole role) {
  return std::find(roles.begin(), roles.end(), role) != roles.end();
}

}  // namespace

LayerWeights::LayerWeights(const ModelSpec& model, DType weight_dtype_max, Device& device,
                           const MemoryPlan& plan, std::byte* arena)
    : model_(model),
      weight_dtype_max_(weight_dtype_max),
      device_(device),
      plan_(plan),
      arena_(arena) {}

void LayerWeights::begin_layer(const LayerSpec& layer) {
  layer_ = &layer;
  std::uint64_t end = 0;
  slots_ = place_weights(model_, layer, weight_dtype_max_, device_, plan_.layer_weights, end);
  LIB_CHECK(end <= plan_.weight_bytes);
  std::fill(weights_.begin(), weights_.begin() + index(WeightRole::final_norm), PackedMatrix{});
  if (layer.attention.alibi) {
    const std::vector<float> slopes = gpu_exec::alibi_slopes(layer.attention.heads);
    device_.load_vector({reinterpret_cast<const std::byte*>(slopes.data()), DType::f32, {}, 0},
                        slopes.size(), slopes_memory());
  }
}

Result<void> LayerWeights::load(WeightRole role, DType type, std::span<const std::byte> bytes) {
  static const LayerSpec kNoLayer;
  const bool final_role = contains(final_roles(model_), role);
  if (!final_role && (layer_ == nullptr || !contains(weight_roles(model_, *layer_), role))) {
    return invalid(std::string("the layer has no ") + weight_role_name(role));
  }
  if (dtype_bytes(type) > dtype_bytes(weight_dtype_max_)) {
    return invalid(std::string(weight_role_name(role)) + ": " + dtype_name(type) +
                   " is wider than planned for");
  }
  const LayerSpec& layer = final_role ? kNoLayer : *layer_;
  const std::vector<WeightPart> parts = weight_parts(model_, layer, role);
  std::uint64_t count = 0;
  std::uint64_t rows = 0;
  for (const WeightPart& part : parts) {
    rows += part.outputs;
    count += part.outputs * std::max<std::uint64_t>(part.inputs, 1);
  }
  if (bytes.size() != count * dtype_bytes(type)) {
    return invalid(std::string(weight_role_name(role)) + ": " + std::to_string(bytes.size()) +
                   " bytes for " + std::to_string(count) + " elements of " + dtype_name(type));
  }
  for (const WeightPart& part : parts) {
    std::byte* to = arena_ + slot_of(part.role).offset;
    if (part.inputs == 0) {
      const bool plus_one = model_.norm.one_plus && is_norm_weight(part.role);
      device_.load_vector({bytes.data(), type, part.rows, plus_one ? 1.0F : 0.0F}, part.outputs,
                          reinterpret_cast<float*>(to));
    } else {
      device_.pack_matrix({bytes.data(), type, part.rows, layer.transposed, rows}, part.outputs,
                          part.inputs, to);
    }
    weights_[index(part.role)] = {to, type, nullptr};
  }
  return {};
}

Result<void> LayerWeights::check_layer_loaded() const {
  if (layer_ == nullptr) {
    return invalid("run() before begin_layer()");
  }
  for (const WeightSlot& slot : slots_) {
    LIB_TRY_VOID(check_loaded(slot.role));
  }
  return {};
}

Result<void> LayerWeights::check_final_loaded() const {
  if (!model_.final_norm) {
    return invalid("the model has no final norm");
  }
  for (const WeightRole role : final_roles(model_)) {
    LIB_TRY_VOID(check_loaded(role));
  }
  return {};
}

const float* LayerWeights::vector(WeightRole role) const {
  return reinterpret_cast<const float*>(weights_[index(role)].packed);
}

PackedMatrix LayerWeights::matrix(WeightRole role, WeightRole bias) const {
  PackedMatrix result = weights_[index(role)];
  result.bias = vector(bias);
  return result;
}

const float* LayerWeights::alibi_slopes() const {
  return layer_ != nullptr && layer_->attention.alibi ? slopes_memory() : nullptr;
}

float* LayerWeights::slopes_memory() const {
  return reinterpret_cast<float*>(arena_ + plan_.slopes);
}

WeightSlot LayerWeights::slot_of(WeightRole role) const {
  if (role == WeightRole::final_norm) {
    return {role, plan_.final_norm, model_.hidden_size, 0};
  }
  if (role == WeightRole::final_norm_bias) {
    return {role, plan_.final_norm_bias, model_.hidden_size, 0};
  }
  const auto found = std::find_if(slots_.begin(), slots_.end(),
                                  [role](const WeightSlot& slot) { return slot.role == role; });
  LIB_CHECK(found != slots_.end());
  return *found;
}

Result<void> LayerWeights::check_loaded(WeightRole role) const {
  if (weights_[index(role)].packed == nullptr) {
    return invalid(std::string(weight_role_name(role)) + " is not loaded");
  }
  return {};
}

}  // namespace librarian::gpu_exec
