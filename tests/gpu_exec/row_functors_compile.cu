// Goal: the arithmetic that CPU and GPU share stays compilable for a GPU.
// Method: every functor used in a kernel, compiled (not run) for real architectures. The CUDA device
// itself is not built yet; this keeps its foundation from rotting.
#include "gpu_exec/row_functors.h"

namespace librarian::gpu_exec {

// One block a row: an RMS norm, as a device would write it.
__global__ void norm_rows(const std::uint16_t* x, const float* weight, std::uint64_t width,
                          float epsilon, std::uint16_t* y) {
  const std::uint16_t* row = x + blockIdx.x * width;
  float squares = 0;
  for (std::uint64_t i = 0; i < width; ++i) {
    const float value = bf16_to_f32(row[i]);
    squares = multiply_add(value, value, squares);
  }
  const float inverse = inverse_rms(squares, width, epsilon);
  for (std::uint64_t i = threadIdx.x; i < width; i += blockDim.x) {
    y[blockIdx.x * width + i] = f32_to_bf16(normalised(bf16_to_f32(row[i]), 0.0F, inverse, weight[i]));
  }
}

__global__ void gate_and_turn(const std::uint16_t* gate, const std::uint16_t* up, float* low,
                              float* high, const float* cosine, const float* sine,
                              std::uint16_t* y) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = f32_to_f16(silu(f16_to_f32(gate[i])) * f16_to_f32(up[i]));
  const float turned_low = rope_low(low[i], high[i], cosine[i], sine[i]);
  const float turned_high = rope_high(low[i], high[i], cosine[i], sine[i]);
  low[i] = maximum(turned_low, minimum(turned_high, exp_of(turned_low)));
  high[i] = scale_by_power_of_two(turned_high, 1.0F);
}

}  // namespace librarian::gpu_exec
