#pragma once
/// Which instruction-set paths this machine runs, and their kernels. Private to gpu_exec.

#include <cstddef>
#include <cstdint>

#include "gpu_exec/cpu_kernels.h"
#include "gpu_exec/device.h"

namespace librarian::gpu_exec {

/// The table of `isa`; only if cpu_has_isa(isa).
const CpuKernels& cpu_kernels(CpuIsa isa);

}  // namespace librarian::gpu_exec
