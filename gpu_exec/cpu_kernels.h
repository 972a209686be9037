#pragma once
/// The CPU device's kernels as tables of functions, one table per instruction-set path. One call is
/// one task: single-threaded, no allocation, all memory from the caller. Private to gpu_exec.
///
/// Code of a path lives only in kernels_<path>.cc, which defines a vector type and primitives and
/// includes the cpu_kernel_*.h bodies inside its anonymous namespace: nothing compiled for one
/// instruction set can be linked into another path's calls.

#include <cstddef>
#include <cstdint>

#include "gpu_exec/expert_ops.h"
#include "gpu_exec/model_spec.h"
#include "gpu_exec/topk.h"

namespace librarian::gpu_exec {

/// Inputs of matrices that are packed in pairs are padded with zeros to a multiple of this.
inline constexpr std::uint64_t kPairedInputsUnit = 32;

/// Packed weights are panels of `panel_columns` outputs, zero beyond the last output; elements as
/// in the checkpoint. A panel is [input][column]; or, for bf16 on a path with `bf16_in_pairs`,
/// [input / 2][column][input % 2].
struct WeightView {
  const std::byte* packed;
  const float* bias;  ///< Null: none.
  DType type;
};

/// Rows [row_begin, row_end) and outputs [column_begin, column_end) of LinearOp or GluOp.
struct LinearTile {
  const std::byte* x;  ///< Row 0.
  std::byte* y;        ///< Row 0.
  DType dtype;
  bool y_f32;  ///< y is f32, whatever `dtype`.
  std::uint64_t inputs, outputs;
  std::uint64_t y_stride;                  ///< Elements from one row of y to the next.
  WeightView matrices[2];                  ///< Gate and up, or one matrix.
  Activation activation;                   ///< Of the first product.
  bool glu;                                ///< y = act(first) * second; else y = act(first).
  std::uint64_t row_begin, row_end;        ///< As linear_shape() says.
  std::uint64_t column_begin, column_end;  ///< Likewise; begins at a multiple of panel_columns.
  float* scratch;                          ///< linear_scratch_floats, aligned to 64.
};

/// How an operation may be cut into tiles. No result depends on the cut.
struct LinearShape {
  std::uint64_t rows_max, rows_unit;       ///< Multiples of the unit are fastest.
  std::uint64_t columns_max, columns_min;  ///< Powers of two; fewer are slow.
};

/// Queries at positions [position_begin, position_end) of one sample, for the query heads of one
/// key head.
struct AttentionTile {
  const std::byte* q;  ///< First query, first head of the group.
  std::byte* y;        ///< Of the same query and head; may be q.
  const std::byte* k;  ///< The sample's position 0, this key head.
  const std::byte* v;
  const std::byte* k_shared;  ///< The sample's position 0; read only if shared_dim is not 0.
  DType dtype;
  std::uint64_t q_stride, y_stride, k_stride, v_stride;  ///< Elements from one row to the next.
  std::uint64_t head_dim, shared_dim, value_dim;         ///< See AttentionOp.
  std::uint64_t group;
  std::uint64_t position_begin, position_end;  ///< At most attention_tile_positions(group).
  std::uint64_t rows;                          ///< Of the sample; read only if not causal.
  bool causal;
  std::uint64_t window, chunk;  ///< See AttentionOp; 0: no limit.
  float scale, softcap;         ///< softcap 0: none.
  const float* sinks;           ///< Of the group's heads, or null.
  const float* slopes;          ///< Of the group's heads, or null.
  float* scratch;               ///< attention_scratch_floats(), aligned to 64.
};

/// A few rows of NormOp.
struct NormTile {
  const std::byte* x;
  const std::byte* addend;  ///< Or null.
  std::byte* y;
  DType dtype;
  std::uint64_t rows, width;
  NormKind kind;
  const float* weight;
  const float* bias;  ///< Or null.
  float epsilon;
};

/// A few rows of RotateOp whose table rows follow one another.
struct RotateTile {
  std::byte* x;
  DType dtype;
  std::uint64_t rows, heads, head_dim, rotary_dim, rotary_begin;
  RopeStyle style;
  NormKind norm;
  const float* norm_weight;  ///< Null: no norm.
  std::uint64_t norm_weight_stride;
  bool norm_after;  ///< After the turn.
  float epsilon;
  const float* table;         ///< The first row's.
  const float* temperatures;  ///< [rows], or null.
};

/// A run of AddOp.
struct AddTile {
  std::byte* x;
  const std::byte* y;
  const std::byte* z;  ///< Or null.
  DType dtype;
  std::uint64_t count;
  float scale;
};

/// A few rows of TopkOp.
struct TopkTile {
  float* logits;  ///< [rows, count]
  std::uint64_t rows, count, first_id;
  float multiplier, softcap;
  std::uint32_t k;
  const std::int32_t* gold_ids;  ///< [rows]
  std::byte* memory;             ///< [rows] of topk_row_bytes(k).
};

/// One instruction-set path.
struct CpuKernels {
  std::uint64_t panel_columns;
  bool bf16_in_pairs;  ///< See WeightView.
  std::uint64_t linear_scratch_floats;
  LinearShape (*linear_shape)(const LinearTile& whole);
  /// @param head_dim  Or value_dim, if that is larger.
  std::uint64_t (*attention_scratch_floats)(std::uint64_t head_dim, std::uint64_t group);
  void (*linear)(const LinearTile& tile);
  void (*attention)(const AttentionTile& tile);
  void (*norm)(const NormTile& tile);
  void (*rotate)(const RotateTile& tile);
  void (*add)(const AddTile& tile);
  void (*topk)(const TopkTile& tile);
  /// A few rows, or a run, of the operation.
  void (*gather)(const GatherOp& op);
  void (*combine)(const CombineOp& op);
  void (*round)(const RoundOp& op);
  /// Does nothing but the instruction that products of matrices of `type` are made of, `rounds`
  /// times some.
  /// @param sink  Two small numbers in, anything out.
  /// @return      How many floating-point operations that was.
  std::uint64_t (*peak)(DType type, std::uint64_t rounds, float* sink);
};

/// Positions per attention task: about 256 rows share one conversion of keys and values.
constexpr std::uint64_t attention_tile_positions(std::uint64_t group) {
  return group > 16 ? 16 : 256 / group;
}

const CpuKernels& portable_kernels();
const CpuKernels& avx2_kernels();    ///< Call only if cpu_has_isa(avx2).
const CpuKernels& avx512_kernels();  ///< Call only if cpu_has_isa(avx512).
CpuKernels amx_kernels();            ///< Call only if cpu_has_isa(amx).

}  // namespace librarian::gpu_exec
