#pragma once
/// Runs one layer at a time over blocks of rows: weights in, residual rows through, captures out.

#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "base/error.h"
#include "gpu_exec/device.h"
#include "gpu_exec/model_spec.h"

namespace librarian::gpu_exec {

/// Tensors inside a layer that a caller may keep.
enum class CapturePoint : std::uint8_t {
  attn_out,
  resid_mid,
  router_ids,      ///< i32 [rows, top_k], best first: the experts of each row,
  router_weights,  ///< f32 [rows, top_k], and their weights.
  mlp_out,
  resid_post
};

/// Rows that one kernel call sees.
struct Block {
  std::span<const Segment> segments;  ///< Cover the rows in order, without gaps.
  std::uint64_t rows = 0;
};

/// The job's side of a layer that runs. Called on the thread that calls run(), for each function
/// with blocks in order.
class LayerIo {
 public:
  virtual ~LayerIo() = default;
  virtual bool wants(CapturePoint point) const = 0;
  /// Rows of a block, [rows, hidden] in the executor's dtype; valid until its store(), or until the
  /// next load() if the executor copies_rows().
  virtual Result<std::span<std::byte>> load(std::size_t block) = 0;
  /// @param rows  [block rows, hidden] unless the point says otherwise; valid during the call only.
  /// resid_post comes just before
  ///              store().
  virtual Result<void> capture(CapturePoint point, std::size_t block,
                               std::span<const std::byte> rows) = 0;
  /// What the layer made of a block: the span that load() gave, or with copies_rows() another,
  /// which is valid during the call only.
  virtual Result<void> store(std::size_t block, std::span<std::byte> rows) = 0;
  /// Only if the executor streams(): called before a stage is computed, to load() the layer's
  /// tensors whose stage_order() is below `order_end` and that no call before has loaded.
  virtual Result<void> load_stage(std::uint32_t /*order_end*/) { return {}; }
  /// Only if the executor streams(): the experts, by number, that none of the run's rows has
  /// chosen. Whether their tensors are loaded makes no difference.
  virtual void unneeded_experts(const std::vector<bool>& /*unneeded*/) {}
  /// Called now and then while the device works: time to load() weights of the next layer.
  virtual Result<void> idle() { return {}; }
};

struct ExecutorOptions {
  DType dtype = DType::bf16;             ///< Arithmetic is rounded to it between operations.
  DType weight_dtype_max = DType::bf16;  ///< Widest type of matrices but routers.
  std::uint64_t block_rows_max = 0;
  std::uint64_t sample_rows_max = 0;  ///< Longest sample: rows of keys and values to keep.
  std::uint64_t blocks_max = 1;    ///< Of one run(): more need not be held together. If it streams,
                                   ///< more are refused.
  std::uint64_t captures_max = 1;  ///< Points wanted of one layer.
  /// Weights come stage by stage while a layer runs and are not kept: every block of a run() is
  /// worked on together.
  bool streamed = false;
  /// Larger matrices are multiplied in slices of outputs. Part of the numbers on devices whose
  /// products depend on their width, so a constant but for tests.
  std::uint64_t slice_bytes_max = 512U << 20U;
  bool quantised = false;          ///< load() will see quantised matrices.
  std::uint32_t topk = 0;          ///< k of run_topk(); 0: it is not called.
  DType head_dtype = DType::bf16;  ///< Of the head's matrix in the checkpoint.
  /// The whole head is on the device at once; else as many of its tiles as a layer's place holds.
  bool head_resident = true;
};

/// What an executor takes, known before any is allocated.
struct ExecutorMemory {
  std::uint64_t weight_bytes = 0;     ///< On the device: packed weights, all buffers.
  std::uint64_t workspace_bytes = 0;  ///< On the device: block buffers, keys, values, tables.
  std::uint64_t host_bytes = 0;       ///< For rows on their way to and from the device.
  /// The largest layer, with all weight buffers, is too large for the device: its weights come in
  /// stages, again for each group of `rows_together` rows.
  bool staged = false;
  bool streamed = false;  ///< As ExecutorOptions says.
  std::uint64_t weight_buffers = 1;
  std::uint64_t rows_together = 0;
  std::uint64_t head_tiles = 0;  ///< Tiles of the head that are on the device at once.
  std::uint64_t device_bytes() const { return weight_bytes + workspace_bytes; }
};

/// The weights of a layer that go to the device at once.
struct StageSummary {
  std::string text;         ///< "attention", "MLP outputs 0..4095", ...
  std::uint64_t bytes = 0;  ///< Of weights.
  std::uint64_t first_expert = 0;
  std::uint64_t experts = 0;  ///< From `first_expert` on; 0: none.
  bool experts_only = false;
};

/// Owns one arena of exactly ExecutorMemory::device_bytes(). Not thread-safe; uses the device's
/// threads and queues inside. Per layer: begin_layer(), load() each tensor once in any order, run()
/// its blocks. Several run() one after the other are as one with all their blocks.
class LayerExecutor {
 public:
  /// Pure arithmetic over the sizes; the device is only asked how large its packed forms are.
  /// @error does_not_fit  the device's memory_limit() is too small even for stages.
  static Result<ExecutorMemory> memory(const ModelSpec& model, const ExecutorOptions& options,
                                       const Device& device);
  /// The stages of a layer, in order; one if layers are resident.
  static Result<std::vector<StageSummary>> stages(const ModelSpec& model, std::uint32_t layer_index,
                                                  const ExecutorOptions& options,
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

  /// Whether begin_layer() and load() of the next layer may be called while run() is under way
  /// (from LayerIo::idle()).
  bool loads_ahead() const;
  /// Whether the bytes given to load() must stay until another layer runs: they are uploaded again
  /// and again. Else until the ticket of load() is reached.
  bool keeps_tensors() const;
  /// Whether load() is for LayerIo::load_stage(), in stage_order() but for vectors, and not before
  /// run(). Each run() then takes at most blocks_together() blocks, and has all of the layer's
  /// weights brought anew.
  bool streams() const;
  std::uint64_t blocks_together() const;
  /// See LayerIo.
  bool copies_rows() const;

  /// See Device::plan_products(): of all of the model's layers.
  const std::vector<std::string>& products() const;

  /// Begins to load a layer, forgetting a layer that was begun and did not run (but not
  /// final_norm, which no layer owns).
  void begin_layer(std::uint32_t layer_index);
  /// Takes one tensor of the layer begun last, or final_norm, as it lies in the checkpoint.
  /// @param bytes  Row-major, weight_shape(key.role), little-endian `type`, any alignment.
  /// @return  When the device is done with `bytes`, unless keeps_tensors().
  /// @error invalid_argument  the size does not fit the shape, the layer has no such tensor, or
  ///                          `type` is wider than weight_dtype_max.
  Result<Ticket> load(WeightKey key, DType type, std::span<const std::byte> bytes);
  /// The same for a matrix in a quantised layout, which is decoded to ExecutorOptions::dtype.
  /// @param matrix  What it points to must stay as long as `bytes` above.
  /// @error invalid_argument  the sizes do not fit, or ExecutorOptions said that there are none.
  Result<Ticket> load(WeightKey key, const QuantisedMatrix& matrix);

  /// As Device::reached().
  Result<bool> reached(Ticket ticket);
  /// Waits until it is.   @error internal  the device failed.
  Result<void> wait_for(Ticket ticket);

  /// Runs the layer begun last over blocks. A row's result depends on its sample's rows up to it
  /// and on nothing else: not on blocks, neighbours, stages or threads.
  /// @error cancelled         `stop` was requested; what was not stored is lost.
  /// @error invalid_argument  a weight is missing, or a block is not as Block and Segment say.
  /// @error internal          the device failed.
  /// Errors of `io` are passed on.
  Result<void> run(std::span<const Block> blocks, LayerIo& io, const std::stop_token& stop);

  /// normed = final norm of rows, [rows, hidden] both, rows <= block_rows_max; needs
  /// load(final_norm).
  Result<void> run_final_norm(std::span<const std::byte> rows, std::span<std::byte> normed);

  /// Tiles of the head that there is room for at once.
  std::uint64_t head_tiles() const;
  /// Forgets the head's tiles, and the layers: the next one begins anew. What comes from here on
  /// are tiles from `first_tile` on, in order.
  void begin_head(std::uint64_t first_tile);
  /// Takes a tile of the head, or all of its bias, as they lie in the checkpoint.
  /// @param bytes  head: all of the tile's rows. head_bias: [vocab].
  /// @return  When the device is done with `bytes`.
  /// @error invalid_argument  No room for another tile, or the size is not the tile's.
  Result<Ticket> load_head(WeightRole role, DType type, std::span<const std::byte> bytes);
  /// Shows rows the tiles that are loaded; every row must have met all tiles before them.
  /// @param normed    [rows, hidden], rows <= block_rows_max: what run_final_norm() gave.
  /// @param gold_ids  [rows]; see TopkOp.
  /// @param memory    [rows] of topk_row_bytes(topk), aligned to 4.
  /// @error cancelled | invalid_argument (the bias is missing, sizes disagree) | internal
  Result<void> run_topk(std::span<const std::byte> normed, std::span<const std::int32_t> gold_ids,
                        std::span<std::byte> memory, const std::stop_token& stop);

 private:
  class Impl;
  explicit LayerExecutor(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Converts `count` elements between types, rounding to nearest even; NaN stays NaN.
void convert_elements(DType from, std::span<const std::byte> in, DType to,
                      std::span<std::byte> out);

}  // namespace librarian::gpu_exec
