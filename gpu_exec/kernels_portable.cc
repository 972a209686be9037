// Baseline of the processor family, no flags: vectors of four through the compiler's extension.
#include <cstdint>

namespace librarian::gpu_exec {
namespace {

constexpr std::uint64_t kLanes = 4;
constexpr bool kBf16InPairs = false;

}  // namespace
}  // namespace librarian::gpu_exec

#include "gpu_exec/cpu_vector_portable.h"

namespace librarian::gpu_exec {
namespace {

constexpr int kMicroRows = 4;
constexpr int kRowsReadTwice = 0;

}  // namespace
}  // namespace librarian::gpu_exec

#include "gpu_exec/cpu_kernel_bodies.h"

namespace librarian::gpu_exec {

const CpuKernels& portable_kernels() { return kKernels; }

}  // namespace librarian::gpu_exec
