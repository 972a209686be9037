#include "gpu_exec/step_runner.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace librarian::gpu_exec {
namespace {

Error invalid(std::string message) { return {ErrorCode::invalid_argument, std::move(message)}; }

bool same_rope(const RopeSpec& a, const RopeSpec& b) {
  return a.rotary_dim == b.rotary_dim && a.inverse_frequency == b.inverse_frequency &&
         a.cos_sin_multiplier == b.cos_sin_multiplier;
}

std::uint64_t sample_rows(const Segment& segment) {
  return segment.sample_rows != 0 ? segment.sample_rows : segment.position + segment.rows;
}

}  // namespace

Result<void> unless_stopped(const std::stop_token& stop) {
  if (stop.stop_requested()) {
    return Error(ErrorCode::cancelled, "stopped inside a layer");
  }
  return {};
}

StepRunner::StepRunner(const ModelSpec& model, const ExecutorOptions& options, Device& device,
                       const ExecutionPlan& plan, std::byte* arena, std::byte* host)
    : model_(model),
      options_(options),
      device_(device),
      plan_(plan),
      arena_(arena),
      experts_(model, options, device, plan, arena, host) {}

void StepRunner::begin_layer(const LayerSpec& layer) {
  layer_ = &layer;
  next_position_ = 0;
}

Result<void> StepRunner::check(const Block& block) const {
  if (block.rows > options_.block_rows_max) {
    return invalid("block of " + std::to_string(block.rows) + " rows; at most " +
                   std::to_string(options_.block_rows_max) + " rows");
  }
  std::uint64_t row = 0;
  for (const Segment& segment : block.segments) {
    if (segment.row_begin != row) {
      return invalid("segment begins at row " + std::to_string(segment.row_begin) + " instead of " +
                     std::to_string(row));
    }
    row += segment.rows;
    if (!layer_->attention.causal && segment.rows != sample_rows(segment)) {
      return invalid("attention that is not causal needs whole samples, not " +
                     std::to_string(segment.rows) + " of " + std::to_string(sample_rows(segment)) +
                     " rows");
    }
  }
  if (row != block.rows) {
    return invalid("segments cover " + std::to_string(row) + " of " + std::to_string(block.rows) +
                   " rows");
  }
  return {};
}

Result<void> StepRunner::check_tile(const Block& block) const {
  for (const Segment& segment : block.segments) {
    if (segment.position > 0 && (block.segments.size() != 1 || segment.position != next_position_ ||
                                 segment.position + segment.rows > plan_.kv_rows)) {
      return invalid("a tile at position " + std::to_string(segment.position) +
                     " must be a block of its own, follow its sample's rows before and end by " +
                     std::to_string(plan_.kv_rows));
    }
  }
  return {};
}

Result<void> StepRunner::run(const Step& step, const Block& block, const BlockBuffers& buffers,
                             const StageWeights& weights, const CaptureTap& tap,
                             const std::stop_token& stop) {
  const Work work{block, buffers, weights, stop};
  const AttentionSpec& spec = layer_->attention;
  if (stop.stop_requested()) {
    next_position_ = 0;  // A sample that was left in its middle has no further tiles.
    return unless_stopped(stop);
  }
  switch (step.kind) {
    case StepKind::attention:
      return attention(work);
    case StepKind::attention_out:
      return project(work, step,
                     {WeightRole::out_weight, WeightRole::out_bias,
                      std::uint64_t{spec.heads} * spec.value_dim()},
                     buffers.attention_out);
    case StepKind::attention_end:
      return attention_end(work, tap);
    case StepKind::mlp_begin:
      if (layer_->mlp_norm) {
        device_.norm(norm_op(work, buffers.state, WeightRole::mlp_norm, WeightRole::mlp_norm_bias,
                             buffers.hidden));
      }
      return {};
    case StepKind::route:
      return experts_.route(expert_work(work), tap);
    case StepKind::shared_expert:
      return experts_.shared(expert_work(work));
    case StepKind::expert:
      return experts_.expert(expert_work(work), static_cast<std::uint32_t>(step.begin));
    case StepKind::mlp_up:
      return mlp_up(work, step);
    case StepKind::mlp_down:
      return project(work, step,
                     {WeightRole::down_weight, WeightRole::down_bias, layer_->mlp.width},
                     buffers.hidden);
    case StepKind::mlp_end:
      return mlp_end(work, tap);
  }
  LIB_CHECK(false);
}

NormOp StepRunner::norm_op(const std::byte* x, std::uint64_t rows, const float* weight,
                           const float* bias, std::byte* y) const {
  NormOp op;
  op.x = x;
  op.y = y;
  op.dtype = options_.dtype;
  op.rows = rows;
  op.width = model_.hidden_size;
  op.kind = model_.norm.kind;
  op.weight = weight;
  op.bias = bias;
  op.epsilon = model_.norm.epsilon;
  return op;
}

NormOp StepRunner::norm_op(const Work& work, const std::byte* x, WeightRole weight, WeightRole bias,
                           std::byte* y) const {
  return norm_op(x, work.block.rows, work.weights.vector(weight), work.weights.vector(bias), y);
}

void StepRunner::final_norm(const std::byte* x, std::uint64_t rows, std::byte* y) {
  device_.norm(norm_op(x, rows, floats(plan_.final_norm),
                       model_.norm.bias ? floats(plan_.final_norm_bias) : nullptr, y));
}

/// y = outputs `range` of a product; y's first column is output range.begin.
Result<void> StepRunner::multiply_rows(const Work& work, std::uint64_t rows, const Matrix& matrix,
                                       Range range, const std::byte* x, std::byte* y,
                                       std::uint64_t y_stride) {
  LinearOp op;
  op.x = x;
  op.y = y;
  op.dtype = options_.dtype;
  op.rows = rows;
  op.inputs = matrix.inputs;
  op.outputs = range.end - range.begin;
  op.matrix = work.weights.matrix(matrix.weight, matrix.bias, range.begin);
  op.activation = matrix.activation;
  op.y_stride = y_stride;
  device_.linear(op, scratch(), work.stop);
  return unless_stopped(work.stop);
}

/// A slice of a projection from `wide` to rows of the hidden width.
Result<void> StepRunner::project(const Work& work, const Step& step, const Matrix& matrix,
                                 std::byte* y) {
  return multiply(work, matrix, {step.begin, step.end}, work.at.wide,
                  y + step.begin * element_bytes(), model_.hidden_size);
}

/// wide = what attention gives before its projection.
Result<void> StepRunner::attention(const Work& work) {
  const Block& block = work.block;
  LIB_TRY_VOID(check_tile(block));
  next_position_ = 0;  // Until this tile is complete, none can follow it.

  const std::byte* input = work.at.state;
  if (layer_->attention_norm) {
    device_.norm(norm_op(work, work.at.state, WeightRole::attention_norm,
                         WeightRole::attention_norm_bias, work.at.hidden));
    input = work.at.hidden;
  }
  LIB_TRY_VOID(layer_->attention.latent.kv_rank != 0 ? attend_latent(work, input)
                                                     : attend(work, input));
  if (block.segments.size() == 1) {
    next_position_ = block.segments[0].position + block.rows;
  }
  return {};
}

/// The same after the norm.
Result<void> StepRunner::attend(const Work& work, const std::byte* input) {
  const AttentionSpec& spec = layer_->attention;
  const Block& block = work.block;
  const std::uint64_t width = model_.hidden_size;
  const std::uint64_t q_width = std::uint64_t{spec.heads} * spec.head_dim;
  const std::uint64_t kv_width = std::uint64_t{spec.kv_heads} * spec.head_dim;
  const std::uint64_t kv_row = block.segments[0].position;  // Behind the tiles before.
  const std::uint64_t kv_offset = kv_row * kv_width * element_bytes();
  std::byte* const keys = arena_ + plan_.keys;
  std::byte* const values = arena_ + plan_.values;
  LIB_TRY_VOID(multiply(work, {WeightRole::q_weight, WeightRole::q_bias, width}, {0, q_width},
                        input, work.at.wide, q_width));
  LIB_TRY_VOID(multiply(work, {WeightRole::k_weight, WeightRole::k_bias, width}, {0, kv_width},
                        input, keys + kv_offset, kv_width));
  LIB_TRY_VOID(multiply(work, {WeightRole::v_weight, WeightRole::v_bias, width}, {0, kv_width},
                        input, values + kv_offset, kv_width));
  const RopeTable table = prepare_rope_table(block, spec.rope);
  rotate(work, work.at.wide, spec.heads, WeightRole::q_norm, table);
  rotate(work, keys + kv_offset, spec.kv_heads, WeightRole::k_norm, table);

  AttentionOp op = attention_op(work);
  op.q = work.at.wide;
  op.k = keys;
  op.v = values;
  device_.attention(op, scratch(), work.stop);
  return unless_stopped(work.stop);
}

/// Attention of all heads, without what it reads and writes.
AttentionOp StepRunner::attention_op(const Work& work) const {
  const AttentionSpec& spec = layer_->attention;
  AttentionOp op;
  op.dtype = options_.dtype;
  op.heads = spec.heads;
  op.kv_heads = spec.kv_heads;
  op.head_dim = spec.head_dim;
  op.scale = spec.scale;
  op.causal = spec.causal;
  op.window = spec.window;
  op.chunk = spec.chunk;
  op.softcap = spec.softcap;
  op.sinks = work.weights.vector(WeightRole::sinks);
  op.slopes = work.weights.alibi_slopes();
  op.segments = work.block.segments;
  return op;
}

/// Norm, rotation and temperature of q or k, as far as the layer has them.
void StepRunner::rotate(const Work& work, std::byte* x, std::uint32_t heads, WeightRole norm_weight,
                        const RopeTable& table) {
  const AttentionSpec& spec = layer_->attention;
  if (spec.qk_norm == QkNorm::full) {
    NormOp op = norm_op(work, x, norm_weight, norm_weight, x);
    op.width = std::uint64_t{heads} * spec.head_dim;
    op.bias = nullptr;
    device_.norm(op);
  }
  RotateOp op = rotate_op(work, x, heads, table);
  op.unit_norm = spec.qk_norm == QkNorm::unit && op.rotary_dim != 0;
  op.norm = op.unit_norm ? NormKind::rms : model_.norm.kind;
  op.norm_weight = spec.qk_norm == QkNorm::full ? nullptr : work.weights.vector(norm_weight);
  op.norm_weight_stride = spec.qk_norm == QkNorm::head_each ? spec.head_dim : 0;
  op.norm_after = spec.qk_norm_after_rope;
  op.epsilon = model_.norm.epsilon;
  if (norm_weight == WeightRole::q_norm) {
    set_temperature(op);
  }
  if (op.rotary_dim != 0 || op.norm_weight != nullptr || op.temperature_original != 0) {
    device_.rotate(op, scratch());
  }
}

/// The rotation of heads by their positions, without norm and temperature.
RotateOp StepRunner::rotate_op(const Work& work, std::byte* x, std::uint32_t heads,
                               const RopeTable& table) const {
  const AttentionSpec& spec = layer_->attention;
  RotateOp op;
  op.x = x;
  op.dtype = options_.dtype;
  op.rows = work.block.rows;
  op.heads = heads;
  op.head_dim = spec.head_dim;
  op.rotary_dim = spec.rope.rotary_dim;
  op.style = spec.rope.style;
  op.segments = work.block.segments;
  op.table = floats(plan_.rope_table);
  op.first_position = table.first_position;
  op.table_by_row = table.by_row;
  return op;
}

/// Only queries have a temperature.
void StepRunner::set_temperature(RotateOp& op) const {
  const AttentionSpec& spec = layer_->attention;
  op.temperature_beta = spec.temperature_beta;
  op.temperature_original = spec.temperature_original;
  op.temperature_offset = spec.temperature_offset;
}

/// The table is kept while blocks begin at the same position.
StepRunner::RopeTable StepRunner::prepare_rope_table(const Block& block, const RopeSpec& rope) {
  if (rope.rotary_dim == 0) {
    return {};
  }
  float* table = floats(plan_.rope_table);
  if (rope.short_rows_max != 0) {
    for (const Segment& segment : block.segments) {
      const std::vector<float> frequencies = rope_frequencies(rope, sample_rows(segment));
      device_.rope_table({frequencies, rope.cos_sin_multiplier, segment.position, segment.rows,
                          table + segment.row_begin * rope.rotary_dim},
                         scratch());
    }
    table_rope_ = nullptr;
    return {0, true};
  }
  const std::uint64_t first = block.segments.size() == 1 ? block.segments[0].position : 0;
  std::uint64_t rows = 0;
  for (const Segment& segment : block.segments) {
    rows = std::max(rows, segment.rows);
  }
  if (table_rope_ == nullptr || !same_rope(*table_rope_, rope) || table_first_ != first ||
      table_rows_ < rows) {
    device_.rope_table({rope.inverse_frequency, rope.cos_sin_multiplier, first, rows, table},
                       scratch());
    table_rope_ = &rope;
    table_first_ = first;
    table_rows_ = rows;
  }
  return {first, false};
}

Result<void> StepRunner::attention_end(const Work& work, const CaptureTap& tap) {
  LIB_TRY_VOID(tap(CapturePoint::attn_out, work.at.attention_out));
  if (layer_->residual == Residual::parallel) {
    return {};
  }
  join(work, work.at.attention_out, WeightRole::attention_out_norm,
       WeightRole::attention_out_norm_bias, layer_->attention_out_norm);
  return tap(CapturePoint::resid_mid, work.at.state);
}

const std::byte* StepRunner::mlp_input(const Work& work) const {
  const bool normed =
      layer_->mlp_norm || (layer_->residual == Residual::parallel && layer_->attention_norm);
  return normed ? work.at.hidden : work.at.state;
}

ExpertWork StepRunner::expert_work(const Work& work) const {
  return {*layer_,          work.block.rows, mlp_input(work), work.at.wide,
          *work.at.experts, work.weights,    work.stop};
}

/// wide = columns of act(gate) * up, or of act(up).
Result<void> StepRunner::mlp_up(const Work& work, const Step& step) {
  const MlpSpec& spec = layer_->mlp;
  const std::byte* input = mlp_input(work);
  std::byte* const y = work.at.wide + step.begin * element_bytes();
  if (!spec.gated) {
    return multiply(
        work, {WeightRole::up_weight, WeightRole::up_bias, model_.hidden_size, spec.activation},
        {step.begin, step.end}, input, y, spec.width);
  }
  GluOp op;
  op.x = input;
  op.y = y;
  op.dtype = options_.dtype;
  op.rows = work.block.rows;
  op.inputs = model_.hidden_size;
  op.width = step.end - step.begin;
  op.gate = work.weights.matrix(WeightRole::gate_weight, WeightRole::gate_bias, step.begin);
  op.up = work.weights.matrix(WeightRole::up_weight, WeightRole::up_bias, step.begin);
  op.activation = spec.activation;
  op.y_stride = spec.width;
  device_.glu(op, scratch(), work.stop);
  return unless_stopped(work.stop);
}

Result<void> StepRunner::mlp_end(const Work& work, const CaptureTap& tap) {
  if (layer_->moe.experts != 0) {
    device_.round({work.at.experts->sums, work.at.hidden, options_.dtype,
                   work.block.rows * model_.hidden_size});
  }
  LIB_TRY_VOID(tap(CapturePoint::mlp_out, work.at.hidden));
  if (layer_->residual == Residual::parallel) {
    device_.add({work.at.state, work.at.attention_out, work.at.hidden, options_.dtype,
                 work.block.rows * model_.hidden_size, layer_->residual_multiplier});
  } else {
    join(work, work.at.hidden, WeightRole::mlp_out_norm, WeightRole::mlp_out_norm_bias,
         layer_->mlp_out_norm);
  }
  return tap(CapturePoint::resid_post, work.at.state);
}

/// Adds a half's output to the residual stream, with its norm before or after the addition.
void StepRunner::join(const Work& work, std::byte* output, WeightRole weight, WeightRole bias,
                      bool has_norm) {
  if (layer_->residual == Residual::norm_after) {
    NormOp op = norm_op(work, work.at.state, weight, bias, work.at.state);
    op.addend = output;
    device_.norm(op);
    return;
  }
  if (has_norm) {
    device_.norm(norm_op(work, output, weight, bias, output));
  }
  device_.add({work.at.state, output, nullptr, options_.dtype, work.block.rows * model_.hidden_size,
               layer_->residual_multiplier});
}

}  // namespace librarian::gpu_exec
