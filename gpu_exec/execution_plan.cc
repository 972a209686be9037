#include "gpu_exec/execution_plan.h"

#include <algorithm>
#include <optional>
#include <string>

#include "base/units.h"
#include "gpu_exec/latent_attention.h"

namespace librarian::gpu_exec {
namespace {

constexpr std::uint64_t kAlignment = 64;  // A cache line and the widest vector.

std::uint64_t aligned(std::uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

Error bad_layer(std::size_t index, const std::string& what) {
  return {ErrorCode::invalid_argument, "layer " + std::to_string(index) + ": " + what};
}

/// Sizes that do not depend on what is resident.
struct Needs {
  std::uint64_t layer_bytes = 0;   ///< Weights of the largest layer.
  std::uint64_t step_bytes = 0;    ///< Of the largest step.
  std::uint64_t half_bytes = 0;    ///< Likewise, where StageRules::whole_halves holds.
  std::uint64_t vector_bytes = 0;  ///< Of the layer that has the most, as they are in f32.
  std::uint64_t wide = 0;
  std::uint64_t key_width = 0;
  std::uint64_t value_width = 0;
  std::uint64_t shared_key_width = 0;
  std::uint64_t query_latent_width = 0;
  std::uint64_t query_width = 0;  ///< Where queries have a place of their own.
  std::uint32_t rotary_dim = 0;
  std::uint32_t experts = 0;
  std::uint32_t experts_per_row = 0;
  bool parallel = false;
  ScratchNeeds scratch;
};

/// What a layer's keys and values need.
void add_attention(const AttentionSpec& attention, Needs& needs) {
  const LatentSpec& latent = attention.latent;
  const auto raise = [](std::uint64_t& most, std::uint64_t width) { most = std::max(most, width); };
  if (latent.kv_rank == 0) {
    const std::uint64_t width = std::uint64_t{attention.kv_heads} * attention.head_dim;
    raise(needs.key_width, width);
    raise(needs.value_width, width);
    return;
  }
  const std::uint64_t heads = latent_tile_heads(attention);
  raise(needs.key_width, heads * latent_head_width(latent));
  raise(needs.value_width, latent.kv_rank);
  raise(needs.shared_key_width, latent.rope_dim);
  raise(needs.query_latent_width, latent.q_rank);
  raise(needs.query_width, heads * attention.head_dim);
}

Needs needs_of(const ModelSpec& model, const ExecutorOptions& options, const Device& device) {
  Needs needs;
  const LayerSpec* before = nullptr;
  for (const LayerSpec& layer : model.layers) {
    if (before != nullptr && *before == layer) {
      continue;
    }
    before = &layer;
    const std::vector<Step> steps =
        layer_steps(model, layer, options.weight_dtype_max, options.slice_bytes_max);
    StageRules rules{options.weight_dtype_max, 0, options.streamed, false};
    for (const Stage& stage : make_stages(layer, steps, rules, device)) {
      needs.step_bytes = std::max(needs.step_bytes, stage.bytes);
    }
    rules.whole_halves = true;
    for (const Stage& stage : make_stages(layer, steps, rules, device)) {
      needs.half_bytes = std::max(needs.half_bytes, stage.bytes);
    }
    rules.bytes_max = ~std::uint64_t{0};
    const std::vector<Stage> whole = make_stages(layer, steps, rules, device);
    needs.layer_bytes = std::max(needs.layer_bytes, whole.front().bytes);
    std::uint64_t vectors = 0;
    for (const Stage& stage : whole) {
      for (const WeightSlot& slot : stage.slots) {
        vectors += slot.weight.inputs == 0 ? slot.weight.end * sizeof(float) : 0;
      }
    }
    needs.vector_bytes = std::max(needs.vector_bytes, vectors);
    const AttentionSpec& attention = layer.attention;
    const MoeSpec& moe = layer.moe;
    needs.wide =
        std::max({needs.wide, std::uint64_t{attention.heads} * attention.value_dim(),
                  std::uint64_t{moe.experts == 0 ? layer.mlp.width
                                                 : std::max(moe.width, moe.shared_width)}});
    needs.experts = std::max(needs.experts, moe.experts);
    needs.experts_per_row = std::max(needs.experts_per_row, moe.top_k);
    add_attention(attention, needs);
    needs.rotary_dim = std::max(needs.rotary_dim, attention.rope.rotary_dim);
    needs.parallel = needs.parallel || layer.residual == Residual::parallel;
    needs.scratch.head_dim_max =
        std::max({needs.scratch.head_dim_max, attention.head_dim, attention.value_dim()});
    needs.scratch.group_max =
        std::max(needs.scratch.group_max, attention.heads / std::max(1U, attention.kv_heads));
  }
  return needs;
}

Result<void> check_experts(std::size_t layer, const MoeSpec& moe, const Device& device) {
  if (!device.runs_experts()) {
    return bad_layer(layer, "this device does not run mixtures of experts; --device cpu does");
  }
  if (moe.experts > kExpertsMax || moe.top_k == 0 || moe.top_k > moe.experts || moe.width == 0) {
    return bad_layer(layer, std::to_string(moe.top_k) + " of " + std::to_string(moe.experts) +
                                " experts of width " + std::to_string(moe.width) +
                                ": that is no choice of 1 to " + std::to_string(kExpertsMax));
  }
  if (moe.groups == 0 || moe.experts % moe.groups != 0 || moe.top_groups == 0 ||
      moe.top_groups > moe.groups || moe.top_groups > moe.top_k) {
    return bad_layer(layer, std::to_string(moe.top_groups) + " of " + std::to_string(moe.groups) +
                                " groups do not fit " + std::to_string(moe.top_k) + " of " +
                                std::to_string(moe.experts) + " experts");
  }
  if (moe.shared_gate && moe.shared_width == 0) {
    return bad_layer(layer, "a gate of no shared expert");
  }
  return {};
}

/// What is on the device at once.
struct Residency {
  bool staged = false;
  bool whole_halves = false;  ///< See StageRules.
  std::uint64_t blocks_together = 1;
};

/// Rows that meet a tile of the head at a time: their logits stay in a cache.
constexpr std::uint64_t kLogitRows = 256;

struct HeadNeeds {
  std::uint64_t tiles = 0;  ///< 0: no logits are wanted.
  std::uint64_t tiles_min = 0;
  std::uint64_t tile_bytes = 0;
};

HeadNeeds head_needs(const ModelSpec& model, const ExecutorOptions& options, const Device& device) {
  if (options.topk == 0) {
    return {};
  }
  const std::uint64_t rows = std::min<std::uint64_t>(kVocabularyTile, model.vocab_size);
  return {(model.vocab_size + kVocabularyTile - 1) / kVocabularyTile, 1,
          aligned(device.packed_bytes(rows, model.hidden_size, options.head_dtype))};
}

ExecutionPlan place_all(const ModelSpec& model, const ExecutorOptions& options,
                        const Device& device, const Needs& needs, const Residency& residency) {
  ExecutionPlan plan;
  const std::uint64_t element_bytes = dtype_bytes(options.dtype);
  const std::uint64_t unit = device.row_unit();
  const std::uint64_t rows = (options.block_rows_max + unit - 1) / unit * unit;
  const bool in_place = device.works_on_host_memory() && !residency.staged;
  plan.blocks_together = residency.blocks_together;
  plan.whole_halves = residency.whole_halves || !residency.staged;
  plan.weight_buffers = device.weight_buffers();
  plan.stage_bytes_max = !residency.staged   ? needs.layer_bytes
                         : plan.whole_halves ? needs.half_bytes
                                             : needs.step_bytes;
  plan.rows_bytes = aligned(rows * std::max<std::uint64_t>(model.hidden_size * element_bytes,
                                                           needs.experts_per_row * sizeof(float)));
  if (!in_place) {
    // One more than run together: the next one comes meanwhile. And two blocks' captures leave.
    plan.state_slots = plan.blocks_together + 1;
    plan.outbox_slots = 2 * std::max<std::uint64_t>(1, options.captures_max);
  }
  std::uint64_t at = 0;
  const auto place = [&at](std::uint64_t bytes) {
    const std::uint64_t offset = at;
    at += aligned(bytes);
    return offset;
  };
  const std::uint64_t norm_bytes = device.vector_bytes(model.hidden_size);
  plan.final_norm = place(norm_bytes);
  plan.final_norm_bias = place(model.norm.bias ? norm_bytes : 0);
  const HeadNeeds head = head_needs(model, options, device);
  const std::uint64_t layer_place = plan.weight_buffers * aligned(plan.stage_bytes_max);
  const std::uint64_t place_bytes = std::max(
      layer_place, head.tile_bytes * (options.head_resident ? head.tiles : head.tiles_min));
  plan.weights = place(place_bytes);
  if (head.tiles != 0) {
    plan.head_tile_bytes = head.tile_bytes;
    plan.memory.head_tiles = std::min(head.tiles, place_bytes / head.tile_bytes);
    plan.head_bias = place(model.head.bias ? head.tiles * device.vector_bytes(kVocabularyTile) : 0);
  }
  plan.staging = place(options.quantised ? device.staging_bytes() : 0);
  plan.memory.weight_bytes = at;

  plan.hidden = 0;
  plan.attention_out = needs.parallel ? plan.rows_bytes : plan.hidden;
  plan.block_bytes = plan.attention_out + plan.rows_bytes;
  if (needs.experts != 0) {
    const auto place_in_block = [&plan, rows](std::uint64_t row_bytes) {
      const std::uint64_t offset = plan.block_bytes;
      plan.block_bytes += aligned(rows * row_bytes);
      return offset;
    };
    const std::uint64_t chosen = needs.experts_per_row * sizeof(std::int32_t);
    plan.expert_sums = place_in_block(model.hidden_size * sizeof(float));
    plan.route_ids = place_in_block(chosen);
    plan.route_weights = place_in_block(chosen);
    plan.expert_rows = place_in_block(chosen);
    plan.expert_factors = place_in_block(chosen);
    plan.shared_factors = place_in_block(sizeof(float));
  }
  const std::uint64_t wide_bytes = aligned(rows * needs.wide * element_bytes);
  if (!plan.whole_halves) {
    plan.wide = plan.block_bytes;
    plan.block_bytes += wide_bytes;
  }
  plan.blocks = place(plan.blocks_together * plan.block_bytes);
  if (plan.whole_halves) {
    plan.wide = place(wide_bytes);
  }
  plan.kv_rows = std::max(options.block_rows_max, options.sample_rows_max);
  // A tile's keys begin at any row, and whole units of rows are written.
  const std::uint64_t kv_rows = plan.kv_rows + unit - 1;
  plan.keys = place(kv_rows * needs.key_width * element_bytes);
  plan.values = place(kv_rows * needs.value_width * element_bytes);
  plan.shared_keys = place(kv_rows * needs.shared_key_width * element_bytes);
  plan.query_latents = place(rows * needs.query_latent_width * element_bytes);
  plan.queries = place(rows * needs.query_width * element_bytes);
  plan.rope_table =
      place(rope_table_floats(options.block_rows_max, needs.rotary_dim) * sizeof(float));
  plan.scratch = place(device.scratch_bytes(needs.scratch));
  if (needs.experts != 0) {
    plan.expert_in = place(plan.rows_bytes);
    plan.expert_out =
        place(rows * std::max<std::uint64_t>(model.hidden_size, needs.experts) * sizeof(float));
  }
  plan.state = place(plan.state_slots * plan.rows_bytes);
  plan.outbox = place(plan.outbox_slots * plan.rows_bytes);
  std::uint64_t host_at = in_place ? 0 : (kInboxSlots + plan.outbox_slots) * plan.rows_bytes;
  if (!device.works_on_host_memory()) {
    plan.host_choices = host_at;
    host_at += aligned(4 * rows * needs.experts_per_row * sizeof(float));
  }
  if (options.topk != 0) {
    const std::uint64_t topk_bytes = aligned(options.block_rows_max * topk_row_bytes(options.topk));
    const std::uint64_t gold_bytes = aligned(options.block_rows_max * sizeof(std::int32_t));
    plan.logit_rows = std::min(rows, (kLogitRows + unit - 1) / unit * unit);
    plan.logits = place(plan.logit_rows * kVocabularyTile * sizeof(float));
    plan.topk = place(in_place ? 0 : topk_bytes);
    plan.gold_ids = place(in_place ? 0 : gold_bytes);
    plan.host_topk = host_at;
    plan.host_gold = host_at + topk_bytes;
    host_at += in_place ? 0 : topk_bytes + gold_bytes;
  }
  plan.memory.workspace_bytes = at - plan.memory.weight_bytes;
  plan.memory.host_bytes = in_place ? 0 : host_at + device.host_bytes();
  plan.vector_bytes = options.streamed ? needs.vector_bytes : 0;
  plan.memory.host_bytes += plan.vector_bytes;
  plan.memory.staged = residency.staged;
  plan.memory.streamed = plan.memory.staged && options.streamed;
  plan.memory.weight_buffers = plan.weight_buffers;
  plan.memory.rows_together = plan.blocks_together * options.block_rows_max;
  return plan;
}

}  // namespace

std::vector<Stage> plan_stages(const ModelSpec& model, const LayerSpec& layer,
                               const ExecutorOptions& options, const ExecutionPlan& plan,
                               const Device& device) {
  return make_stages(layer,
                     layer_steps(model, layer, options.weight_dtype_max, options.slice_bytes_max),
                     {options.weight_dtype_max, plan.stage_bytes_max, plan.memory.streamed,
                      plan.memory.staged && plan.whole_halves},
                     device);
}

Result<ExecutionPlan> make_execution_plan(const ModelSpec& model, const ExecutorOptions& options,
                                          const Device& device) {
  const Needs needs = needs_of(model, options, device);
  const std::uint64_t limit = device.memory_limit();
  const auto placed = [&](const Residency& residency) {
    return place_all(model, options, device, needs, residency);
  };
  if (!options.streamed) {
    ExecutionPlan plan = placed({});
    if (plan.memory.device_bytes() <= limit) {
      return plan;
    }
  }
  const std::uint64_t wanted = std::max<std::uint64_t>(options.blocks_max, 1);
  std::optional<ExecutionPlan> best;
  for (const bool whole_halves : {false, true}) {
    const std::uint64_t one = placed({true, whole_halves, 1}).memory.device_bytes();
    if (one > limit) {
      continue;
    }
    const std::uint64_t one_more = placed({true, whole_halves, 2}).memory.device_bytes() - one;
    const std::uint64_t together = std::min(wanted, 1 + (limit - one) / one_more);
    const ExecutionPlan plan = placed({true, whole_halves, together});
    if (!best || together > best->blocks_together ||
        (together == best->blocks_together &&
         plan.memory.device_bytes() < best->memory.device_bytes())) {
      best = plan;
    }
  }
  if (!best) {
    const ExecutionPlan least = placed({true, false, 1});
    return Error(ErrorCode::does_not_fit,
                 "the device's memory, " + format_bytes(limit) +
                     " for weights and activations, is "
                     "too small: " +
                     format_bytes(least.memory.weight_bytes) + " for weights (" +
                     std::to_string(least.weight_buffers) + " stages of a layer), " +
                     format_bytes(least.memory.workspace_bytes) + " for blocks of " +
                     std::to_string(options.block_rows_max) +
                     " tokens with the keys and values of the longest sample; " +
                     std::to_string(least.memory.device_bytes() - limit) + " bytes more would do");
  }
  if (options.streamed && best->blocks_together < wanted) {
    return Error(ErrorCode::does_not_fit,
                 "the device's memory, " + format_bytes(limit) + ", holds " +
                     std::to_string(best->blocks_together) + " blocks of the " +
                     std::to_string(wanted) +
                     " that weights streamed stage by stage must meet together");
  }
  return *best;
}

namespace {

/// What is wrong with a layer's latent attention, or nothing.
std::string latent_problem(const AttentionSpec& attention) {
  const LatentSpec& latent = attention.latent;
  if (attention.heads != attention.kv_heads || attention.qk_norm != QkNorm::none) {
    return "latent attention needs as many kv_heads as heads, and no norm of q and k";
  }
  if (std::uint64_t{latent.nope_dim} + latent.rope_dim != attention.head_dim) {
    return "nope_dim=" + std::to_string(latent.nope_dim) +
           " and rope_dim=" + std::to_string(latent.rope_dim) +
           " are not head_dim=" + std::to_string(attention.head_dim);
  }
  if (latent.rope_dim == 0 || latent.rope_dim != attention.rope.rotary_dim) {
    return "rope_dim=" + std::to_string(latent.rope_dim) +
           " of latent attention is not rotary_dim=" + std::to_string(attention.rope.rotary_dim);
  }
  if (latent.value_dim == 0 || latent.value_dim > kHeadDimMax) {
    return "value_dim=" + std::to_string(latent.value_dim) + " is not in 1.." +
           std::to_string(kHeadDimMax);
  }
  return {};
}

}  // namespace

Result<void> check_spec(const ModelSpec& model, const ExecutorOptions& options,
                        const Device& device) {
  if (options.block_rows_max == 0 || model.hidden_size == 0 || options.slice_bytes_max == 0) {
    return Error(ErrorCode::invalid_argument,
                 "block_rows_max, slice_bytes_max and hidden_size must be above 0");
  }
  if (options.block_rows_max > device.block_rows_limit()) {
    return Error(ErrorCode::invalid_argument,
                 "blocks of " + std::to_string(options.block_rows_max) +
                     " tokens: this device takes " + std::to_string(device.block_rows_limit()) +
                     " at most");
  }
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    const AttentionSpec& attention = model.layers[i].attention;
    const RopeSpec& rope = attention.rope;
    if (attention.heads == 0 || attention.kv_heads == 0 ||
        attention.heads % attention.kv_heads != 0) {
      return bad_layer(i, "kv_heads=" + std::to_string(attention.kv_heads) +
                              " does not divide heads=" + std::to_string(attention.heads));
    }
    if (attention.head_dim == 0 || attention.head_dim > kHeadDimMax) {
      return bad_layer(i, "head_dim=" + std::to_string(attention.head_dim) + " is not in 1.." +
                              std::to_string(kHeadDimMax));
    }
    if (rope.rotary_dim > attention.head_dim || rope.rotary_dim % 2 != 0 ||
        rope.inverse_frequency.size() != rope.rotary_dim / 2 ||
        (!rope.long_inverse_frequency.empty() &&
         rope.long_inverse_frequency.size() != rope.rotary_dim / 2)) {
      return bad_layer(
          i, "rotary_dim=" + std::to_string(rope.rotary_dim) + " with " +
                 std::to_string(rope.inverse_frequency.size()) +
                 " frequencies does not fit head_dim=" + std::to_string(attention.head_dim));
    }
    if (attention.latent.kv_rank != 0) {
      if (const std::string problem = latent_problem(attention); !problem.empty()) {
        return bad_layer(i, problem);
      }
    }
    if (attention.qk_norm == QkNorm::full && attention.qk_norm_after_rope) {
      return bad_layer(i, "a norm of all heads together comes before rope");
    }
    if (attention.storage == QkvStorage::per_head && attention.heads != attention.kv_heads) {
      return bad_layer(i, "q, k and v stored by head need as many kv_heads as heads");
    }
    if (model.layers[i].residual == Residual::norm_after &&
        (!model.layers[i].attention_out_norm || !model.layers[i].mlp_out_norm)) {
      return bad_layer(i, "norm_after needs both out norms");
    }
    if (model.layers[i].mlp.activation == Activation::identity) {
      return bad_layer(i, "the MLP has no activation");
    }
    const MoeSpec& moe = model.layers[i].moe;
    if (moe.experts == 0 && model.layers[i].mlp.width == 0) {
      return bad_layer(i, "the MLP has no width");
    }
    if (moe.experts != 0) {
      LIB_TRY_VOID(check_experts(i, moe, device));
    }
  }
  return {};
}

}  // namespace librarian::gpu_exec
