// Launches of attention.
#include "gpu_exec/cuda_kernel_attention.h"
#include "gpu_exec/cuda_launch.h"
#include "gpu_exec/cuda_launch_kernel.h"

namespace librarian::gpu_exec {

void launch_attention(const CudaAttention& op, bool tensor_cores, void* cuda_stream) {
  if (op.tile_count == 0) {
    return;
  }
  with_attention_kernel(op, tensor_cores,
                        [&](const auto& kernel) { launch_kernel(kernel, cuda_stream); });
}

}  // namespace librarian::gpu_exec
