#include "gpu_exec/layer_executor.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "gpu_exec/memory_plan.h"

namespace librarian::gpu_exec {
namespace {

constexpr std::size_t kRoles = static_cast<std::size_t>(WeightRole::final_norm) + 1;

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
      : model_(model), options_(options), device_(device), plan_(plan), arena_(std::move(arena)) {}

  void begin_layer(std::uint32_t layer_index) {
    LIB_CHECK(layer_index < model_.layers.size());
    layer_ = &model_.layers[layer_index];
    std::uint64_t end = 0;
    slots_ = place_weights(model_, *layer_, options_.weight_dtype_max, device_, plan_.layer_weights,
                           end);
    LIB_CHECK(end <= plan_.weight_bytes);
    const PackedMatrix final_norm = weights_[index(WeightRole::final_norm)];
    weights_ = {};
    weights_[index(WeightRole::final_norm)] = final_norm;
    next_position_ = 0;
  }

  Result<void> load(WeightRole role, DType type, std::span<const std::byte> bytes) {
    LIB_TRY(const WeightSlot slot, slot_of(role));
    if (dtype_bytes(type) > dtype_bytes(options_.weight_dtype_max)) {
      return invalid(std::string(weight_role_name(role)) + ": " + dtype_name(type) +
                     " is wider than planned for");
    }
    const std::uint64_t count = slot.outputs * (slot.inputs == 0 ? 1 : slot.inputs);
    if (bytes.size() != count * dtype_bytes(type)) {
      return invalid(std::string(weight_role_name(role)) + ": " + std::to_string(bytes.size()) +
                     " bytes for " + std::to_string(count) + " elements of " + dtype_name(type));
    }
    std::byte* to = arena_.get() + slot.offset;
    if (slot.inputs == 0) {
      device_.load_vector(bytes.data(), type, count, reinterpret_cast<float*>(to));
    } else {
      device_.pack_matrix(bytes.data(), type, slot.outputs, slot.inputs, to);
    }
    weights_[index(role)] = {to, type, nullptr};
    return {};
  }

  Result<void> run(const Block& block, std::span<std::byte> state, CaptureSink& sink,
                   const std::stop_token& stop) {
    LIB_TRY_VOID(check_block(block, state.size()));
    if (block.rows == 0) {
      return {};
    }
    LIB_TRY_VOID(attention(block, state.data(), stop));
    LIB_TRY_VOID(finish_half(block, state, CapturePoint::attn_out, CapturePoint::resid_mid, sink));
    LIB_TRY_VOID(unless_stopped(stop));
    LIB_TRY_VOID(mlp(block, state.data(), stop));
    return finish_half(block, state, CapturePoint::mlp_out, CapturePoint::resid_post, sink);
  }

  Result<void> run_final_norm(std::span<const std::byte> rows, std::span<std::byte> normed) {
    const std::uint64_t row_bytes = model_.hidden_size * dtype_bytes(options_.dtype);
    if (rows.size() % row_bytes != 0 || normed.size() != rows.size()) {
      return invalid("final norm: " + std::to_string(rows.size()) + " bytes in, " +
                     std::to_string(normed.size()) + " out, rows of " + std::to_string(row_bytes));
    }
    if (weights_[index(WeightRole::final_norm)].packed == nullptr) {
      return invalid("final_norm is not loaded");
    }
    norm(rows.data(), WeightRole::final_norm, rows.size() / row_bytes, normed.data());
    return {};
  }

 private:
  static std::size_t index(WeightRole role) { return static_cast<std::size_t>(role); }

  std::byte* hidden() const { return arena_.get() + plan_.hidden; }
  std::byte* wide() const { return arena_.get() + plan_.wide; }
  std::byte* scratch() const { return arena_.get() + plan_.scratch; }
  float* rope_table() const { return reinterpret_cast<float*>(arena_.get() + plan_.rope_table); }

  Result<WeightSlot> slot_of(WeightRole role) const {
    if (role == WeightRole::final_norm) {
      return WeightSlot{role, plan_.final_norm, model_.hidden_size, 0};
    }
    for (const WeightSlot& slot : slots_) {
      if (slot.role == role) {
        return slot;
      }
    }
    return invalid(std::string("the layer has no ") + weight_role_name(role));
  }

  const float* vector(WeightRole role) const {
    return reinterpret_cast<const float*>(weights_[index(role)].packed);  // Null if absent.
  }
  PackedMatrix matrix(WeightRole role, WeightRole bias) const {
    PackedMatrix result = weights_[index(role)];
    result.bias = vector(bias);
    return result;
  }

  Result<void> check_block(const Block& block, std::uint64_t state_bytes) const {
    if (layer_ == nullptr) {
      return invalid("run() before begin_layer()");
    }
    for (const WeightSlot& slot : slots_) {
      if (weights_[index(slot.role)].packed == nullptr) {
        return invalid(std::string(weight_role_name(slot.role)) + " is not loaded");
      }
    }
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

  void norm(const std::byte* x, WeightRole weight, std::uint64_t rows, std::byte* y) {
    NormOp op;
    op.x = x;
    op.y = y;
    op.dtype = options_.dtype;
    op.rows = rows;
    op.width = model_.hidden_size;
    op.weight = vector(weight);
    op.epsilon = model_.norm_epsilon;
    device_.rms_norm(op);
  }

  Result<void> linear(const std::byte* x, std::uint64_t rows, std::uint64_t inputs,
                      std::uint64_t outputs, WeightRole weight, WeightRole bias, std::byte* y,
                      const std::stop_token& stop) {
    device_.linear({x, y, options_.dtype, rows, inputs, outputs, matrix(weight, bias)}, scratch(),
                   stop);
    return unless_stopped(stop);
  }

  /// The table for this block's positions; kept while blocks begin at the same position.
  std::uint64_t prepare_rope_table(const Block& block, const RopeSpec& rope) {
    const std::uint64_t first = block.segments.size() == 1 ? block.segments[0].position : 0;
    std::uint64_t rows = 0;
    for (const Segment& segment : block.segments) {
      rows = std::max(rows, segment.rows);
    }
    if (table_rope_ == nullptr || !same_rope(*table_rope_, rope) || table_first_ != first ||
        table_rows_ < rows) {
      device_.rope_table({&rope, first, rows, rope_table()});
      table_rope_ = &rope;
      table_first_ = first;
      table_rows_ = rows;
    }
    return first;
  }

  void rotate(const Block& block, std::byte* x, std::uint32_t heads, WeightRole norm_weight,
              std::uint64_t first_position) {
    const AttentionSpec& spec = layer_->attention;
    RotateOp op;
    op.x = x;
    op.dtype = options_.dtype;
    op.rows = block.rows;
    op.heads = heads;
    op.head_dim = spec.head_dim;
    op.rotary_dim = spec.rope.rotary_dim;
    op.norm_weight = vector(norm_weight);
    op.epsilon = model_.norm_epsilon;
    op.segments = block.segments;
    op.table = rope_table();
    op.first_position = first_position;
    device_.rotate(op);
  }

  /// hidden() = attention module's output.
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

    norm(state, WeightRole::attention_norm, rows, hidden());
    LIB_TRY_VOID(linear(hidden(), rows, width, q_width, WeightRole::q_weight, WeightRole::q_bias,
                        wide(), stop));
    LIB_TRY_VOID(linear(hidden(), rows, width, kv_width, WeightRole::k_weight, WeightRole::k_bias,
                        keys + kv_offset, stop));
    LIB_TRY_VOID(linear(hidden(), rows, width, kv_width, WeightRole::v_weight, WeightRole::v_bias,
                        values + kv_offset, stop));
    const std::uint64_t first_position = prepare_rope_table(block, spec.rope);
    rotate(block, wide(), spec.heads, WeightRole::q_norm, first_position);
    rotate(block, keys + kv_offset, spec.kv_heads, WeightRole::k_norm, first_position);

    AttentionOp op;
    op.q = wide();
    op.k = keys;
    op.v = values;
    op.dtype = options_.dtype;
    op.heads = spec.heads;
    op.kv_heads = spec.kv_heads;
    op.head_dim = spec.head_dim;
    op.scale = spec.scale;
    op.window = spec.window;
    op.segments = block.segments;
    device_.attention(op, scratch(), stop);
    LIB_TRY_VOID(unless_stopped(stop));
    if (block.segments.size() == 1) {
      next_position_ = kv_row + rows;
    }
    return linear(wide(), rows, q_width, width, WeightRole::out_weight, WeightRole::out_bias,
                  hidden(), stop);
  }

  /// hidden() = MLP module's output.
  Result<void> mlp(const Block& block, const std::byte* state, const std::stop_token& stop) {
    norm(state, WeightRole::mlp_norm, block.rows, hidden());
    GluOp op;
    op.x = hidden();
    op.y = wide();
    op.dtype = options_.dtype;
    op.rows = block.rows;
    op.inputs = model_.hidden_size;
    op.width = layer_->mlp.width;
    op.gate = matrix(WeightRole::gate_weight, WeightRole::gate_bias);
    op.up = matrix(WeightRole::up_weight, WeightRole::up_bias);
    op.activation = layer_->mlp.activation;
    device_.glu(op, scratch(), stop);
    LIB_TRY_VOID(unless_stopped(stop));
    return linear(wide(), block.rows, layer_->mlp.width, model_.hidden_size,
                  WeightRole::down_weight, WeightRole::down_bias, hidden(), stop);
  }

  /// Captures hidden(), adds it to the residual and captures that.
  Result<void> finish_half(const Block& block, std::span<std::byte> state, CapturePoint output,
                           CapturePoint residual, CaptureSink& sink) {
    if (sink.wants(output)) {
      LIB_TRY_VOID(sink.capture(output, {hidden(), state.size()}));
    }
    device_.add(state.data(), hidden(), options_.dtype, block.rows * model_.hidden_size);
    if (sink.wants(residual)) {
      LIB_TRY_VOID(sink.capture(residual, state));
    }
    return {};
  }

  const ModelSpec& model_;
  const ExecutorOptions options_;
  Device& device_;
  const MemoryPlan plan_;
  DeviceMemory arena_;
  const LayerSpec* layer_ = nullptr;
  std::vector<WeightSlot> slots_;
  std::array<PackedMatrix, kRoles> weights_{};  ///< By role; `packed` null: not loaded.
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
