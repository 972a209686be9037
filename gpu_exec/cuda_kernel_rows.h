#pragma once
/// CUDA kernel bodies of what works row by row or element by element: norm, rotation, what follows
/// a product, addition. with_row_kernel() chooses; see there. Arithmetic and its order are the CPU
/// device's but for the sums of norms. Private to gpu_exec.

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "gpu_exec/cuda_kernel_elements.h"
#include "gpu_exec/cuda_kernel_topk.h"
#include "gpu_exec/cuda_kernels.h"
#include "gpu_exec/cuda_simt.h"
#include "gpu_exec/device.h"
#include "gpu_exec/row_functors.h"

namespace librarian::gpu_exec {

/// Threads of a block where each takes units of a row, or one unit of all elements.
inline constexpr unsigned kUnitThreads = 256;
/// Elements of such a block's units, from one of a thread to its next.
inline constexpr std::uint64_t kUnitsApart = std::uint64_t{kUnitThreads} * kUnit;

/// Where this thread's first unit of a row begins, and its unit of all elements.
LIBRARIAN_KERNEL_BODY std::uint64_t first_of_row() {
  return std::uint64_t{simt::thread_index()} * kUnit;
}
LIBRARIAN_KERNEL_BODY std::uint64_t first_of_unit() {
  return simt::block_index_x() * kUnitsApart + first_of_row();
}
inline unsigned blocks_of_units(std::uint64_t count) {
  return static_cast<unsigned>((count + kUnitsApart - 1) / kUnitsApart);
}

/// Sum over the lanes of a warp by halves, the same in each.
LIBRARIAN_KERNEL_BODY float warp_sum(float value) {
  LIBRARIAN_UNROLL
  for (unsigned mask = simt::kWarpThreads / 2; mask > 0; mask /= 2) {
    value = value + simt::shuffle_xor(value, mask);
  }
  return value;
}

/// values = act(values).
LIBRARIAN_KERNEL_BODY void activate(Activation activation, float (&values)[kUnit]) {
  const auto each = [&](const auto& function) {
    LIBRARIAN_UNROLL
    for (float& value : values) {
      value = function(value);
    }
  };
  switch (activation) {
    case Activation::identity:
      return;
    case Activation::silu:
      return each([](float x) { return silu(x); });
    case Activation::gelu:
      return each([](float x) { return gelu(x); });
    case Activation::gelu_tanh:
      return each([](float x) { return gelu_tanh(x); });
    case Activation::relu:
      return each([](float x) { return relu(x); });
    case Activation::relu_squared:
      return each([](float x) { return relu(x) * relu(x); });
    case Activation::clamped_swish:
      return each([](float x) { return clamped_swish(x); });
  }
}

/// values += elements [i, i + kUnit) of an f32 vector [width], or nothing if that is null.
LIBRARIAN_KERNEL_BODY void add_vector(const float* vector, std::uint64_t i, std::uint64_t width,
                                      bool aligned, float (&values)[kUnit]) {
  if (vector == nullptr) {
    return;
  }
  float plus[kUnit];
  load_unit<DType::f32>(reinterpret_cast<const std::byte*>(vector), i, width, aligned, plus);
  LIBRARIAN_UNROLL
  for (unsigned j = 0; j < kUnit; ++j) {
    values[j] = values[j] + plus[j];
  }
}

/// A norm; a block per row. Threads take the same units whatever the alignment: the
/// order of the sums depends on the width alone.
template <DType type>
struct NormKernel {
  static constexpr unsigned kThreads = kUnitThreads;
  static constexpr unsigned kBlocksMin = 4;
  static constexpr unsigned kWarps = kThreads / simt::kWarpThreads;
  static constexpr unsigned kSharedBytes = sizeof(float) * 2 * kWarps;

  NormOp op;
  bool aligned;

  static NormKernel of(const NormOp& op) {
    const std::uint64_t row_bytes = op.width * kElementBytes<type>;
    return {op, rows_aligned(op.x, row_bytes) && rows_aligned(op.addend, row_bytes) &&
                    rows_aligned(op.y, row_bytes) && rows_aligned(op.weight, 0) &&
                    rows_aligned(op.bias, 0)};
  }
  unsigned blocks() const { return static_cast<unsigned>(op.rows); }

  LIBRARIAN_KERNEL_BODY void load(std::uint64_t row, std::uint64_t i,
                                  float (&values)[kUnit]) const {
    load_unit<type>(op.x + row, i, op.width, aligned, values);
    if (op.addend != nullptr) {
      float plus[kUnit];
      load_unit<type>(op.addend + row, i, op.width, aligned, plus);
      LIBRARIAN_UNROLL
      for (unsigned j = 0; j < kUnit; ++j) {
        values[j] = values[j] + plus[j];
      }
    }
  }

  /// Adds up term(element, sum) over the row.
  /// @param warps  [kWarps] in shared memory, for this call alone.
  template <typename Term>
  LIBRARIAN_KERNEL_BODY float sum_over_row(std::uint64_t row, float* warps,
                                           const Term& term) const {
    float sum = 0;
    for (std::uint64_t i = first_of_row(); i < op.width; i += kUnitsApart) {
      float values[kUnit];
      load(row, i, values);
      LIBRARIAN_UNROLL
      for (unsigned j = 0; j < kUnit; ++j) {
        sum = i + j < op.width ? term(values[j], sum) : sum;
      }
    }
    sum = warp_sum(sum);
    if (simt::thread_index() % simt::kWarpThreads == 0) {
      warps[simt::thread_index() / simt::kWarpThreads] = sum;
    }
    simt::sync_threads();
    float total = 0;
    LIBRARIAN_UNROLL
    for (unsigned warp = 0; warp < kWarps; ++warp) {
      total = total + warps[warp];
    }
    return total;
  }

  LIBRARIAN_KERNEL_BODY void operator()(std::byte* shared) const {
    auto* const warps = reinterpret_cast<float*>(shared);
    const std::uint64_t row = simt::block_index_x() * op.width * kElementBytes<type>;
    float mean = 0;
    if (op.kind == NormKind::layer) {
      mean = sum_over_row(row, warps, [](float x, float sum) { return sum + x; }) /
             static_cast<float>(op.width);
    }
    const float squares = sum_over_row(row, warps + kWarps, [mean](float x, float sum) {
      return simt::fused_multiply_add(x - mean, x - mean, sum);
    });
    const float inverse = inverse_rms(squares, op.width, op.epsilon);
    // y may be x: a thread writes what it alone still reads.
    for (std::uint64_t i = first_of_row(); i < op.width; i += kUnitsApart) {
      float values[kUnit];
      float weights[kUnit];
      load(row, i, values);
      load_unit<DType::f32>(reinterpret_cast<const std::byte*>(op.weight), i, op.width, aligned,
                            weights);
      LIBRARIAN_UNROLL
      for (unsigned j = 0; j < kUnit; ++j) {
        values[j] = normalised(values[j], mean, inverse, weights[j]);
      }
      add_vector(op.bias, i, op.width, aligned, values);
      store_unit<type>(values, op.y + row, i, op.width, aligned);
    }
  }
};

/// What follows a product; a block per row.
template <DType type>
struct FinishKernel {
  static constexpr unsigned kThreads = kUnitThreads;
  static constexpr unsigned kBlocksMin = 4;
  static constexpr unsigned kSharedBytes = 0;

  CudaFinish op;
  bool aligned;

  static FinishKernel of(const CudaFinish& op) {
    return {op, rows_aligned(op.x, op.width * sizeof(float)) && rows_aligned(op.bias, 0) &&
                    rows_aligned(op.y, op.y_stride * kElementBytes<type>)};
  }
  unsigned blocks() const { return static_cast<unsigned>(op.rows); }

  LIBRARIAN_KERNEL_BODY void operator()(std::byte* /*shared*/) const {
    const std::uint64_t row = simt::block_index_x();
    const auto* x = reinterpret_cast<const std::byte*>(op.x + row * op.width);
    std::byte* const y = op.y + row * op.y_stride * kElementBytes<type>;
    for (std::uint64_t i = first_of_row(); i < op.width; i += kUnitsApart) {
      float values[kUnit];
      load_unit<DType::f32>(x, i, op.width, aligned, values);
      add_vector(op.bias, i, op.width, aligned, values);
      activate(op.activation, values);
      store_unit<type>(values, y, i, op.width, aligned);
    }
  }
};

/// What follows a gate's two products; a block per row.
template <DType type>
struct GateKernel {
  static constexpr unsigned kThreads = kUnitThreads;
  static constexpr unsigned kBlocksMin = 4;
  static constexpr unsigned kSharedBytes = 0;

  CudaGate op;
  bool aligned;

  static GateKernel of(const CudaGate& op) {
    const std::uint64_t row_bytes = op.width * sizeof(float);
    return {op, rows_aligned(op.gate, row_bytes) && rows_aligned(op.up, row_bytes) &&
                    rows_aligned(op.gate_bias, 0) && rows_aligned(op.up_bias, 0) &&
                    rows_aligned(op.y, op.y_stride * kElementBytes<type>)};
  }
  unsigned blocks() const { return static_cast<unsigned>(op.rows); }

  LIBRARIAN_KERNEL_BODY void operator()(std::byte* /*shared*/) const {
    const std::uint64_t row = simt::block_index_x();
    const auto* gate = reinterpret_cast<const std::byte*>(op.gate + row * op.width);
    const auto* up = reinterpret_cast<const std::byte*>(op.up + row * op.width);
    std::byte* const y = op.y + row * op.y_stride * kElementBytes<type>;
    for (std::uint64_t i = first_of_row(); i < op.width; i += kUnitsApart) {
      float values[kUnit];
      float factors[kUnit];
      load_unit<DType::f32>(gate, i, op.width, aligned, values);
      load_unit<DType::f32>(up, i, op.width, aligned, factors);
      add_vector(op.gate_bias, i, op.width, aligned, values);
      add_vector(op.up_bias, i, op.width, aligned, factors);
      activate(op.activation, values);
      const bool clamped = op.activation == Activation::clamped_swish;
      LIBRARIAN_UNROLL
      for (unsigned j = 0; j < kUnit; ++j) {
        values[j] = values[j] * (clamped ? clamped_up(factors[j]) : factors[j]);
      }
      store_unit<type>(values, y, i, op.width, aligned);
    }
  }
};

template <DType type>
struct WidenKernel {
  static constexpr unsigned kThreads = kUnitThreads;
  static constexpr unsigned kBlocksMin = 4;
  static constexpr unsigned kSharedBytes = 0;

  CudaWiden op;
  bool aligned;

  static WidenKernel of(const CudaWiden& op) {
    return {op, rows_aligned(op.from, 0) && rows_aligned(op.to, 0)};
  }
  unsigned blocks() const { return blocks_of_units(op.count); }

  LIBRARIAN_KERNEL_BODY void operator()(std::byte* /*shared*/) const {
    const std::uint64_t i = first_of_unit();
    float values[kUnit];
    load_unit<type>(op.from, i, op.count, aligned, values);
    LIBRARIAN_UNROLL
    for (float& value : values) {
      value = value + op.plus;
    }
    store_unit<DType::f32>(values, reinterpret_cast<std::byte*>(op.to), i, op.count, aligned);
  }
};

template <DType type>
struct AddKernel {
  static constexpr unsigned kThreads = kUnitThreads;
  static constexpr unsigned kBlocksMin = 4;
  static constexpr unsigned kSharedBytes = 0;

  AddOp op;
  bool aligned;

  static AddKernel of(const AddOp& op) {
    return {op, rows_aligned(op.x, 0) && rows_aligned(op.y, 0) && rows_aligned(op.z, 0)};
  }
  unsigned blocks() const { return blocks_of_units(op.count); }

  LIBRARIAN_KERNEL_BODY void operator()(std::byte* /*shared*/) const {
    const std::uint64_t i = first_of_unit();
    float x[kUnit];
    float y[kUnit];
    float z[kUnit];
    load_unit<type>(op.x, i, op.count, aligned, x);
    load_unit<type>(op.y, i, op.count, aligned, y);
    if (op.z != nullptr) {
      load_unit<type>(op.z, i, op.count, aligned, z);
    }
    LIBRARIAN_UNROLL
    for (unsigned j = 0; j < kUnit; ++j) {
      const float change = op.z != nullptr ? y[j] + z[j] : y[j];
      x[j] = x[j] + change * op.scale;
    }
    store_unit<type>(x, op.x, i, op.count, aligned);
  }
};

/// A rope table; a block per row.
struct RopeTableKernel {
  static constexpr unsigned kThreads = 64;
  static constexpr unsigned kBlocksMin = 8;
  static constexpr unsigned kSharedBytes = 0;

  CudaRopeTable op;

  unsigned blocks() const { return static_cast<unsigned>(op.rows); }

  LIBRARIAN_KERNEL_BODY void operator()(std::byte* /*shared*/) const {
    const std::uint64_t row = simt::block_index_x();
    const auto position = static_cast<float>(op.first_position + row);
    float* const cosines = op.table + row * 2 * op.half;
    for (unsigned i = simt::thread_index(); i < op.half; i += kThreads) {
      const double angle = position * op.inverse_frequency[i];
      cosines[i] = static_cast<float>(std::cos(angle)) * op.multiplier;
      cosines[op.half + i] = static_cast<float>(std::sin(angle)) * op.multiplier;
    }
  }
};

/// Norm, rotation and temperature of heads; a block per row, a warp per head, which lies in shared
/// memory from its first reading to its one rounding.
template <DType type>
struct RotateKernel {
  static constexpr unsigned kThreads = 128;
  static constexpr unsigned kBlocksMin = 8;
  static constexpr unsigned kWarps = kThreads / simt::kWarpThreads;
  static constexpr unsigned kSharedBytes = sizeof(float) * kWarps * kHeadDimMax;

  CudaRotate op;
  bool aligned;

  static RotateKernel of(const CudaRotate& op) {
    return {op, rows_aligned(op.x, op.head_dim * kElementBytes<type>)};
  }
  unsigned blocks() const { return static_cast<unsigned>(op.rows); }

  /// Adds up term(element, sum) over a head, in an order that depends on head_dim alone.
  template <typename Term>
  LIBRARIAN_KERNEL_BODY float sum_over_head(const float* head, const Term& term) const {
    float sum = 0;
    for (unsigned i = simt::thread_index() % simt::kWarpThreads; i < op.head_dim;
         i += simt::kWarpThreads) {
      sum = term(head[i], sum);
    }
    return warp_sum(sum);
  }

  /// @param weight  Null: ones.
  LIBRARIAN_KERNEL_BODY void normalise(float* head, const float* weight) const {
    float mean = 0;
    if (op.norm == NormKind::layer) {
      mean = sum_over_head(head, [](float x, float sum) { return sum + x; }) /
             static_cast<float>(op.head_dim);
    }
    const float squares = sum_over_head(head, [mean](float x, float sum) {
      return simt::fused_multiply_add(x - mean, x - mean, sum);
    });
    const float inverse = inverse_rms(squares, op.head_dim, op.epsilon);
    for (unsigned i = simt::thread_index() % simt::kWarpThreads; i < op.head_dim;
         i += simt::kWarpThreads) {
      head[i] = normalised(head[i], mean, inverse, weight == nullptr ? 1.0F : weight[i]);
    }
    simt::sync_warp();
  }

  LIBRARIAN_KERNEL_BODY void turn(float* head, const float* table) const {
    const unsigned half = op.rotary_dim / 2;
    const bool pairs = op.style == RopeStyle::pairs;
    for (unsigned i = simt::thread_index() % simt::kWarpThreads; i < half;
         i += simt::kWarpThreads) {
      float& low = head[op.rotary_begin + (pairs ? 2 * i : i)];
      float& high = head[op.rotary_begin + (pairs ? 2 * i + 1 : half + i)];
      const float turned = rope_low(low, high, table[i], table[half + i]);
      high = rope_high(low, high, table[i], table[half + i]);
      low = turned;
    }
    simt::sync_warp();
  }

  LIBRARIAN_KERNEL_BODY void operator()(std::byte* shared) const {
    const unsigned warp = simt::thread_index() / simt::kWarpThreads;
    const unsigned lane = simt::thread_index() % simt::kWarpThreads;
    float* const head = reinterpret_cast<float*>(shared) + std::size_t{warp} * kHeadDimMax;
    const std::uint64_t row = simt::block_index_x();
    const CudaRowPlace place = op.places[row];
    for (unsigned h = warp; h < op.heads; h += kWarps) {
      std::byte* const x = op.x + (row * op.heads + h) * op.head_dim * kElementBytes<type>;
      // A lane has one unit: a warp's are kHeadDimMax elements.
      float values[kUnit];
      load_unit<type>(x, lane * kUnit, op.head_dim, aligned, values);
      LIBRARIAN_UNROLL
      for (unsigned j = 0; j < kUnit; ++j) {
        head[lane * kUnit + j] = values[j];
      }
      simt::sync_warp();
      const bool has_norm = op.norm_weight != nullptr || op.unit_norm;
      const float* const weight = op.norm_weight == nullptr
                                      ? nullptr
                                      : op.norm_weight + std::uint64_t{h} * op.norm_weight_stride;
      if (has_norm && !op.norm_after) {
        normalise(head, weight);
      }
      if (op.rotary_dim != 0) {
        turn(head, op.table + std::uint64_t{place.table_row} * op.rotary_dim);
      }
      if (has_norm && op.norm_after) {
        normalise(head, weight);
      }
      LIBRARIAN_UNROLL
      for (unsigned j = 0; j < kUnit; ++j) {
        values[j] = head[lane * kUnit + j] * place.temperature;
      }
      store_unit<type>(values, x, lane * kUnit, op.head_dim, aligned);
    }
  }
};
static_assert(kHeadDimMax == simt::kWarpThreads * kUnit);

/// Calls launch(kernel) with the kernel that computes `op`, as with_product_kernel() does.
/// @param op  Its rows (or elements, in units of 2048) above 0 and below 2^31.
template <typename Launch>
inline void with_row_kernel(const NormOp& op, const Launch& launch) {
  with_element(op.dtype,
               [&](auto element) { launch(NormKernel<decltype(element)::kType>::of(op)); });
}
template <typename Launch>
inline void with_row_kernel(const CudaFinish& op, const Launch& launch) {
  with_element(op.type,
               [&](auto element) { launch(FinishKernel<decltype(element)::kType>::of(op)); });
}
template <typename Launch>
inline void with_row_kernel(const CudaGate& op, const Launch& launch) {
  with_element(op.type,
               [&](auto element) { launch(GateKernel<decltype(element)::kType>::of(op)); });
}
template <typename Launch>
inline void with_row_kernel(const CudaWiden& op, const Launch& launch) {
  with_element(op.type,
               [&](auto element) { launch(WidenKernel<decltype(element)::kType>::of(op)); });
}
template <typename Launch>
inline void with_row_kernel(const CudaRopeTable& op, const Launch& launch) {
  launch(RopeTableKernel{op});
}
template <typename Launch>
inline void with_row_kernel(const CudaRotate& op, const Launch& launch) {
  with_element(op.type,
               [&](auto element) { launch(RotateKernel<decltype(element)::kType>::of(op)); });
}
template <typename Launch>
inline void with_row_kernel(const AddOp& op, const Launch& launch) {
  with_element(op.dtype,
               [&](auto element) { launch(AddKernel<decltype(element)::kType>::of(op)); });
}
template <typename Launch>
inline void with_row_kernel(const TopkOp& op, const Launch& launch) {
  launch(TopkKernel{op});
}

}  // namespace librarian::gpu_exec
