#pragma once
/// How .cu files launch the kernels that with_..._kernel() choose. Private to gpu_exec.

#include <cstddef>
#include <vector>

namespace librarian::gpu_exec {

/// Blocks that a multiprocessor shall have room for: bounds the registers of a thread.
template <typename Kernel>
inline constexpr unsigned kKernelBlocksMin =
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    1;  // There shared memory is what limits the blocks, and addresses take more registers.
#else
    Kernel::kBlocksMin;
#endif

/// @tparam Kernel  See with_product_kernel().
template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, kKernelBlocksMin<Kernel>)
    run_kernel(Kernel kernel) {
  extern __shared__ __align__(16) std::byte shared[];
  kernel(shared);
}

/// Every kernel of this program.
inline std::vector<const void*>& kernels() {
  static std::vector<const void*> all;
  return all;
}
/// Enters a kernel there before main(), once launch_kernel() names it.
template <typename Kernel>
inline const bool kKernelEntered = [] {
  kernels().push_back(reinterpret_cast<const void*>(&run_kernel<Kernel>));
  return true;
}();

template <typename Kernel>
void launch_kernel(const Kernel& kernel, void* cuda_stream) {
  static_cast<void>(kKernelEntered<Kernel>);
  if constexpr (Kernel::kSharedBytes > 48 * 1024) {
    // More than every GPU grants unasked. A refusal shows in the launch.
    static_cast<void>(cudaFuncSetAttribute(run_kernel<Kernel>,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(Kernel::kSharedBytes)));
  }
  run_kernel<<<kernel.blocks(), Kernel::kThreads, Kernel::kSharedBytes,
               static_cast<cudaStream_t>(cuda_stream)>>>(kernel);
}

}  // namespace librarian::gpu_exec
