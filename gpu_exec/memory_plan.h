#pragma once
/// Where everything of an executor lies in its one arena, computed before the arena exists.
/// Private to gpu_exec.

#include <cstdint>
#include <vector>

#include "base/error.h"
#include "gpu_exec/device.h"
#include "gpu_exec/layer_executor.h"
#include "gpu_exec/model_spec.h"

namespace librarian::gpu_exec {

/// Place of one matrix or vector of a layer.
struct WeightSlot {
  WeightRole role;
  std::uint64_t offset;  ///< In the arena, bytes.
  std::uint64_t outputs;
  std::uint64_t inputs;  ///< 0: a vector of `outputs`, kept as f32.
};

/// Offsets in the arena, bytes, multiples of 64. Weights first, then the workspace.
///
/// Lifetimes decide what shares a place: the norm's output is dead when q, k, v (or act) exist, so
/// the projections' outputs take its place; q, then attention's output, is dead when the MLP
/// begins, so act takes its place. Keys and values live as long as their sample. A parallel layer
/// keeps attention's projection in a place of its own until the MLP's is there.
struct MemoryPlan {
  std::uint64_t weight_bytes = 0;
  std::uint64_t workspace_bytes = 0;
  std::uint64_t final_norm = 0;       ///< f32 [hidden]
  std::uint64_t final_norm_bias = 0;  ///< f32 [hidden]
  std::uint64_t layer_weights = 0;
  std::uint64_t slopes = 0;         ///< f32 [heads], if a layer uses them
  std::uint64_t hidden = 0;         ///< [block rows, hidden]: norm output, then projection output
  std::uint64_t attention_out = 0;  ///< [block rows, hidden], or hidden's place
  std::uint64_t wide = 0;           ///< [block rows, max(heads * head_dim, mlp width)]
  std::uint64_t keys = 0;           ///< [kv rows, kv_heads * head_dim]
  std::uint64_t values = 0;         ///< As keys.
  std::uint64_t rope_table = 0;     ///< rope_table_floats(block rows, rotary_dim)
  std::uint64_t scratch = 0;        ///< Of all threads.
  std::uint64_t kv_rows = 0;
};

MemoryPlan make_memory_plan(const ModelSpec& model, const ExecutorOptions& options,
                            const Device& device);

/// Slots of one layer from `offset` on, sized for the widest type.
/// @param end  Set to the end of the last slot.
std::vector<WeightSlot> place_weights(const ModelSpec& model, const LayerSpec& layer,
                                      DType weight_dtype_max, const Device& device,
                                      std::uint64_t offset, std::uint64_t& end);

/// @error invalid_argument  as LayerExecutor::create() says.
Result<void> check_spec(const ModelSpec& model, const ExecutorOptions& options);

}  // namespace librarian::gpu_exec
