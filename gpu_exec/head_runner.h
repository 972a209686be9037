#pragma once
/// Rows against tiles of the head, in an executor's arena. Private to gpu_exec.

#include <cstddef>
#include <cstdint>
#include <span>
#include <stop_token>

#include "base/error.h"
#include "gpu_exec/device.h"
#include "gpu_exec/execution_plan.h"
#include "gpu_exec/layer_executor.h"

namespace librarian::gpu_exec {

/// Not thread-safe.
class HeadRunner {
 public:
  /// @param arena, host  Where `plan` holds; they, model, options, device and plan must outlive
  ///                     this. `host` is null unless rows are copied.
  HeadRunner(const ModelSpec& model, const ExecutorOptions& options, Device& device,
             const ExecutionPlan& plan, std::byte* arena, std::byte* host);

  /// As LayerExecutor::begin_head() and load_head().
  void begin(std::uint64_t first_tile);
  Result<Ticket> load(WeightRole role, DType type, std::span<const std::byte> bytes);
  /// As LayerExecutor::run_topk().
  /// @return  When the rows' memory can be taken.
  Result<Ticket> run(std::span<const std::byte> normed, std::span<const std::int32_t> gold_ids,
                     std::span<const std::byte> memory, const std::stop_token& stop);
  /// Brings home what run() made, once its ticket is reached.
  Result<void> take(std::span<std::byte> memory);

 private:
  std::uint64_t tile_count() const;
  std::uint64_t tile_rows(std::uint64_t tile) const;
  const float* bias_of(std::uint64_t tile) const;
  Result<void> load_bias(DType type, std::span<const std::byte> bytes);
  Result<void> check(std::span<const std::byte> normed, std::span<const std::int32_t> gold_ids,
                     std::span<const std::byte> memory) const;

  const ModelSpec& model_;
  const ExecutorOptions& options_;
  Device& device_;
  const ExecutionPlan& plan_;
  std::byte* const arena_;
  std::byte* const host_;
  std::uint64_t first_tile_ = 0;
  std::uint64_t loaded_tiles_ = 0;
  bool bias_there_ = false;
  DType type_{};
  Ticket loaded_;
};

}  // namespace librarian::gpu_exec
