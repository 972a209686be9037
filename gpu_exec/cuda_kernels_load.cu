// Loading kernels before they are needed.
#include <algorithm>

#include "gpu_exec/cuda_launch.h"
#include "gpu_exec/cuda_launch_kernel.h"

namespace librarian::gpu_exec {

CudaCode load_kernels() {
  CudaCode code;
  for (const void* kernel : kernels()) {
    cudaFuncAttributes attributes{};
    // Asking for a kernel's attributes loads it.
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      code.problem = cudaGetErrorString(error);
      return code;
    }
    code.architecture = code.architecture == 0 ? attributes.ptxVersion
                                               : std::min(code.architecture, attributes.ptxVersion);
  }
  return code;
}

}  // namespace librarian::gpu_exec
