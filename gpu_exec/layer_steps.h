#pragma once
/// A layer as a list of steps, and the steps cut into stages: what is resident on the device at
/// once. Private to gpu_exec.

#include <cstdint>
#include <vector>

#include "gpu_exec/device.h"
#include "gpu_exec/model_spec.h"

namespace librarian::gpu_exec {

enum class StepKind : std::uint8_t {
  attention,      ///< Norm, q, k, v, their norms and rotation, softmax over the keys.
  attention_out,  ///< Outputs [begin, end) of the projection.
  attention_end,  ///< Joins attention's output to the residual stream.
  mlp_begin,      ///< Norm.
  route,          ///< Which experts each row meets.
  shared_expert,  ///< The one that all rows meet.
  expert,         ///< That of number `begin`, for the rows that meet it.
  mlp_up,         ///< Columns [begin, end) of act(gate) * up, or of act(up).
  mlp_down,       ///< Outputs [begin, end) of the projection.
  mlp_end,        ///< Joins the MLP's output to the residual stream.
};

/// Outputs [begin, end) of a matrix, or a whole vector.
struct StepWeight {
  WeightKey key;
  std::uint64_t begin, end;
  std::uint64_t inputs;  ///< 0: a vector.
};

struct Step {
  StepKind kind;
  std::uint64_t begin = 0, end = 0;  ///< Of the outputs or experts, where the kind has a range.
  std::vector<StepWeight> weights;
};

/// A layer's steps in the order of the arithmetic. Matrices of more than `slice_bytes_max` are cut
/// into slices of outputs. A device may sum a slice otherwise than the whole, so the cut belongs to
/// the numbers: it depends on nothing but shapes, and stages are made of whole slices.
std::vector<Step> layer_steps(const ModelSpec& model, const LayerSpec& layer,
                              DType weight_dtype_max, std::uint64_t slice_bytes_max);

/// Place of a step's weight in the buffer of its stage.
struct WeightSlot {
  StepWeight weight;
  std::uint64_t offset;  ///< Bytes, a multiple of 64.
};

/// Consecutive steps whose weights are resident together.
struct Stage {
  std::vector<Step> steps;
  std::vector<WeightSlot> slots;
  std::uint64_t slopes = 0;     ///< Offset of f32 [heads], if the layer uses them.
  std::uint64_t bytes = 0;      ///< Of the buffer.
  std::uint32_t order_end = 0;  ///< Tensors of a stage_order() from here on are not in it.
};

/// Whether which experts rows meet is known once the stage has run.
bool chooses_experts(const Stage& stage);

/// How steps become stages.
struct StageRules {
  DType weight_dtype_max = DType::bf16;
  std::uint64_t bytes_max = 0;  ///< As many steps to a stage as fit, at least one.
  bool by_order = false;      ///< Tensors come in stage_order(): steps whose matrices have the same
                              ///< stay together.
  bool whole_halves = false;  ///< No stage ends within attention or within an MLP that all rows
                              ///< meet, so that what lies between two of its products need not
                              ///< outlive a block's turn.
};

std::vector<Stage> make_stages(const LayerSpec& layer, const std::vector<Step>& steps,
                               const StageRules& rules, const Device& device);

}  // namespace librarian::gpu_exec
