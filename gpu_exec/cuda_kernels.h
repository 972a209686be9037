#pragma once
/// Kernels of the CUDA device as plain structures of arguments: what cuda_device asks of
/// cuda_runtime, one launch each. All pointers are to device memory. No CUDA header: the structures
/// are passed to kernels by value, and tests run the same kernel bodies on the processor.
/// Private to gpu_exec.

#include <cstddef>
#include <cstdint>

#include "gpu_exec/device.h"
#include "gpu_exec/model_spec.h"

namespace librarian::gpu_exec {

/// y = x * w^T, f32 sums over `inputs` in an order that depends on the kernel alone: not on `rows`,
/// on `outputs`, or on a row's or output's place among them.
struct CudaProduct {
  const std::byte* x = nullptr;  ///< [rows, inputs] of `type`, rows x_stride elements apart.
  /// [outputs, inputs] of `type`, or [inputs, outputs], rows w_stride elements apart.
  const std::byte* w = nullptr;
  std::byte* y = nullptr;  ///< [rows, outputs] of `out`, rows y_stride elements apart.
  DType type = DType::bf16;
  DType out = DType::f32;  ///< `type` or f32.
  bool w_transposed = false;
  std::uint64_t rows = 0, inputs = 0, outputs = 0;
  std::uint64_t x_stride = 0, w_stride = 0, y_stride = 0;
  bool few_rows = false;  ///< See LinearOp; kernels do not read it.
};

/// y = round(act(x + bias)).
struct CudaFinish {
  const float* x = nullptr;     ///< [rows, width], dense.
  const float* bias = nullptr;  ///< [width], or null.
  std::byte* y = nullptr;       ///< [rows, width] of `type`, rows y_stride elements apart.
  DType type = DType::bf16;
  Activation activation = Activation::identity;
  std::uint64_t rows = 0, width = 0, y_stride = 0;
};

/// y = round(act(gate + gate_bias) * (up + up_bias)).
struct CudaGate {
  const float* gate = nullptr;  ///< [rows, width], dense; so is `up`.
  const float* up = nullptr;
  const float* gate_bias = nullptr;  ///< [width], or null.
  const float* up_bias = nullptr;    ///< [width], or null.
  std::byte* y = nullptr;            ///< [rows, width] of `type`, rows y_stride elements apart.
  DType type = DType::bf16;
  Activation activation = Activation::silu;
  std::uint64_t rows = 0, width = 0, y_stride = 0;
};

/// to[i] = f32(from[i]) + plus.
struct CudaWiden {
  const std::byte* from = nullptr;
  DType type = DType::bf16;
  float* to = nullptr;  ///< Must not overlap `from`.
  std::uint64_t count = 0;
  float plus = 0;
};

/// RopeTableOp with its frequencies on the device.
struct CudaRopeTable {
  const float* inverse_frequency = nullptr;  ///< [half].
  float multiplier = 1.0F;
  std::uint64_t first_position = 0, rows = 0;
  std::uint32_t half = 0;
  float* table = nullptr;  ///< [rows, 2 * half]: cosines, then sines.
};

/// What rotate() needs to know about a row of the block.
struct CudaRowPlace {
  std::uint32_t table_row = 0;
  float temperature = 1.0F;
};

/// RotateOp with its segments as one place per row on the device.
struct CudaRotate {
  std::byte* x = nullptr;  ///< [rows, heads, head_dim] of `type`; in place.
  DType type = DType::bf16;
  std::uint64_t rows = 0;
  std::uint32_t heads = 0, head_dim = 0, rotary_dim = 0, rotary_begin = 0;
  RopeStyle style = RopeStyle::halves;
  NormKind norm = NormKind::rms;
  const float* norm_weight = nullptr;    ///< [head_dim] of head 0, or null: none.
  std::uint32_t norm_weight_stride = 0;  ///< From one head's weights to the next one's.
  bool unit_norm = false;                ///< A norm although it has no weights.
  bool norm_after = false;               ///< The norm comes after the turn.
  float epsilon = 0;
  const float* table = nullptr;          ///< As CudaRopeTable leaves it; null if rotary_dim is 0.
  const CudaRowPlace* places = nullptr;  ///< [rows].
};

/// RouteOp with what it says of the router.
struct CudaRoute {
  const float* products = nullptr;  ///< [rows, experts]
  std::uint64_t rows = 0;
  MoeSpec moe;
  const float* select_bias = nullptr;  ///< [experts], or null.
  std::int32_t* ids = nullptr;         ///< [rows, top_k]
  float* weights = nullptr;            ///< [rows, top_k]
  float* shared_products = nullptr;    ///< [rows], or null.
};

/// to[j] = row rows.at(first + j) of a quantised matrix, decoded.
struct CudaDecode {
  /// Tables begin at multiples of 4 bytes; `outputs` is from one row of [.., outputs] tables to the
  /// next, whatever rows there are.
  QuantisedMatrix matrix;
  RowRuns rows;
  std::uint64_t first = 0, outputs = 0;
  std::byte* to = nullptr;  ///< [outputs, matrix.inputs] of `type`.
  DType type = DType::bf16;
};

/// Query rows per attention tile.
inline constexpr std::uint32_t kCudaAttentionRows = 64;

/// Up to kCudaAttentionRows consecutive queries of one sample.
struct CudaAttentionTile {
  std::uint32_t q_row = 0;     ///< Row of q that the first query is.
  std::uint32_t kv_row = 0;    ///< Row of k and v that position 0 of the sample is.
  std::uint32_t position = 0;  ///< Of the first query in its sample.
  std::uint32_t rows = 0;      ///< Queries of the tile.
  std::uint32_t keys = 0;      ///< Keys of the sample that are there: positions [0, keys).
};

/// AttentionOp with its segments cut into tiles on the device. Tiles lie at multiples of
/// kCudaAttentionRows from the start of what the block holds of the sample; no row's result depends
/// on where a tile begins: keys are visited in chunks at fixed multiples from the sample's start.
struct CudaAttention {
  std::byte* q = nullptr;  ///< [rows, heads, head_dim] of `type`.
  std::byte* y = nullptr;  ///< [rows, heads, value_dim], rows y_stride elements apart; null: q's.
  std::uint64_t y_stride = 0;
  const std::byte* k = nullptr;  ///< [kv rows, kv_heads, head_dim - shared_dim] of `type`.
  const std::byte* v = nullptr;  ///< [kv rows, kv_heads, value_dim].
  HeadStrides k_strides, v_strides;
  const std::byte* k_shared = nullptr;  ///< [kv rows, shared_dim], or null.
  DType type = DType::bf16;
  std::uint32_t heads = 0, kv_heads = 0, head_dim = 0;
  std::uint32_t shared_dim = 0, value_dim = 0;  ///< See AttentionOp.
  float scale = 0;
  bool causal = true;
  std::uint32_t window = 0, chunk = 0;  ///< As in AttentionOp; 0: no limit.
  float softcap = 0;                    ///< 0: none.
  const float* sinks = nullptr;         ///< [heads], or null.
  const float* slopes = nullptr;        ///< [heads], or null.
  const CudaAttentionTile* tiles = nullptr;
  std::uint32_t tile_count = 0;
};

}  // namespace librarian::gpu_exec
