#pragma once
/// Launches of CUDA attention; as cuda_launch_rows.h. Private to gpu_exec.

#include <string>

#include "gpu_exec/cuda_kernels.h"

namespace librarian::gpu_exec {

/// Of no tiles it launches nothing.
/// @param op            See with_attention_kernel().
/// @param tensor_cores  Multiply 16-bit elements with them: bf16 needs compute capability 8.0.
void launch_attention(const CudaAttention& op, bool tensor_cores, void* cuda_stream);

/// What the program has for the current GPU.
struct CudaCode {
  std::string problem;   ///< Empty, or why a kernel cannot run here.
  int architecture = 0;  ///< 10 * major + minor that kernels were compiled for, at the least.
};
/// Loads every kernel, so that none takes device memory later.
CudaCode load_kernels();

}  // namespace librarian::gpu_exec
