// Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c: nothing here may
// run before the CPU was asked.
#include "gpu_exec/cpu_vector_avx512.h"

namespace librarian::gpu_exec {
namespace {

constexpr int kMicroRows = 14;  // 28 sums, two weights and a broadcast of 32 registers.
// A number that two sums need is read for each of them as an operand of its multiply-add, which
// takes one instruction less than reading it once before. For all rows it would take more reads
// than a core can do.
constexpr int kRowsReadTwice = 10;

}  // namespace
}  // namespace librarian::gpu_exec

#include "gpu_exec/cpu_kernel_bodies.h"

namespace librarian::gpu_exec {

const CpuKernels& avx512_kernels() { return kKernels; }

}  // namespace librarian::gpu_exec
