#include "ingest/memory_plan.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <optional>

#include "base/units.h"
#include "gpu_exec/topk.h"
#include "ingest/array_plan.h"
#include "ingest/memory_sizes.h"
#include "ingest/residual_state.h"

namespace librarian::ingest {
namespace {

// GEMMs already run at full rate with the largest; the others serve small budgets.
constexpr std::uint64_t kBlockChoices[] = {2048, 1024, 512, 256, 128, 64, 32, 16};
// For devices that multiply many rows at a time, whatever there is: fewer rows would cost the same.
constexpr std::uint64_t kUnitsOfRows[] = {4, 2, 1};
constexpr std::uint64_t kEfficientBlock = 256;
// Fewer tokens together would read all weights for next to nothing.
constexpr std::uint64_t kTokensTogetherMin = 4096;
// So that segments arrive while others are written and hashed.
constexpr std::uint64_t kStagingSegments = 4;
// Weights on their way to stages: more than a fast connection holds in flight.
constexpr std::uint64_t kStreamAheadBytes = 128U << 20U;

gpu_exec::ExecutorOptions executor_options(const MemoryInputs& in, std::uint64_t block_tokens,
                                           bool streamed) {
  gpu_exec::ExecutorOptions options;
  options.dtype = in.dtype;
  options.weight_dtype_max = in.checkpoint->widest_dtype();
  if (in.checkpoint->quantised() &&
      gpu_exec::dtype_bytes(in.dtype) > gpu_exec::dtype_bytes(options.weight_dtype_max)) {
    options.weight_dtype_max = in.dtype;  // What quantised matrices are decoded to.
  }
  options.quantised = in.checkpoint->quantised();
  options.block_rows_max = block_tokens;
  options.sample_rows_max = in.sample_tokens_max;
  options.streamed = streamed;
  options.blocks_max = in.blocks_max(block_tokens);
  options.captures_max = in.captures->arrays_per_layer_max();
  return options;
}

gpu_exec::DType head_dtype(const weightmap::Checkpoint& checkpoint) {
  for (const weightmap::WeightTensor& tensor : checkpoint.layer(checkpoint.layer_count()).tensors) {
    if (tensor.key.role == gpu_exec::WeightRole::head) {
      return tensor.dtype;
    }
  }
  return gpu_exec::DType::bf16;
}

/// Host memory of run_head() with so many rows remembered, of which so many are a batch.
std::uint64_t logits_bytes(const MemoryInputs& in, std::uint64_t block_rows,
                           std::uint64_t remembered) {
  const std::uint32_t k = in.captures->logits->k;
  const std::uint64_t batch = 2 * state_row_bytes(in) + logits_row_bytes(k);
  // Each kept row's number and what came next.
  return remembered * gpu_exec::topk_row_bytes(k) + block_rows * batch +
         in.logit_rows_max * (sizeof(std::int64_t) + sizeof(std::int32_t));
}

/// Decides whether the whole head is resident or its tiles come in groups while what is known of
/// each row waits: whichever takes less host memory, on a device of its own whatever it has room
/// for. No bit depends on it.
Result<void> plan_head(const MemoryInputs& in, std::uint64_t block_rows, MemoryPlan& plan) {
  const gpu_exec::ModelSpec& model = in.checkpoint->spec();
  const std::uint64_t tiles =
      (model.vocab_size + gpu_exec::kVocabularyTile - 1) / gpu_exec::kVocabularyTile;
  plan.executor.topk = in.captures->logits->k;
  plan.executor.head_dtype = head_dtype(*in.checkpoint);
  std::optional<MemoryPlan> best;
  std::optional<Error> failure;
  std::uint64_t best_bytes = 0;
  for (const bool resident : {true, false}) {
    MemoryPlan choice = plan;
    choice.executor.head_resident = resident;
    auto memory = gpu_exec::LayerExecutor::memory(model, choice.executor, *in.device);
    if (!memory) {
      failure = memory.error();
      continue;
    }
    choice.executor_memory = *memory;
    choice.head_passes = (tiles + memory->head_tiles - 1) / memory->head_tiles;
    choice.logits_bytes = logits_bytes(
        in, block_rows,
        choice.head_passes == 1 ? std::min(block_rows, in.logit_rows_max) : in.logit_rows_max);
    const std::uint64_t bytes =
        choice.logits_bytes + (in.device->works_on_host_memory() ? memory->device_bytes() : 0);
    const bool stages_less = best && best->executor_memory.staged && !memory->staged;
    if (!best || stages_less ||
        (bytes < best_bytes && memory->staged <= best->executor_memory.staged)) {
      best_bytes = bytes;
      best = choice;
    }
  }
  if (!best) {
    return *failure;
  }
  plan = *best;
  return {};
}

/// What a plan is made for besides its blocks.
struct Choice {
  bool whole_layer = false;  ///< The ring holds one, or of streamed layers so much that fetching
                             ///< does not wait.
  bool state_in_memory = false;
  bool streamed = false;
  std::uint64_t slots = 0;                                ///< Of the encoder.
  std::uint64_t blocks_together_max = ~std::uint64_t{0};  ///< Of streamed layers.
};

/// @error does_not_fit  the device is too small.
Result<MemoryPlan> plan_with(const MemoryInputs& in, const MemorySizes& sizes,
                             std::uint64_t block_tokens, const Choice& choice) {
  const auto [whole_layer, state_in_memory, streamed, slots, together_max] = choice;
  MemoryPlan plan;
  plan.limit_bytes = in.limit_bytes;
  plan.block_tokens = block_tokens;
  plan.state_in_memory = state_in_memory;
  plan.whole_layer_prefetch = whole_layer;

  plan.executor = executor_options(in, block_tokens, streamed);
  if (const std::uint64_t blocks = plan.executor.blocks_max; streamed && blocks > together_max) {
    plan.executor.blocks_max = together_max;
    plan.readings_max = (blocks + together_max - 1) / together_max;
  }
  const std::uint64_t block_rows = std::min(block_tokens, in.part_tokens_max);
  if (in.captures->logits) {
    LIB_TRY_VOID(plan_head(in, block_rows, plan));
  } else {
    LIB_TRY(plan.executor_memory,
            gpu_exec::LayerExecutor::memory(in.checkpoint->spec(), plan.executor, *in.device));
  }
  const gpu_exec::ExecutorMemory& executor = plan.executor_memory;
  plan.workspace_bytes =
      executor.host_bytes + (in.captures->final_norm ? block_rows * state_row_bytes(in) : 0);
  if (in.device->works_on_host_memory()) {
    plan.packed_weight_bytes = executor.weight_bytes;
    plan.workspace_bytes += executor.workspace_bytes;
  }

  const std::uint64_t piece = sizes.piece_bytes + kKiB;
  const std::uint64_t layer = sizes.layer_bytes;
  // Weights that come in stages stay until their layer has run.
  const std::uint64_t kept = executor.staged && !executor.streamed ? layer : 0;
  const std::uint64_t ahead = streamed ? std::min(layer, kStreamAheadBytes) : layer;
  // A slot that wraps around leaves at most one piece unused.
  plan.ring_bytes = kept + (whole_layer ? std::max(ahead, 2 * kTablePieceBytes) + piece : piece);

  ResidualStateOptions state;
  state.rows = in.part_tokens_max;
  state.row_bytes = state_row_bytes(in);
  state.window_rows = in.chunk_tokens;
  state.in_memory = state_in_memory;
  plan.state_bytes = ResidualState::memory_bytes(state, block_tokens);

  const WritingSizes& writing = sizes.writing;
  plan.encode.threads = in.threads;
  plan.encode.slots = slots;
  plan.encode.chunk_bytes_max = writing.chunk_bytes_max;
  // Two layers write at the same time: one computes, the one before commits.
  plan.encode_bytes =
      activation_store::EncodePool::memory_bytes(plan.encode) + 2 * writing.bytes_per_step;
  if (!state_in_memory) {
    // Reading state back from a capture decodes a chunk at a time.
    plan.encode_bytes += 4 * in.chunk_tokens * state_row_bytes(in);
  }
  plan.table_bytes = sizes.table_bytes;
  plan.total_bytes = plan.packed_weight_bytes + plan.workspace_bytes + plan.ring_bytes +
                     plan.state_bytes + plan.encode_bytes + plan.table_bytes + plan.logits_bytes;
  return plan;
}

/// What is left lets weights of streamed layers come while a stage computes.
void widen_ring(std::uint64_t limit, MemoryPlan& plan) {
  const std::uint64_t more = std::min(
      limit - plan.total_bytes, kStreamAheadBytes - std::min(kStreamAheadBytes, plan.ring_bytes));
  plan.ring_bytes += more;
  plan.total_bytes += more;
}

/// The best of several blocks; nothing if none is within the limit.
std::optional<MemoryPlan> best_plan(const MemoryInputs& in, const MemorySizes& sizes,
                                    std::span<const std::uint64_t> blocks, const Choice& choice) {
  if (in.state == (choice.state_in_memory ? StateMode::disk : StateMode::memory)) {
    return std::nullopt;
  }
  std::optional<MemoryPlan> best;
  for (const std::uint64_t block : blocks) {
    Result<MemoryPlan> plan = plan_with(in, sizes, block, choice);
    if (!plan || plan->total_bytes > in.limit_bytes) {
      continue;
    }
    if (choice.streamed) {
      widen_ring(in.limit_bytes, *plan);
    }
    if (!plan->executor_memory.staged || choice.streamed) {
      return *std::move(plan);
    }
    // With stages it is the rows that meet one which count, and smaller blocks leave more room.
    if (!best || plan->executor_memory.rows_together > best->executor_memory.rows_together) {
      best = *std::move(plan);
    }
  }
  return best;
}

/// Blocks that streamed layers must at least meet at a time.
std::uint64_t least_together(const MemoryInputs& in, std::uint64_t block) {
  return (std::min(kTokensTogetherMin, in.part_tokens_max) + block - 1) / block;
}

/// The plan that takes the least.   @error does_not_fit  the device is too small.
Result<MemoryPlan> least_plan(const MemoryInputs& in, const MemorySizes& sizes, std::uint64_t block,
                              std::uint64_t slots) {
  Result<MemoryPlan> least = Error(ErrorCode::does_not_fit, "no plan");
  const std::uint64_t together = least_together(in, block);
  for (const bool streamed : {false, true}) {
    // A small part's rows can take less than the buffers that a state on disk needs.
    for (const bool state_in_memory : {false, true}) {
      if (in.state == (state_in_memory ? StateMode::disk : StateMode::memory)) {
        continue;
      }
      Result<MemoryPlan> plan =
          plan_with(in, sizes, block, {false, state_in_memory, streamed, slots, together});
      if ((!least && !streamed) || (plan && (!least || plan->total_bytes < least->total_bytes))) {
        least = std::move(plan);
      }
    }
  }
  return least;
}

/// Whether some layer's attention looks ahead, so that no sample may be cut into tiles.
bool whole_samples(const MemoryInputs& in) {
  const std::vector<gpu_exec::LayerSpec>& layers = in.checkpoint->spec().layers;
  return std::any_of(layers.begin(), layers.end(),
                     [](const gpu_exec::LayerSpec& layer) { return !layer.attention.causal; });
}

std::optional<std::uint64_t> read_number(const char* path) {
  std::ifstream file(path);
  std::uint64_t number = 0;
  return file >> number ? std::optional(number) : std::nullopt;
}

std::uint64_t least_block(const MemoryInputs& in) {
  return whole_samples(in) ? in.sample_tokens_max : 1;
}

/// Largest first.
std::vector<std::uint64_t> block_choices(const MemoryInputs& in) {
  const std::uint64_t block_min = least_block(in);
  std::vector<std::uint64_t> choices(std::begin(kBlockChoices), std::end(kBlockChoices));
  if (const std::uint64_t unit = in.device->row_unit(); unit > 1) {
    choices.clear();
    for (const std::uint64_t units : kUnitsOfRows) {
      choices.push_back(units * unit);
    }
  }
  std::vector<std::uint64_t> blocks;
  for (const std::uint64_t choice : choices) {
    const std::uint64_t block = std::max(choice, block_min);
    // A larger block than the largest part only costs memory.
    if ((block / 2 < in.part_tokens_max || choice == choices.back()) &&
        (blocks.empty() || block < blocks.back())) {
      blocks.push_back(block);
    }
  }
  if (in.block_tokens != 0) {
    // Rows beyond the largest part would only be memory, or overflow its arithmetic.
    blocks = {std::min(in.block_tokens, std::max<std::uint64_t>(in.part_tokens_max, 1))};
  }
  return blocks;
}

std::uint64_t least_slots(const MemorySizes& sizes) {
  return 2 * sizes.writing.arrays_per_step + 2;
}

/// The best plan; nothing if none is within the limit.
std::optional<MemoryPlan> find_plan(const MemoryInputs& in, const MemorySizes& sizes) {
  const std::vector<std::uint64_t> blocks = block_choices(in);
  const std::uint64_t slots_min = least_slots(sizes);
  const std::uint64_t slots = slots_min + 2 * static_cast<std::uint64_t>(in.threads);
  // Small blocks slow every layer down, so they come after everything else was tried.
  for (const std::uint64_t efficient : {kEfficientBlock, std::uint64_t{0}}) {
    std::vector<std::uint64_t> tried = blocks;
    std::erase_if(tried,
                  [&](std::uint64_t block) { return block < std::min(efficient, blocks.front()); });
    for (const bool streamed : {false, true}) {
      for (const bool whole_layer : {true, false}) {
        for (const bool state_in_memory : {true, false}) {
          const Choice choice{whole_layer, state_in_memory, streamed,
                              whole_layer ? slots : slots_min};
          if (const std::optional<MemoryPlan> best = best_plan(in, sizes, tried, choice)) {
            return best;
          }
        }
      }
    }
  }
  return std::nullopt;
}

/// The plan with the fewest groups of blocks of one size, which are about equal; nothing if there
/// is none.
std::optional<MemoryPlan> fewest_groups(const MemoryInputs& in, const MemorySizes& sizes,
                                        std::uint64_t block, std::uint64_t limit, Choice choice) {
  const std::uint64_t blocks = in.blocks_max(block);
  const auto in_groups = [&](std::uint64_t together) -> std::optional<MemoryPlan> {
    choice.blocks_together_max = together;
    Result<MemoryPlan> plan = plan_with(in, sizes, block, choice);
    return plan && plan->total_bytes <= limit ? std::optional(*std::move(plan)) : std::nullopt;
  };
  std::uint64_t fits = least_together(in, block);
  if (!in_groups(fits)) {
    return std::nullopt;
  }
  for (std::uint64_t beyond = blocks + 1; beyond - fits > 1;) {
    const std::uint64_t middle = fits + (beyond - fits) / 2;
    (in_groups(middle) ? fits : beyond) = middle;
  }
  const std::uint64_t groups = (blocks + fits - 1) / fits;
  std::optional<MemoryPlan> plan = in_groups((blocks + groups - 1) / groups);
  if (plan) {
    widen_ring(limit, *plan);
  }
  return plan;
}

/// The plan under which streamed layers meet groups of a part's blocks that has least to read, of
/// those the one with the largest blocks; nothing if the least groups do not fit.
/// @param staging  Bytes to leave.
std::optional<MemoryPlan> plan_in_groups(const MemoryInputs& in, const MemorySizes& sizes,
                                         std::uint64_t staging) {
  std::optional<MemoryPlan> best;
  std::uint64_t best_bytes = 0;
  for (const bool state_in_memory : {true, false}) {
    if (staging > in.limit_bytes ||
        in.state == (state_in_memory ? StateMode::disk : StateMode::memory)) {
      continue;
    }
    for (const std::uint64_t block : block_choices(in)) {
      std::optional<MemoryPlan> plan =
          best && block < kEfficientBlock
              ? std::nullopt
              : fewest_groups(in, sizes, block, in.limit_bytes - staging,
                              {false, state_in_memory, true, least_slots(sizes)});
      if (!plan) {
        continue;
      }
      const std::uint64_t state =
          state_in_memory ? 0 : 2 * in.part_tokens_max * state_row_bytes(in);
      const std::uint64_t bytes = plan->readings_max * sizes.layer_bytes + state;
      if (!best || bytes < best_bytes) {
        best_bytes = bytes;
        best = plan;
      }
    }
  }
  return best;
}

}  // namespace

Result<MemoryPlan> plan_memory(const MemoryInputs& in) {
  if (in.block_tokens != 0 && in.block_tokens < least_block(in)) {
    return Error(ErrorCode::invalid_argument,
                 "--block-tokens " + std::to_string(in.block_tokens) +
                     ": this model's tokens attend to those behind them, so a block must hold the "
                     "longest sample, " +
                     std::to_string(least_block(in)) + " tokens");
  }
  const MemorySizes sizes = memory_sizes(in);
  if (const std::optional<MemoryPlan> best = find_plan(in, sizes)) {
    return *best;
  }
  for (const std::uint64_t segments : {kStagingSegments, std::uint64_t{1}, std::uint64_t{0}}) {
    if (const std::optional<MemoryPlan> best =
            plan_in_groups(in, sizes, segments * in.staging_segment_bytes)) {
      return *best;
    }
  }
  LIB_TRY(const MemoryPlan least,
          least_plan(in, sizes, block_choices(in).back(), least_slots(sizes)));
  std::string advice;
  if (in.state == StateMode::memory) {
    advice += ", or leave out --state memory";
  }
  if (in.block_tokens != 0) {
    advice += ", or leave out --block-tokens";
  }
  return Error(ErrorCode::does_not_fit,
               "--host-memory " + format_bytes(in.limit_bytes) + " is too small: " +
                   format_bytes(least.packed_weight_bytes) + " for the largest layer, " +
                   format_bytes(least.workspace_bytes) + " of workspace, " +
                   format_bytes(least.ring_bytes) + " for weights on their way, " +
                   format_bytes(least.state_bytes + least.encode_bytes + least.table_bytes +
                                least.logits_bytes) +
                   " for state, encoding, tables and logits; the smallest that would do is " +
                   std::to_string((least.total_bytes + kMiB - 1) / kMiB) + "MiB" + advice);
}

std::uint64_t default_host_memory_bytes() {
  const auto pages = static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES));
  std::uint64_t bytes = pages * static_cast<std::uint64_t>(::sysconf(_SC_PAGE_SIZE));
  for (const char* path :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    // "max" does not parse as a number: no limit.
    if (const std::optional<std::uint64_t> limit = read_number(path)) {
      bytes = std::min(bytes, *limit);
    }
  }
  return bytes / 2;
}

}  // namespace librarian::ingest
