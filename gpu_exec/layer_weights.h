#pragma once
/// Weights of a stage, packed in their buffer of the executor's arena. Private to gpu_exec.

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "gpu_exec/device.h"
#include "gpu_exec/layer_steps.h"
#include "gpu_exec/model_spec.h"

namespace librarian::gpu_exec {

/// A tensor of a layer as it lies in the checkpoint.
struct LayerTensor {
  WeightKey key;
  DType type{};
  std::span<const std::byte> bytes;
  /// In place of `bytes`, which is empty; `type` is what it is decoded to.
  std::optional<QuantisedMatrix> quantised{};
};

/// @error invalid_argument  the layer has no such tensor, the size does not fit its shape, or it is
///                          wider than `weight_dtype_max`.
Result<void> check_tensor(const ModelSpec& model, const LayerSpec& layer, DType weight_dtype_max,
                          const LayerTensor& tensor);

/// Not thread-safe.
class StageWeights {
 public:
  /// @param staging  Device::staging_bytes(), if quantised matrices will come.
  StageWeights(const ModelSpec& model, Device& device, std::byte* staging)
      : model_(&model), device_(&device), staging_(staging) {}

  /// From here on `buffer` holds `stage`, which must stay; nothing of it is loaded.
  void begin(const LayerSpec& layer, const Stage& stage, std::byte* buffer);
  /// Whether the stage needs anything of a tensor.
  bool has(const WeightKey& tensor) const;
  /// Loads what the stage has of a checked tensor.
  void load(const LayerTensor& tensor);
  /// @error invalid_argument  names what is missing.
  Result<void> check_complete() const;

  /// Null: the layer has none.
  const float* vector(WeightKey key) const;
  /// The slice that begins at output `begin`, with its part of the bias.
  PackedMatrix matrix(WeightKey key, std::optional<WeightKey> bias, std::uint64_t begin = 0) const;
  /// Null unless the layer uses them.
  const float* alibi_slopes() const;

 private:
  const ModelSpec* model_;
  Device* device_;
  std::byte* staging_;
  const LayerSpec* layer_ = nullptr;
  const Stage* stage_ = nullptr;
  std::byte* buffer_ = nullptr;
  std::vector<float> slopes_;                    ///< Host memory that the upload reads.
  std::vector<PackedMatrix> loaded_;             ///< By slot; `packed` null: not yet.
  std::multimap<WeightKey, std::size_t> slots_;  ///< Of each tensor's matrices and vectors.
};

}  // namespace librarian::gpu_exec
