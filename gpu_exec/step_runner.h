#pragma once
/// The arithmetic of a layer's steps on one block. Private to gpu_exec.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stop_token>

#include "base/error.h"
#include "gpu_exec/device.h"
#include "gpu_exec/execution_plan.h"
#include "gpu_exec/expert_runner.h"
#include "gpu_exec/layer_executor.h"
#include "gpu_exec/layer_weights.h"

namespace librarian::gpu_exec {

/// Where a block's rows are on the device, and what is made of them; see ExecutionPlan.
struct BlockBuffers {
  std::byte* state = nullptr;
  std::byte* hidden = nullptr;
  std::byte* attention_out = nullptr;
  std::byte* wide = nullptr;
  BlockExperts* experts = nullptr;  ///< Null if no layer has any.
};

/// @error cancelled  the token says so.
Result<void> unless_stopped(const std::stop_token& stop);

/// Not thread-safe.
class StepRunner {
 public:
  /// @param host   See ExpertRunner.
  /// @param arena  Where `plan` holds; both, model, device and plan must outlive this.
  StepRunner(const ModelSpec& model, const ExecutorOptions& options, Device& device,
             const ExecutionPlan& plan, std::byte* arena, std::byte* host);

  void begin_layer(const LayerSpec& layer);
  /// @error invalid_argument  the block is not as Block and Segment say.
  Result<void> check(const Block& block) const;
  /// One step of the layer on one block. A block's steps come in order, and a step's blocks.
  /// @error cancelled | invalid_argument (a tile does not follow its sample's rows before)
  Result<void> run(const Step& step, const Block& block, const BlockBuffers& buffers,
                   const StageWeights& weights, const CaptureTap& tap, const std::stop_token& stop);
  /// y = final norm of x, [rows, hidden] both.
  void final_norm(const std::byte* x, std::uint64_t rows, std::byte* y);

 private:
  /// The rope table for a block. Where frequencies depend on the sample, each segment has rows of
  /// its own.
  struct RopeTable {
    std::uint64_t first_position = 0;
    bool by_row = false;
  };
  /// What a step works with.
  struct Work {
    const Block& block;
    const BlockBuffers& at;
    const StageWeights& weights;
    const std::stop_token& stop;
  };

  /// A matrix of the layer by its roles, and what follows its product.
  struct Matrix {
    WeightRole weight, bias;
    std::uint64_t inputs;
    Activation activation = Activation::identity;
  };
  /// Outputs of a matrix.
  struct Range {
    std::uint64_t begin, end;
  };

  Result<void> attention(const Work& work);
  Result<void> attend(const Work& work, const std::byte* input);
  Result<void> attend_latent(const Work& work, const std::byte* input);
  Result<void> attend_latent_heads(const Work& work, Range heads, const Matrix& queries,
                                   const std::byte* queries_from, const RopeTable& table);
  void latent_norm(const Work& work, std::byte* x, std::uint64_t rank, WeightRole weight);
  Result<void> attention_end(const Work& work, const CaptureTap& tap);
  Result<void> mlp_up(const Work& work, const Step& step);
  const std::byte* mlp_input(const Work& work) const;
  ExpertWork expert_work(const Work& work) const;
  Result<void> mlp_end(const Work& work, const CaptureTap& tap);
  Result<void> project(const Work& work, const Step& step, const Matrix& matrix, std::byte* y);
  Result<void> multiply(const Work& work, const Matrix& matrix, Range range, const std::byte* x,
                        std::byte* y, std::uint64_t y_stride) {
    return multiply_rows(work, work.block.rows, matrix, range, x, y, y_stride);
  }
  Result<void> multiply_rows(const Work& work, std::uint64_t rows, const Matrix& matrix,
                             Range range, const std::byte* x, std::byte* y, std::uint64_t y_stride);
  Result<void> check_tile(const Block& block) const;
  NormOp norm_op(const std::byte* x, std::uint64_t rows, const float* weight, const float* bias,
                 std::byte* y) const;
  NormOp norm_op(const Work& work, const std::byte* x, WeightRole weight, WeightRole bias,
                 std::byte* y) const;
  void join(const Work& work, std::byte* output, WeightRole weight, WeightRole bias, bool has_norm);
  RopeTable prepare_rope_table(const Block& block, const RopeSpec& rope);
  RotateOp rotate_op(const Work& work, std::byte* x, std::uint32_t heads,
                     const RopeTable& table) const;
  void set_temperature(RotateOp& op) const;
  AttentionOp attention_op(const Work& work) const;
  void rotate(const Work& work, std::byte* x, std::uint32_t heads, WeightRole norm_weight,
              const RopeTable& table);
  std::uint64_t element_bytes() const { return dtype_bytes(options_.dtype); }
  std::byte* scratch() const { return arena_ + plan_.scratch; }
  float* floats(std::uint64_t offset) const { return reinterpret_cast<float*>(arena_ + offset); }

  const ModelSpec& model_;
  const ExecutorOptions& options_;
  Device& device_;
  const ExecutionPlan& plan_;
  std::byte* const arena_;
  ExpertRunner experts_;
  const LayerSpec* layer_ = nullptr;
  std::uint64_t next_position_ = 0;  ///< Where a further tile of the last sample would begin.
  const RopeSpec* table_rope_ = nullptr;
  std::uint64_t table_first_ = 0;
  std::uint64_t table_rows_ = 0;
};

}  // namespace librarian::gpu_exec
