#pragma once
/// The processor's measured peak, what products are compared with. Private to gpu_exec.

#include "gpu_exec/cpu_kernels.h"
#include "gpu_exec/task_pool.h"

namespace librarian::gpu_exec {

/// Floating-point operations per second of CpuKernels::peak for `type` on all threads of `pool` at
/// once, on no more than there are processors. In processor time: other programs do not count, but
/// for what they share with ours inside a core. Takes about 10 ms.
double measured_peak_flops(const CpuKernels& kernels, DType type, TaskPool& pool);

}  // namespace librarian::gpu_exec
