// Where CUDA was left out of the build.
#include <string>

#include "gpu_exec/cuda_device.h"

namespace librarian::gpu_exec {

Result<std::unique_ptr<Device>> make_cuda_device(const CudaOptions& options) {
  return Error(
      ErrorCode::invalid_argument,
      "--device cuda:" + std::to_string(options.index) +
          ": this librarian was built without CUDA; with the CUDA toolkit (nvcc) installed, "
          "`cmake --preset cuda && cmake --build --preset cuda` builds one that has it, in "
          "build/cuda/cli/librarian");
}

}  // namespace librarian::gpu_exec
