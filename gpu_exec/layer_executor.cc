#include "gpu_exec/layer_executor.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "gpu_exec/layer_weights.h"
#include "gpu_exec/memory_plan.h"

namespace librarian::gpu_exec {
namespace {

Error invalid(std::string message) { return {ErrorCode::invalid_argument, std::move(message)}; }

bool same_rope(const RopeSpec& a, const RopeSpec& b) {
  return a.rotary_dim == b.rotary_dim && a.inverse_frequency == b.inverse_frequency &&
         a.cos_sin_multiplier == b.cos_sin_multiplier;
}

Result<void> unless_stopped(const std::stop_token& stop) {
  if (stop.stop_requested()) {
    return Error(ErrorCode::cancelled, "stopped inside a layer");
  }
  return {};
}

}  // namespace

class LayerExecutor::Impl {
 public:
  Impl(const ModelSpec& model, const ExecutorOptions& options, Device& device,
       const MemoryPlan& plan, DeviceMemory arena)
      : model_(model),
        options_(options),
        device_(device),
        plan_(plan),
        arena_(std::move(arena)),
        weights_(model, options.weight_dtype_max, device, plan_, arena_.get()) {}

  void begin_layer(std::uint32_t layer_index) {
    LIB_CHECK(layer_index < model_.layers.size());
    layer_ = &model_.layers[layer_index];
    weights_.begin_layer(*layer_);
    next_position_ = 0;
  }

  Result<void> load(WeightRole role, DType type, std::span<const std::byte> bytes) {
    return weights_.load(role, type, bytes);
  }

  Result<void> run(const Block& block, std::span<std::byte> state, CaptureSink& sink,
                   const std::stop_token& stop) {
    LIB_TRY_VOID(check_block(block, state.size()));
    if (block.rows == 0) {
      return {};
    }
    LIB_TRY_VOID(attention(block, state.data(), stop));
    LIB_TRY_VOID(capture(CapturePoint::attn_out, attention_out(), state.size(), sink));
    if (layer_->residual != Residual::parallel) {
      join(block, state.data(), hidden(), WeightRole::attention_out_norm,
           WeightRole::attention_out_norm_bias, layer_->attention_out_norm);
      LIB_TRY_VOID(capture(CapturePoint::resid_mid, state.data(), state.size(), sink));
    }
    LIB_TRY_VOID(unless_stopped(stop));
    LIB_TRY_VOID(mlp(block, state.data(), stop));
    LIB_TRY_VOID(capture(CapturePoint::mlp_out, hidden(), state.size(), sink));
    if (layer_->residual == Residual::parallel) {
      device_.add({state.data(), attention_out(), hidden(), options_.dtype,
                   block.rows * model_.hidden_size, layer_->residual_multiplier});
    } else {
      join(block, state.data(), hidden(), WeightRole::mlp_out_norm, WeightRole::mlp_out_norm_bias,
           layer_->mlp_out_norm);
    }
    return capture(CapturePoint::resid_post, state.data(), state.size(), sink);
  }

  Result<void> run_final_norm(std::span<const std::byte> rows, std::span<std::byte> normed) {
    const std::uint64_t row_bytes = model_.hidden_size * dtype_bytes(options_.dtype);
    if (rows.size() % row_bytes != 0 || normed.size() != rows.size()) {
      return invalid("final norm: " + std::to_string(rows.size()) + " bytes in, " +
                     std::to_string(normed.size()) + " out, rows of " + std::to_string(row_bytes));
    }
    LIB_TRY_VOID(weights_.check_final_loaded());
    norm(rows.data(), WeightRole::final_norm, WeightRole::final_norm_bias, rows.size() / row_bytes,
         normed.data());
    return {};
  }

 private:
  std::byte* hidden() const { return arena_.get() + plan_.hidden; }
  std::byte* attention_out() const {
    return layer_->residual == Residual::parallel ? arena_.get() + plan_.attention_out : hidden();
  }
  std::byte* wide() const { return arena_.get() + plan_.wide; }
  std::byte* scratch() const { return arena_.get() + plan_.scratch; }
  float* floats(std::uint64_t offset) const {
    return reinterpret_cast<float*>(arena_.get() + offset);
  }

  Result<void> check_block(const Block& block, std::uint64_t state_bytes) const {
    LIB_TRY_VOID(weights_.check_layer_loaded());
    if (block.rows > options_.block_rows_max ||
        state_bytes != block.rows * model_.hidden_size * dtype_bytes(options_.dtype)) {
      return invalid("block of " + std::to_string(block.rows) + " rows with " +
                     std::to_string(state_bytes) + " bytes of state; at most " +
                     std::to_string(options_.block_rows_max) + " rows");
    }
    std::uint64_t row = 0;
    for (const Segment& segment : block.segments) {
      if (segment.row_begin != row) {
        return invalid("segment begins at row " + std::to_string(segment.row_begin) +
                       " instead of " + std::to_string(row));
      }
      row += segment.rows;
      if (!layer_->attention.causal && segment.rows != sample_rows(segment)) {
        return invalid("attention that is not causal needs whole samples, not " +
                       std::to_string(segment.rows) + " of " +
                       std::to_string(sample_rows(segment)) + " rows");
      }
      if (segment.position > 0 &&
          (block.segments.size() != 1 || segment.position != next_position_ ||
           segment.position + segment.rows > plan_.kv_rows)) {
        return invalid("a tile at position " + std::to_string(segment.position) +
                       " must be a block of its own, follow its sample's rows before and end by " +
                       std::to_string(plan_.kv_rows));
      }
    }
    if (row != block.rows) {
      return invalid("segments cover " + std::to_string(row) + " of " + std::to_string(block.rows) +
                     " rows");
    }
    return {};
  }

  NormOp norm_op(const std::byte* x, WeightRole weight, WeightRole bias, std::uint64_t rows,
                 std::byte* y) const {
    NormOp op;
    op.x = x;
    op.y = y;
    op.dtype = options_.dtype;
    op.rows = rows;
    op.width = model_.hidden_size;
    op.kind = model_.norm.kind;
    op.weight = weights_.vector(weight);
    op.bias = weights_.vector(bias);
    op.epsilon = model_.norm.epsilon;
    return op;
  }
  void norm(const std::byte* x, WeightRole weight, WeightRole bias, std::uint64_t rows,
            std::byte* y) {
    device_.norm(norm_op(x, weight, bias, rows, y));
  }

  Result<void> linear(const std::byte* x, std::uint64_t rows, std::uint64_t inputs,
                      std::uint64_t outputs, WeightRole weight, WeightRole bias, std::byte* y,
                      const std::stop_token& stop, Activation activation = Activation::identity) {
    device_.linear(
        {x, y, options_.dtype, rows, inputs, outputs, weights_.matrix(weight, bias), activation},
        scratch(), stop);
    return unless_stopped(stop);
  }

  static std::uint64_t sample_rows(const Segment& segment) {
    return segment.sample_rows != 0 ? segment.sample_rows : segment.position + segment.rows;
  }

  /// The table for this block; kept while blocks begin at the same position. Where frequencies
  /// depend on the sample, each segment has rows of its own.
  struct RopeTable {
    std::uint64_t first_position = 0;
    bool by_row = false;
  };
  RopeTable prepare_rope_table(const Block& block, const RopeSpec& rope) {
    if (rope.rotary_dim == 0) {
      return {};
    }
    float* table = floats(plan_.rope_table);
    if (rope.short_rows_max != 0) {
      for (const Segment& segment : block.segments) {
        const std::vector<float> frequencies = rope_frequencies(rope, sample_rows(segment));
        device_.rope_table({frequencies, rope.cos_sin_multiplier, segment.position, segment.rows,
                            table + segment.row_begin * rope.rotary_dim});
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
      device_.rope_table({rope.inverse_frequency, rope.cos_sin_multiplier, first, rows, table});
      table_rope_ = &rope;
      table_first_ = first;
      table_rows_ = rows;
    }
    return {first, false};
  }

  /// Norm, rotation and temperature of q or k, as far as the layer has them.
  void rotate(const Block& block, std::byte* x, std::uint32_t heads, WeightRole norm_weight,
              const RopeTable& table) {
    const AttentionSpec& spec = layer_->attention;
    if (spec.qk_norm == QkNorm::full) {
      NormOp op = norm_op(x, norm_weight, norm_weight, block.rows, x);
      op.width = std::uint64_t{heads} * spec.head_dim;
      op.bias = nullptr;
      device_.norm(op);
    }
    RotateOp op;
    op.x = x;
    op.dtype = options_.dtype;
    op.rows = block.rows;
    op.heads = heads;
    op.head_dim = spec.head_dim;
    op.rotary_dim = spec.rope.rotary_dim;
    op.style = spec.rope.style;
    op.norm = model_.norm.kind;
    op.norm_weight = spec.qk_norm == QkNorm::full ? nullptr : weights_.vector(norm_weight);
    op.norm_weight_stride = spec.qk_norm == QkNorm::head_each ? spec.head_dim : 0;
    op.epsilon = model_.norm.epsilon;
    op.segments = block.segments;
    op.table = floats(plan_.rope_table);
    op.first_position = table.first_position;
    op.table_by_row = table.by_row;
    if (norm_weight == WeightRole::q_norm) {  // Only queries have a temperature.
      op.temperature_beta = spec.temperature_beta;
      op.temperature_original = spec.temperature_original;
    }
    if (op.rotary_dim != 0 || op.norm_weight != nullptr || op.temperature_original != 0) {
      device_.rotate(op);
    }
  }

  /// attention_out() = attention module's output.
  Result<void> attention(const Block& block, const std::byte* state, const std::stop_token& stop) {
    const AttentionSpec& spec = layer_->attention;
    const std::uint64_t rows = block.rows;
    const std::uint64_t width = model_.hidden_size;
    const std::uint64_t q_width = static_cast<std::uint64_t>(spec.heads) * spec.head_dim;
    const std::uint64_t kv_width = static_cast<std::uint64_t>(spec.kv_heads) * spec.head_dim;
    const std::uint64_t kv_row = block.segments[0].position;  // Behind the tiles before.
    std::byte* keys = arena_.get() + plan_.keys;
    std::byte* values = arena_.get() + plan_.values;
    const std::uint64_t kv_offset = kv_row * kv_width * dtype_bytes(options_.dtype);
    next_position_ = 0;  // Until this tile is complete, none can follow it.

    const std::byte* input = state;
    if (layer_->attention_norm) {
      norm(state, WeightRole::attention_norm, WeightRole::attention_norm_bias, rows, hidden());
      input = hidden();
    }
    LIB_TRY_VOID(linear(input, rows, width, q_width, WeightRole::q_weight, WeightRole::q_bias,
                        wide(), stop));
    LIB_TRY_VOID(linear(input, rows, width, kv_width, WeightRole::k_weight, WeightRole::k_bias,
                        keys + kv_offset, stop));
    LIB_TRY_VOID(linear(input, rows, width, kv_width, WeightRole::v_weight, WeightRole::v_bias,
                        values + kv_offset, stop));
    const RopeTable table = prepare_rope_table(block, spec.rope);
    rotate(block, wide(), spec.heads, WeightRole::q_norm, table);
    rotate(block, keys + kv_offset, spec.kv_heads, WeightRole::k_norm, table);

    AttentionOp op;
    op.q = wide();
    op.k = keys;
    op.v = values;
    op.dtype = options_.dtype;
    op.heads = spec.heads;
    op.kv_heads = spec.kv_heads;
    op.head_dim = spec.head_dim;
    op.scale = spec.scale;
    op.causal = spec.causal;
    op.window = spec.window;
    op.chunk = spec.chunk;
    op.softcap = spec.softcap;
    op.sinks = weights_.vector(WeightRole::sinks);
    op.slopes = weights_.alibi_slopes();
    op.segments = block.segments;
    device_.attention(op, scratch(), stop);
    LIB_TRY_VOID(unless_stopped(stop));
    if (block.segments.size() == 1) {
      next_position_ = kv_row + rows;
    }
    return linear(wide(), rows, q_width, width, WeightRole::out_weight, WeightRole::out_bias,
                  attention_out(), stop);
  }

  /// hidden() = MLP module's output.
  Result<void> mlp(const Block& block, const std::byte* state, const std::stop_token& stop) {
    const MlpSpec& spec = layer_->mlp;
    const std::byte* input = state;
    if (layer_->mlp_norm) {
      norm(state, WeightRole::mlp_norm, WeightRole::mlp_norm_bias, block.rows, hidden());
      input = hidden();
    } else if (layer_->residual == Residual::parallel && layer_->attention_norm) {
      input = hidden();  // attention()'s input is still there.
    }
    if (spec.gated) {
      GluOp op;
      op.x = input;
      op.y = wide();
      op.dtype = options_.dtype;
      op.rows = block.rows;
      op.inputs = model_.hidden_size;
      op.width = spec.width;
      op.gate = weights_.matrix(WeightRole::gate_weight, WeightRole::gate_bias);
      op.up = weights_.matrix(WeightRole::up_weight, WeightRole::up_bias);
      op.activation = spec.activation;
      device_.glu(op, scratch(), stop);
      LIB_TRY_VOID(unless_stopped(stop));
    } else {
      LIB_TRY_VOID(linear(input, block.rows, model_.hidden_size, spec.width, WeightRole::up_weight,
                          WeightRole::up_bias, wide(), stop, spec.activation));
    }
    return linear(wide(), block.rows, spec.width, model_.hidden_size, WeightRole::down_weight,
                  WeightRole::down_bias, hidden(), stop);
  }

  static Result<void> capture(CapturePoint point, const std::byte* rows, std::uint64_t bytes,
                              CaptureSink& sink) {
    return sink.wants(point) ? sink.capture(point, {rows, bytes}) : Result<void>();
  }

  /// Adds a half's output to the residual stream, with its norm before or after the addition.
  void join(const Block& block, std::byte* state, std::byte* output, WeightRole weight,
            WeightRole bias, bool has_norm) {
    if (layer_->residual == Residual::norm_after) {
      NormOp op = norm_op(state, weight, bias, block.rows, state);
      op.addend = output;
      device_.norm(op);
      return;
    }
    if (has_norm) {
      norm(output, weight, bias, block.rows, output);
    }
    device_.add({state, output, nullptr, options_.dtype, block.rows * model_.hidden_size,
                 layer_->residual_multiplier});
  }

  const ModelSpec& model_;
  const ExecutorOptions options_;
  Device& device_;
  const MemoryPlan plan_;
  DeviceMemory arena_;
  LayerWeights weights_;
  const LayerSpec* layer_ = nullptr;
  std::uint64_t next_position_ = 0;  ///< Where a further tile of the last sample would begin.
  const RopeSpec* table_rope_ = nullptr;
  std::uint64_t table_first_ = 0;
  std::uint64_t table_rows_ = 0;
};

ExecutorMemory LayerExecutor::memory(const ModelSpec& model, const ExecutorOptions& options,
                                     const Device& device) {
  const MemoryPlan plan = make_memory_plan(model, options, device);
  return {plan.weight_bytes, plan.workspace_bytes};
}

Result<std::unique_ptr<LayerExecutor>> LayerExecutor::create(const ModelSpec& model,
                                                             const ExecutorOptions& options,
                                                             Device& device) {
  LIB_TRY_VOID(check_spec(model, options));
  const MemoryPlan plan = make_memory_plan(model, options, device);
  LIB_TRY(DeviceMemory arena, device.allocate(plan.weight_bytes + plan.workspace_bytes));
  return std::unique_ptr<LayerExecutor>(
      new LayerExecutor(std::make_unique<Impl>(model, options, device, plan, std::move(arena))));
}

LayerExecutor::LayerExecutor(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LayerExecutor::~LayerExecutor() = default;

void LayerExecutor::begin_layer(std::uint32_t layer_index) { impl_->begin_layer(layer_index); }

Result<void> LayerExecutor::load(WeightRole role, DType type, std::span<const std::byte> bytes) {
  return impl_->load(role, type, bytes);
}

Result<void> LayerExecutor::run(const Block& block, std::span<std::byte> state, CaptureSink& sink,
                                const std::stop_token& stop) {
  return impl_->run(block, state, sink, stop);
}

Result<void> LayerExecutor::run_final_norm(std::span<const std::byte> rows,
                                           std::span<std::byte> normed) {
  return impl_->run_final_norm(rows, normed);
}

}  // namespace librarian::gpu_exec
