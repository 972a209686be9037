#include "gpu_exec/layer_steps.h"

#include <algorithm>

#include "gpu_exec/latent_attention.h"

namespace librarian::gpu_exec {
namespace {

/// Slices are multiples of this many outputs: of every kernel's tile.
constexpr std::uint64_t kSliceUnit = 128;

std::uint64_t divide_up(std::uint64_t value, std::uint64_t unit) {
  return (value + unit - 1) / unit;
}

/// The parts of all tensors of a layer, by role.
class Parts {
 public:
  Parts(const ModelSpec& model, const LayerSpec& layer) {
    for (const WeightRole role : weight_roles(model, layer)) {
      for (const WeightPart& part : weight_parts(model, layer, role)) {
        parts_.push_back(part);
      }
    }
  }
  const WeightPart* find(WeightRole role) const {
    const auto found = std::find_if(parts_.begin(), parts_.end(),
                                    [role](const WeightPart& part) { return part.role == role; });
    return found == parts_.end() ? nullptr : &*found;
  }
  /// Adds rows [begin, end) of a matrix, or a vector, if the layer has it.
  void add(Step& step, WeightKey key, std::uint64_t begin, std::uint64_t end) const {
    if (const WeightPart* part = find(key.role); part != nullptr) {
      step.weights.push_back(part->inputs == 0 ? StepWeight{key, 0, part->outputs, 0}
                                               : StepWeight{key, begin, end, part->inputs});
    }
  }
  /// Adds whole matrices and vectors, of one expert if they are experts'.
  void add_all(Step& step, std::initializer_list<WeightRole> roles,
               std::uint32_t expert = 0) const {
    for (const WeightRole role : roles) {
      if (const WeightPart* part = find(role); part != nullptr) {
        add(step, {role, expert}, 0, part->outputs);
      }
    }
  }

 private:
  std::vector<WeightPart> parts_;
};

/// Adds what latent attention needs: its matrices cut where it takes a part of their outputs.
void add_latent(const Parts& parts, const AttentionSpec& attention, Step& step) {
  const LatentSpec& latent = attention.latent;
  parts.add_all(step, {WeightRole::q_a_weight, WeightRole::q_a_bias, WeightRole::q_a_norm});
  parts.add(step, WeightRole::kv_a_weight, 0, latent.kv_rank);
  parts.add(step, WeightRole::kv_a_weight, latent.kv_rank,
            std::uint64_t{latent.kv_rank} + latent.rope_dim);
  parts.add_all(step, {WeightRole::kv_a_bias, WeightRole::kv_a_norm});
  const std::uint64_t heads = latent_tile_heads(attention);
  const std::uint64_t kv_width = latent_head_width(latent);
  for (std::uint64_t begin = 0; begin < attention.heads; begin += heads) {
    const std::uint64_t end = std::min<std::uint64_t>(begin + heads, attention.heads);
    for (const WeightRole role : {WeightRole::q_weight, WeightRole::q_b_weight}) {
      parts.add(step, role, begin * attention.head_dim, end * attention.head_dim);
    }
    parts.add(step, WeightRole::kv_b_weight, begin * kv_width, end * kv_width);
  }
}

/// One step per slice of the outputs of `roles`, all of one shape.
void add_slices(const Parts& parts, StepKind kind, std::initializer_list<WeightRole> roles,
                std::uint64_t element_bytes, std::uint64_t slice_bytes_max,
                std::vector<Step>& steps) {
  const WeightPart* matrix = nullptr;
  for (const WeightRole role : roles) {
    const WeightPart* part = parts.find(role);
    matrix = part != nullptr && part->inputs != 0 ? part : matrix;
  }
  LIB_CHECK(matrix != nullptr);
  const std::uint64_t slices =
      divide_up(matrix->outputs * std::max<std::uint64_t>(1, matrix->inputs) * element_bytes,
                slice_bytes_max);
  const std::uint64_t width =
      divide_up(divide_up(matrix->outputs, slices), kSliceUnit) * kSliceUnit;
  for (std::uint64_t begin = 0; begin < matrix->outputs; begin += width) {
    Step step{kind, begin, std::min(begin + width, matrix->outputs), {}};
    for (const WeightRole role : roles) {
      parts.add(step, role, step.begin, step.end);
    }
    steps.push_back(std::move(step));
  }
}

void add_experts(const Parts& parts, const MoeSpec& moe, std::vector<Step>& steps) {
  Step route{StepKind::route, 0, 0, {}};
  parts.add_all(route, {WeightRole::router_weight, WeightRole::router_bias,
                        WeightRole::router_select_bias, WeightRole::shared_router});
  steps.push_back(std::move(route));
  if (moe.shared_width != 0) {
    Step shared{StepKind::shared_expert, 0, 0, {}};
    parts.add_all(shared, {WeightRole::shared_gate_weight, WeightRole::shared_up_weight,
                           WeightRole::shared_down_weight});
    steps.push_back(std::move(shared));
  }
  for (std::uint32_t expert = 0; expert < moe.experts; ++expert) {
    Step step{StepKind::expert, expert, expert + std::uint64_t{1}, {}};
    parts.add_all(
        step,
        {WeightRole::expert_gate_weight, WeightRole::expert_gate_bias, WeightRole::expert_up_weight,
         WeightRole::expert_up_bias, WeightRole::expert_down_weight, WeightRole::expert_down_bias},
        expert);
    steps.push_back(std::move(step));
  }
}

/// Enough for every type up to `widest`, and routers in f32: a device may pad bf16 to more than f32
/// takes.
std::uint64_t slot_bytes(const StepWeight& weight, DType widest, const Device& device) {
  if (weight.inputs == 0) {
    return device.vector_bytes(weight.end);
  }
  widest = is_router_role(weight.key.role) ? DType::f32 : widest;
  const std::uint64_t outputs = weight.end - weight.begin;
  return std::max(device.packed_bytes(outputs, weight.inputs, widest),
                  device.packed_bytes(outputs, weight.inputs, DType::bf16));
}

/// No other step needs an expert's.
bool has(const Stage& stage, const StepWeight& weight) {
  return !is_expert_role(weight.key.role) &&
         std::any_of(stage.slots.begin(), stage.slots.end(), [&](const WeightSlot& slot) {
           return slot.weight.key == weight.key && slot.weight.begin == weight.begin;
         });
}

/// Adds a step to a stage, with what the stage does not have yet of its weights.
void add_step(const LayerSpec& layer, const Step& step, DType weight_dtype_max,
              const Device& device, Stage& stage) {
  if (step.kind == StepKind::attention && layer.attention.alibi) {
    stage.slopes = stage.bytes;
    stage.bytes += device.vector_bytes(layer.attention.heads);
  }
  for (const StepWeight& weight : step.weights) {
    if (!has(stage, weight)) {
      stage.slots.push_back({weight, stage.bytes});
      stage.bytes += slot_bytes(weight, weight_dtype_max, device);
    }
  }
  stage.steps.push_back(step);
}

/// What a stage grows by if `unit` becomes part of it.
std::uint64_t bytes_to_add(const Stage& unit, DType weight_dtype_max, const Device& device,
                           const Stage& stage) {
  std::uint64_t bytes = unit.bytes;
  for (const WeightSlot& slot : unit.slots) {
    bytes -= has(stage, slot.weight) ? slot_bytes(slot.weight, weight_dtype_max, device) : 0;
  }
  return bytes;
}

/// Experts are better loaded when it is known who is chosen.
bool chooses_experts_of(const Stage& stage, const Stage& unit) {
  return unit.steps.front().kind == StepKind::expert && chooses_experts(stage);
}

/// Whether a step reads or adds to what the step before left in the block's widest buffer.
bool is_within_half(StepKind before, StepKind step) {
  return step == StepKind::attention_out || step == StepKind::mlp_down ||
         (before == StepKind::mlp_up && step == StepKind::mlp_up);
}

/// The smallest stages: of one step each, or of those that the rules keep together.
std::vector<Stage> units_of(const LayerSpec& layer, const std::vector<Step>& steps,
                            const StageRules& rules, const Device& device) {
  std::vector<Stage> units;
  std::uint32_t order = 0;
  StepKind kind_before = StepKind::attention;
  for (const Step& step : steps) {
    const std::uint32_t order_before = order;
    for (const StepWeight& weight : step.weights) {
      order = std::max(order, stage_order(weight.key));
    }
    const bool ends_here = !rules.by_order || order != order_before;
    if (units.empty() ||
        (ends_here && !(rules.whole_halves && is_within_half(kind_before, step.kind)))) {
      units.emplace_back();
    }
    units.back().order_end = order + 1;
    add_step(layer, step, rules.weight_dtype_max, device, units.back());
    kind_before = step.kind;
  }
  return units;
}

}  // namespace

std::vector<Step> layer_steps(const ModelSpec& model, const LayerSpec& layer,
                              DType weight_dtype_max, std::uint64_t slice_bytes_max) {
  const Parts parts(model, layer);
  const std::uint64_t element_bytes = dtype_bytes(weight_dtype_max);
  std::vector<Step> steps;
  // Keys and values of a block are gone when the next one's come: this step is not cut.
  Step attention{StepKind::attention, 0, 0, {}};
  parts.add_all(attention, {WeightRole::attention_norm, WeightRole::attention_norm_bias});
  if (layer.attention.latent.kv_rank != 0) {
    add_latent(parts, layer.attention, attention);
  } else {
    parts.add_all(attention, {WeightRole::q_weight, WeightRole::q_bias, WeightRole::k_weight,
                              WeightRole::k_bias, WeightRole::v_weight, WeightRole::v_bias,
                              WeightRole::q_norm, WeightRole::k_norm});
  }
  parts.add_all(attention, {WeightRole::sinks});
  steps.push_back(std::move(attention));
  add_slices(parts, StepKind::attention_out, {WeightRole::out_weight, WeightRole::out_bias},
             element_bytes, slice_bytes_max, steps);
  Step attention_end{StepKind::attention_end, 0, 0, {}};
  parts.add_all(attention_end,
                {WeightRole::attention_out_norm, WeightRole::attention_out_norm_bias});
  steps.push_back(std::move(attention_end));
  Step mlp_begin{StepKind::mlp_begin, 0, 0, {}};
  parts.add_all(mlp_begin, {WeightRole::mlp_norm, WeightRole::mlp_norm_bias});
  steps.push_back(std::move(mlp_begin));
  if (layer.moe.experts != 0) {
    add_experts(parts, layer.moe, steps);
  } else {
    add_slices(parts, StepKind::mlp_up,
               {WeightRole::gate_weight, WeightRole::gate_bias, WeightRole::up_weight,
                WeightRole::up_bias},
               element_bytes, slice_bytes_max, steps);
    add_slices(parts, StepKind::mlp_down, {WeightRole::down_weight, WeightRole::down_bias},
               element_bytes, slice_bytes_max, steps);
  }
  Step mlp_end{StepKind::mlp_end, 0, 0, {}};
  parts.add_all(mlp_end, {WeightRole::mlp_out_norm, WeightRole::mlp_out_norm_bias});
  steps.push_back(std::move(mlp_end));
  return steps;
}

bool chooses_experts(const Stage& stage) {
  return std::any_of(stage.steps.begin(), stage.steps.end(),
                     [](const Step& step) { return step.kind == StepKind::route; });
}

std::vector<Stage> make_stages(const LayerSpec& layer, const std::vector<Step>& steps,
                               const StageRules& rules, const Device& device) {
  std::vector<Stage> stages;
  for (Stage& unit : units_of(layer, steps, rules, device)) {
    if (stages.empty() || (rules.by_order && chooses_experts_of(stages.back(), unit)) ||
        stages.back().bytes + bytes_to_add(unit, rules.weight_dtype_max, device, stages.back()) >
            rules.bytes_max) {
      stages.push_back(std::move(unit));
      continue;
    }
    for (const Step& step : unit.steps) {
      add_step(layer, step, rules.weight_dtype_max, device, stages.back());
    }
    stages.back().order_end = unit.order_end;
  }
  return stages;
}

}  // namespace librarian::gpu_exec
