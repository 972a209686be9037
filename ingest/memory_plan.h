#pragma once
/// Host memory of a job as a number, before the first byte of it is allocated. Pure arithmetic.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "activation_store/array_writer.h"
#include "base/error.h"
#include "gpu_exec/layer_executor.h"
#include "ingest/capture_list.h"
#include "ingest/job_options.h"
#include "weightmap/checkpoint.h"

namespace librarian::ingest {

/// Runs of rows of the embedding table that are in memory at once.
inline constexpr std::uint64_t kTablePieceBytes = 8U << 20U;

struct MemoryInputs {
  const weightmap::Checkpoint* checkpoint = nullptr;
  const CaptureList* captures = nullptr;
  const gpu_exec::Device* device = nullptr;
  gpu_exec::DType dtype{};
  activation_store::Codec codec{};
  std::uint64_t chunk_tokens = 0;
  std::uint64_t shard_tokens = 0;
  std::uint64_t part_tokens_max = 0;    ///< Tokens of the largest part.
  std::uint64_t sample_tokens_max = 0;  ///< Longest sample.
  std::uint64_t token_bytes = 0;        ///< TokenData::memory_bytes().
  std::uint64_t kept_row_bytes = 0;     ///< Lists of rows that arrays of the largest part keep.
  std::uint64_t limit_bytes = 0;        ///< --host-memory.
  std::uint64_t block_tokens = 0;       ///< 0: auto.
  /// Most blocks of one part, for a number of tokens per block.
  std::function<std::uint64_t(std::uint64_t block_tokens)> blocks_max;
  StateMode state = StateMode::automatic;
  int threads = 1;
  /// What staging on disk takes for each segment on its way: some of it is left where streamed
  /// layers are read more than once, if it can be. 0: nothing will be staged.
  std::uint64_t staging_segment_bytes = 0;
  std::uint64_t logit_rows_max = 0;  ///< Rows that logits.topk keeps of one part, at most.
};

struct MemoryPlan {
  std::uint64_t block_tokens = 0;
  bool state_in_memory = true;
  bool whole_layer_prefetch = true;  ///< The ring holds the largest layer; else only a part of it.

  gpu_exec::ExecutorOptions executor;        ///< What these numbers are for.
  gpu_exec::ExecutorMemory executor_memory;  ///< Of the device, where it has its own.

  /// How often the largest part's layers are read: streamed ones for each group of so many tokens
  /// as ExecutorMemory::rows_together says.
  std::uint64_t readings_max = 1;

  std::uint64_t packed_weight_bytes = 0;  ///< The layer that computes; 0: the device has it.
  std::uint64_t workspace_bytes = 0;      ///< Block buffers, keys, values; or rows on their way.
  std::uint64_t ring_bytes = 0;           ///< Weights that arrive meanwhile.
  std::uint64_t state_bytes = 0;
  std::uint64_t encode_bytes = 0;
  std::uint64_t table_bytes = 0;  ///< Tokens, tensor table, journal.
  /// Rows on their way through the head, and what is known of each until all of it has passed.
  std::uint64_t logits_bytes = 0;
  std::uint64_t head_passes = 0;    ///< Times that a part's rows are shown a part of the head.
  std::uint64_t staging_bytes = 0;  ///< Segments of whole files on their way to a disk.
  std::uint64_t total_bytes = 0;
  std::uint64_t limit_bytes = 0;

  activation_store::EncodePoolOptions encode;
};

/// The best plan within the limit: layers whole, else streamed by stages; a whole layer of
/// prefetch, then state in memory, then the largest block; blocks below 256 rows only if nothing
/// else fits. Streamed layers meet all tokens of a part together, or if these are too many, groups
/// of them, as few groups as possible: the layers' weights are read for each.
/// @error does_not_fit  Says the smallest limit that would do, and what to change.
Result<MemoryPlan> plan_memory(const MemoryInputs& inputs);

/// Half of the machine's RAM, or of the cgroup's limit where that is lower.
std::uint64_t default_host_memory_bytes();

}  // namespace librarian::ingest
