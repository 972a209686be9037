#pragma once
/// The weights of the layer that runs, packed in the executor's arena. Private to gpu_exec.

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/error.h"
#include "gpu_exec/device.h"
#include "gpu_exec/memory_plan.h"
#include "gpu_exec/model_spec.h"

namespace librarian::gpu_exec {

/// Not thread-safe.
class LayerWeights {
 public:
  /// @param plan   Of this model and these options.
  /// @param arena  Where `plan` holds; must outlive this, as must model and device.
  LayerWeights(const ModelSpec& model, DType weight_dtype_max, Device& device,
               const MemoryPlan& plan, std::byte* arena);

  /// Forgets the weights of the layer before, but not the final norm's.
  void begin_layer(const LayerSpec& layer);
  /// As LayerExecutor::load().
  Result<void> load(WeightRole role, DType type, std::span<const std::byte> bytes);
  /// @error invalid_argument  one of the layer's weights is missing.
  Result<void> check_layer_loaded() const;
  /// @error invalid_argument  the model has no final norm, or it is missing.
  Result<void> check_final_loaded() const;

  /// Null where it is not loaded: the layer has none.
  const float* vector(WeightRole role) const;
  PackedMatrix matrix(WeightRole role, WeightRole bias) const;
  /// Null unless the layer uses them.
  const float* alibi_slopes() const;

 private:
  static std::size_t index(WeightRole role) { return static_cast<std::size_t>(role); }
  float* slopes_memory() const;
  WeightSlot slot_of(WeightRole role) const;
  Result<void> check_loaded(WeightRole role) const;

  const ModelSpec& model_;
  const DType weight_dtype_max_;
  Device& device_;
  const MemoryPlan& plan_;
  std::byte* const arena_;
  const LayerSpec* layer_ = nullptr;
  std::vector<WeightSlot> slots_;
  std::array<PackedMatrix, kWeightRoles> weights_{};  ///< By role; `packed` null: not loaded.
};

}  // namespace librarian::gpu_exec
