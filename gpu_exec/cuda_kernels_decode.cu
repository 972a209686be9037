// Launches that decode quantised matrices.
#include "gpu_exec/cuda_kernel_decode.h"
#include "gpu_exec/cuda_launch_kernel.h"
#include "gpu_exec/cuda_launch_rows.h"

namespace librarian::gpu_exec {

void launch_decode(const CudaDecode& op, void* cuda_stream) {
  if (op.outputs != 0) {
    with_decode_kernel(op, [&](const auto& kernel) { launch_kernel(kernel, cuda_stream); });
  }
}

}  // namespace librarian::gpu_exec
