#pragma once
/// What the tests of gpu_exec share: random data, layers with weights, and short ways to run them.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
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
  std::map<WeightKey, std::vector<float>> weights;
  /// The weights as load_weights() gave them to an executor, which may read them again.
  mutable std::map<WeightKey, std::shared_ptr<const Bytes>> loaded;
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

/// The job's side of a run over rows in memory; keeps the captures.
class RecordingSink : public LayerIo {
 public:
  /// The rows of the blocks, one after the other; what store() gets goes to the same place.
  void begin(std::span<const Block> blocks, std::span<std::byte> state);

  bool wants(CapturePoint point) const override { return refused.count(point) == 0; }
  Result<std::span<std::byte>> load(std::size_t block) override { return parts_.at(block); }
  Result<void> capture(CapturePoint point, std::size_t block,
                       std::span<const std::byte> rows) override;
  Result<void> store(std::size_t block, std::span<std::byte> rows) override;

  std::map<CapturePoint, Bytes> rows;  ///< In the order of the calls.
  std::map<CapturePoint, bool> refused;
  std::optional<Error> failure;  ///< What capture() returns, if set.

 private:
  std::vector<std::span<std::byte>> parts_;
};

/// Loads every weight of the layer that the executor is at.
void load_weights(LayerExecutor& executor, const TestLayer& layer);

/// Options for a TestLayer; the rest as usual.
ExecutorOptions executor_options(const TestLayer& layer, DType dtype, std::uint64_t block_rows_max,
                                 std::uint64_t sample_rows_max);
/// An executor of a TestLayer with its weights loaded.
std::unique_ptr<LayerExecutor> loaded_executor(const TestLayer& layer, Device& device,
                                               const ExecutorOptions& options);
std::unique_ptr<LayerExecutor> loaded_executor(const TestLayer& layer, Device& device, DType dtype,
                                               std::uint64_t block_rows_max,
                                               std::uint64_t sample_rows_max);

/// Samples of these lengths as segments of one block.
std::vector<Segment> segments_of(const std::vector<std::uint64_t>& lengths);

/// Runs blocks of consecutive rows, in one run(), and returns the new state.
Bytes run_blocks(LayerExecutor& executor, std::span<const Block> blocks, Bytes state,
                 RecordingSink& sink);
Bytes run_block(LayerExecutor& executor, std::span<const Segment> segments, Bytes state,
                RecordingSink& sink);

}  // namespace librarian::gpu_exec
