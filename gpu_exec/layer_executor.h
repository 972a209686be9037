#pragma once
/// Runs one layer at a time over blocks of rows: weights in, residual rows through, captures out.

#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>
#include <string>

#include "base/error.h"
#include "gpu_exec/device.h"
#include "gpu_exec/model_spec.h"

namespace librarian::gpu_exec {

/// Tensors inside a layer that a caller may keep.
enum class CapturePoint : std::uint8_t { attn_out, resid_mid, mlp_out, resid_post };

/// What one run() works on.
struct Block {
  std::span<const Segment> segments;  ///< Cover the rows in order, without gaps.
  std::uint64_t rows = 0;
};

/// Receives captured rows. Called on the thread that calls run().
class CaptureSink {
 public:
  virtual ~CaptureSink() = default;
  virtual bool wants(CapturePoint point) const = 0;
  /// @param rows  [block rows, hidden] in the executor's dtype; valid during the call only.
  virtual Result<void> capture(CapturePoint point, std::span<const std::byte> rows) = 0;
};

struct ExecutorOptions {
  DType dtype = DType::bf16;             ///< Arithmetic is rounded to it between operations.
  DType weight_dtype_max = DType::bf16;  ///< Widest checkpoint type that load() will see.
  std::uint64_t block_rows_max = 0;
  std::uint64_t sample_rows_max = 0;  ///< Longest sample: rows of keys and values to keep.
};

/// Bytes an executor takes from its device, known before any is allocated.
struct ExecutorMemory {
  std::uint64_t weight_bytes = 0;     ///< Packed weights of the largest layer.
  std::uint64_t workspace_bytes = 0;  ///< Everything else: block buffers, keys, values, tables.
};

/// Owns one arena of exactly weight_bytes + workspace_bytes. Not thread-safe; uses the device's
/// threads inside. Per layer: begin_layer(), load() each tensor once in any order, run() blocks.
class LayerExecutor {
 public:
  /// Pure arithmetic over the sizes; the device is only asked how large its packed forms are.
  static ExecutorMemory memory(const ModelSpec& model, const ExecutorOptions& options,
                               const Device& device);
  /// @param model, device  Must outlive the executor.
  /// @error invalid_argument  the spec contradicts itself or is beyond what kernels take
  ///                          (kHeadDimMax), or block_rows_max is 0.
  /// @error does_not_fit      the device has no memory for the arena.
  static Result<std::unique_ptr<LayerExecutor>> create(const ModelSpec& model,
                                                       const ExecutorOptions& options,
                                                       Device& device);
  ~LayerExecutor();
  LayerExecutor(const LayerExecutor&) = delete;
  LayerExecutor& operator=(const LayerExecutor&) = delete;

  /// Forgets the weights of the layer before (but not final_norm, which no layer owns).
  void begin_layer(std::uint32_t layer_index);
  /// Packs one tensor straight from the checkpoint's bytes; they may go away afterwards.
  /// @param bytes  Row-major, weight_shape(role), little-endian `type`, any alignment.
  /// @error invalid_argument  the size does not fit the shape, the layer has no such role, or
  ///                          `type` is wider than weight_dtype_max.
  Result<void> load(WeightRole role, DType type, std::span<const std::byte> bytes);

  /// Runs the layer in place over `state`, [block.rows, hidden] in the options' dtype.
  /// A row's result depends on its sample's rows up to it and on nothing else: not on the block,
  /// its neighbours or the number of threads.
  /// @error cancelled         `stop` was requested; `state` is then undefined.
  /// @error invalid_argument  a weight is missing, or the block is not as Block and Segment say.
  /// Errors of `sink` are passed on.
  Result<void> run(const Block& block, std::span<std::byte> state, CaptureSink& sink,
                   const std::stop_token& stop);

  /// normed = final norm of rows, [rows, hidden] both; needs load(final_norm).
  Result<void> run_final_norm(std::span<const std::byte> rows, std::span<std::byte> normed);

 private:
  class Impl;
  explicit LayerExecutor(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Converts `count` elements between types, rounding to nearest even; NaN stays NaN.
void convert_elements(DType from, std::span<const std::byte> in, DType to,
                      std::span<std::byte> out);

}  // namespace librarian::gpu_exec
