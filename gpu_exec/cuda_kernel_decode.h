#pragma once
/// CUDA kernel body that decodes quantised matrices: the functors of every device, a unit of inputs
/// at a time. Private to gpu_exec.

#include <cstddef>
#include <cstdint>

#include "gpu_exec/cuda_kernel_elements.h"
#include "gpu_exec/cuda_kernels.h"
#include "gpu_exec/cuda_simt.h"
#include "gpu_exec/quantised_functors.h"

namespace librarian::gpu_exec {

/// A block decodes a tile. Its warps lie along the side on which codes are neighbours.
/// @tparam along_outputs  Words hold inputs of one output, or outputs of one input.
template <DType type, bool along_outputs>
struct DecodeKernel {
  static constexpr unsigned kThreads = 256;
  static constexpr unsigned kBlocksMin = 4;
  static constexpr unsigned kSharedBytes = 0;
  static constexpr unsigned kWarps = kThreads / simt::kWarpThreads;
  static constexpr std::uint64_t kOutputs = along_outputs ? simt::kWarpThreads : kWarps;
  static constexpr std::uint64_t kInputs =
      std::uint64_t{along_outputs ? kWarps : simt::kWarpThreads} * kUnit;

  CudaDecode op;
  bool aligned;

  static DecodeKernel of(const CudaDecode& op) {
    return {op, rows_aligned(op.to, op.matrix.inputs * kElementBytes<type>)};
  }
  std::uint64_t input_tiles() const { return (op.matrix.inputs + kInputs - 1) / kInputs; }
  unsigned blocks() const {
    return static_cast<unsigned>((op.outputs + kOutputs - 1) / kOutputs * input_tiles());
  }

  /// Whether inputs `begin` and `last` of an output, and so all between, have one scale.
  LIBRARIAN_KERNEL_BODY bool share_scale(std::uint64_t o, std::uint64_t begin,
                                         std::uint64_t last) const {
    const QuantisedMatrix& m = op.matrix;
    const std::uint64_t before = m.layout == CodeLayout::table_flat ? o * m.inputs : 0;
    return m.group_of_input == nullptr &&
           (before + begin) / m.scale_inputs == (before + last) / m.scale_inputs;
  }

  LIBRARIAN_KERNEL_BODY void operator()(std::byte* /*shared*/) const {
    const QuantisedMatrix& m = op.matrix;
    const std::uint64_t tiles = (m.inputs + kInputs - 1) / kInputs;
    const unsigned lane = simt::thread_index() % simt::kWarpThreads;
    const unsigned warp = simt::thread_index() / simt::kWarpThreads;
    const std::uint64_t output =
        simt::block_index_x() / tiles * kOutputs + (along_outputs ? lane : warp);
    const std::uint64_t begin = simt::block_index_x() % tiles * kInputs +
                                std::uint64_t{along_outputs ? warp : lane} * kUnit;
    if (output >= op.outputs || begin >= m.inputs) {
      return;
    }
    const std::uint64_t row = op.first + output;
    const std::uint64_t o = op.rows.first + row / op.rows.run * op.rows.stride + row % op.rows.run;
    const std::uint64_t last = begin + kUnit < m.inputs ? begin + kUnit - 1 : m.inputs - 1;
    float values[kUnit];
    if (share_scale(o, begin, last)) {
      const std::uint64_t group = begin / m.scale_inputs;
      const float scale = scale_at(m, o, begin, group);
      const std::int32_t zero = zero_at(m, o, group);
      LIBRARIAN_UNROLL
      for (unsigned j = 0; j < kUnit; ++j) {
        values[j] = begin + j < m.inputs ? decoded(m, code_at(m, o, begin + j), scale, zero) : 0.0F;
      }
    } else {
      LIBRARIAN_UNROLL
      for (unsigned j = 0; j < kUnit; ++j) {
        values[j] = begin + j < m.inputs ? decoded_element(m, o, begin + j) : 0.0F;
      }
    }
    store_unit<type>(values, op.to + output * m.inputs * kElementBytes<type>, begin, m.inputs,
                     aligned);
  }
};

/// Calls launch(kernel) with the kernel that computes `op`, as with_row_kernel() does.
/// @param op  `outputs` above 0.
template <typename Launch>
inline void with_decode_kernel(const CudaDecode& op, const Launch& launch) {
  const bool along_outputs =
      op.matrix.layout == CodeLayout::bits_by_input || op.matrix.layout == CodeLayout::awq;
  with_element(op.type, [&](auto element) {
    constexpr DType kType = decltype(element)::kType;
    along_outputs ? launch(DecodeKernel<kType, true>::of(op))
                  : launch(DecodeKernel<kType, false>::of(op));
  });
}

}  // namespace librarian::gpu_exec
