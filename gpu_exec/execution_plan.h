#pragma once
/// How an executor runs a model within a device's memory: what is resident at once, and where
/// everything lies in its one arena, computed before the arena exists. Private to gpu_exec.

#include <cstdint>
#include <vector>

#include "base/error.h"
#include "gpu_exec/device.h"
#include "gpu_exec/layer_executor.h"
#include "gpu_exec/layer_steps.h"
#include "gpu_exec/model_spec.h"

namespace librarian::gpu_exec {

/// Slots of host memory for rows on their way in.
inline constexpr std::uint64_t kInboxSlots = 2;

/// Offsets in the arena, bytes, multiples of 64. Weights first, then the workspace.
///
/// Lifetimes decide what shares a place: the norm's output is dead when q, k, v (or act) exist, so
/// the projections' outputs take its place; q, then attention's output, is dead when the MLP
/// begins, so act takes its place. A parallel layer keeps attention's projection in a place of its
/// own until the MLP's is there. Each of the blocks that run together has these for itself, but for
/// `wide` (q, then act) where no stage ends while it is needed; keys and values are there only
/// while their sample is at its attention step. Where layers have experts, the norm's output stays
/// until the last of them, and act (of one expert) has `wide`'s place.
struct ExecutionPlan {
  ExecutorMemory memory;
  std::uint64_t stage_bytes_max = 0;  ///< A weight buffer.
  std::uint64_t vector_bytes = 0;     ///< Host memory of a layer's vectors, if it is streamed.
  std::uint64_t weight_buffers = 1;
  std::uint64_t blocks_together = 1;
  std::uint64_t state_slots = 0;   ///< 0: rows are worked on where they are, in host memory.
  std::uint64_t outbox_slots = 0;  ///< Rows on their way to the host.
  std::uint64_t block_bytes = 0;   ///< Of what is kept for each block.
  bool whole_halves = true;        ///< `wide` is one for all blocks; see StageRules.
  std::uint64_t rows_bytes = 0;    ///< [block rows, hidden]: a slot of state or outbox.

  std::uint64_t final_norm = 0;       ///< f32 [hidden]
  std::uint64_t final_norm_bias = 0;  ///< f32 [hidden]
  std::uint64_t weights = 0;          ///< The first buffer; the others follow.
  std::uint64_t staging = 0;          ///< Device::staging_bytes(), if weights are quantised
  std::uint64_t blocks = 0;           ///< Of `block_bytes` each, in which lie:
  std::uint64_t hidden = 0;           ///< [block rows, hidden]: norm output, projection output
  std::uint64_t attention_out = 0;    ///< [block rows, hidden], or hidden's place
  std::uint64_t wide = 0;            ///< [block rows, max(heads * value_dim, MLP or expert width)],
                                     ///< in the arena if whole_halves, else in the block
  std::uint64_t expert_sums = 0;     ///< f32 [block rows, hidden]: what experts gave so far
  std::uint64_t route_ids = 0;       ///< i32 [block rows, top_k]; see RouteOp
  std::uint64_t route_weights = 0;   ///< f32 [block rows, top_k]
  std::uint64_t expert_rows = 0;     ///< i32 [block rows * top_k] rows, by their expert
  std::uint64_t expert_factors = 0;  ///< f32 [block rows * top_k] their weights
  std::uint64_t shared_factors = 0;  ///< f32 [block rows] weights of the shared expert
  std::uint64_t keys = 0;            ///< [kv rows, kv_heads * head_dim]
  std::uint64_t values = 0;          ///< As keys.
  // Latent attention has a tile of heads' {key's nope_dim, value} in place of keys, all rows'
  // latents in place of values, and besides:
  std::uint64_t shared_keys = 0;    ///< [kv rows, rope_dim]
  std::uint64_t query_latents = 0;  ///< [block rows, q_rank]
  std::uint64_t queries = 0;        ///< [block rows, heads of a tile * head_dim]
  std::uint64_t rope_table = 0;     ///< rope_table_floats(block rows, rotary_dim)
  std::uint64_t scratch = 0;        ///< Of all threads.
  std::uint64_t expert_in = 0;      ///< [block rows, hidden]: the rows that meet an expert
  std::uint64_t expert_out = 0;     ///< f32 [block rows, max(hidden, experts)]
  std::uint64_t state = 0;          ///< `state_slots` of `rows_bytes`.
  std::uint64_t outbox = 0;         ///< `outbox_slots` of `rows_bytes`.
  std::uint64_t kv_rows = 0;

  // Of run_topk(). The head's tiles lie where the layers' weights do: none is needed by then.
  std::uint64_t head_tile_bytes = 0;
  std::uint64_t head_bias = 0;     ///< f32, vector_bytes(kVocabularyTile) for each tile
  std::uint64_t logit_rows = 0;    ///< That are multiplied with a tile at a time.
  std::uint64_t logits = 0;        ///< f32 [logit rows, kVocabularyTile]
  std::uint64_t topk = 0;          ///< [block rows] of topk_row_bytes(), if rows are copied
  std::uint64_t gold_ids = 0;      ///< i32 [block rows], likewise
  std::uint64_t host_choices = 0;  ///< In host memory for copies: see ExpertRunner::Choices
  std::uint64_t host_topk = 0;     ///< In host memory for copies: as `topk`, and behind it
  std::uint64_t host_gold = 0;     ///< as `gold_ids`.
};

/// Whole layers are resident if they fit the device with all its weight buffers; else stages are,
/// as small as they can be, so that as many blocks as possible meet a stage before it goes.
/// @error does_not_fit  Says the least memory that would do.
Result<ExecutionPlan> make_execution_plan(const ModelSpec& model, const ExecutorOptions& options,
                                          const Device& device);

/// The stages of a layer under a plan.
std::vector<Stage> plan_stages(const ModelSpec& model, const LayerSpec& layer,
                               const ExecutorOptions& options, const ExecutionPlan& plan,
                               const Device& device);

/// @error invalid_argument  as LayerExecutor::create() says.
Result<void> check_spec(const ModelSpec& model, const ExecutorOptions& options,
                        const Device& device);

}  // namespace librarian::gpu_exec
