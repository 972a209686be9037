#pragma once
/// The arithmetic of a mixture of experts on one block. Private to gpu_exec.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <stop_token>
#include <vector>

#include "base/error.h"
#include "gpu_exec/device.h"
#include "gpu_exec/execution_plan.h"
#include "gpu_exec/layer_executor.h"
#include "gpu_exec/layer_weights.h"

namespace librarian::gpu_exec {

/// Told when a point's rows are there (in the order of the compute queue).
using CaptureTap = std::function<Result<void>(CapturePoint point, std::byte* rows)>;

/// What a block keeps from its router's step to its last expert's; pointers are to device memory,
/// see ExecutionPlan.
struct BlockExperts {
  BlockExperts(const ExecutionPlan& plan, std::byte* block);

  float* sums;
  std::int32_t* ids;
  float* weights;
  std::int32_t* rows;
  float* factors;
  float* shared_factors;
  /// Rows of expert e are rows[begins[e]] to rows[begins[e + 1] - 1], in order.
  std::vector<std::uint32_t> begins;
};

/// What a step works with.
struct ExpertWork {
  const LayerSpec& layer;
  std::uint64_t rows;
  const std::byte* input;  ///< [rows, hidden]
  std::byte* act;          ///< [rows, width]
  BlockExperts& block;
  const StageWeights& weights;
  const std::stop_token& stop;
};

/// Each row's sum is over its shared expert, then its experts by number, whatever the rows and the
/// blocks beside it. Not thread-safe.
class ExpertRunner {
 public:
  /// @param host   Memory for copies of ExecutorMemory::host_bytes; not read where there are none.
  /// @param arena  Where `plan` holds; both, model, options, device and plan must outlive this.
  ExpertRunner(const ModelSpec& model, const ExecutorOptions& options, Device& device,
               const ExecutionPlan& plan, std::byte* arena, std::byte* host);

  /// Chooses the rows' experts and clears their sums.   @error cancelled
  Result<void> route(const ExpertWork& work, const CaptureTap& tap);
  Result<void> shared(const ExpertWork& work);
  Result<void> expert(const ExpertWork& work, std::uint32_t expert);

 private:
  struct Roles;
  /// [rows, top_k] each: what was chosen, and the same by expert.
  struct Choices {
    std::int32_t* ids;
    float* weights;
    std::int32_t* rows;
    float* factors;
  };
  Result<void> sort_by_expert(const ExpertWork& work);
  static void sort(const Choices& choices, std::uint64_t count, const ExpertWork& work);
  Result<void> run(const ExpertWork& work, const Roles& roles, const std::byte* x,
                   std::uint64_t rows, std::uint64_t width, bool few_rows);
  Result<void> product(const ExpertWork& work, WeightKey weight, std::optional<WeightKey> bias,
                       const std::byte* x, std::uint64_t outputs, float* y);

  const ModelSpec& model_;
  const ExecutorOptions& options_;
  Device& device_;
  std::byte* const in_;
  float* const out_;
  std::byte* const scratch_;
  std::byte* const host_;  ///< Null: the device works on host memory.
};

}  // namespace librarian::gpu_exec
