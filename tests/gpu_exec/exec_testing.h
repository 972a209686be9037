#pragma once
/// What the tests of gpu_exec share: random data, layers with weights, and short ways to run them.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "gpu_exec/layer_executor.h"

namespace librarian::gpu_exec {

/// Pseudo-random numbers that are the same everywhere.
class TestRandom {
 public:
  explicit TestRandom(std::uint64_t seed) : state_(seed * 2654435769U + 88172645463325252U) {}
  std::uint64_t next();
  /// Uniform in [-1, 1).
  float unit();
  std::vector<float> vector(std::size_t count, float scale, float offset = 0);

 private:
  std::uint64_t state_;
};

using Bytes = std::vector<std::byte>;

/// Values rounded to `type`, and back.
Bytes to_bytes(const std::vector<float>& values, DType type);
std::vector<float> to_floats(std::span<const std::byte> bytes, DType type);
inline std::vector<float> rounded(const std::vector<float>& values, DType type) {
  return to_floats(to_bytes(values, type), type);
}

/// Paths that this machine runs.
std::vector<CpuIsa> machine_isas();
std::unique_ptr<Device> cpu_device(CpuIsa isa, int threads);

/// Memory as ops want it: aligned to 64, of exactly the asked size, so that a sanitizer sees
/// anything beyond.
DeviceMemory aligned_memory(std::uint64_t bytes);

/// A model of one layer with its weights, each exactly representable in `weight_type`.
struct TestLayer {
  ModelSpec model;
  DType weight_type = DType::f32;
  std::map<WeightRole, std::vector<float>> weights;
};
/// Small sizes that are multiples of nothing; every optional tensor is there.
LayerSpec awkward_layer();
/// Random weights for `layer` in a model of width `hidden`.
TestLayer make_layer(std::uint32_t hidden, LayerSpec layer, DType weight_type,
                     std::uint64_t seed = 1, NormSpec norm = {NormKind::rms, false, false, 1e-5F});
/// Layers that together have every flag of LayerSpec outside of attention's masks and scores.
struct Flavour {
  const char* name;
  LayerSpec layer;
  NormSpec norm;
};
std::vector<Flavour> flavours();
RopeSpec default_rope(std::uint32_t rotary_dim);

/// Keeps what it is given.
class RecordingSink final : public CaptureSink {
 public:
  bool wants(CapturePoint point) const override { return refused.count(point) == 0; }
  Result<void> capture(CapturePoint point, std::span<const std::byte> rows) override;

  std::map<CapturePoint, Bytes> rows;  ///< In the order of the calls.
  std::map<CapturePoint, bool> refused;
};

/// Loads every weight of the layer that the executor is at.
void load_weights(LayerExecutor& executor, const TestLayer& layer);

/// An executor of a TestLayer with its weights loaded.
std::unique_ptr<LayerExecutor> loaded_executor(const TestLayer& layer, Device& device, DType dtype,
                                               std::uint64_t block_rows_max,
                                               std::uint64_t sample_rows_max);

/// Samples of these lengths as segments of one block.
std::vector<Segment> segments_of(const std::vector<std::uint64_t>& lengths);

/// Runs one block and returns the new state.
Bytes run_block(LayerExecutor& executor, std::span<const Segment> segments, Bytes state,
                CaptureSink& sink);

}  // namespace librarian::gpu_exec
