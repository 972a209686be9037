// Launches of matrix products.
#include "gpu_exec/cuda_kernel_products.h"
#include "gpu_exec/cuda_launch_kernel.h"
#include "gpu_exec/cuda_launch_rows.h"

namespace librarian::gpu_exec {

void launch_product(const CudaProduct& op, bool tensor_cores, void* cuda_stream) {
  if (op.rows == 0 || op.outputs == 0) {
    return;
  }
  with_product_kernel(op, tensor_cores,
                      [&](const auto& kernel) { launch_kernel(kernel, cuda_stream); });
}

}  // namespace librarian::gpu_exec
