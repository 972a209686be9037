#pragma once
/// Which instruction-set paths this machine runs, and their kernels. Private to gpu_exec.

#include <cstddef>
#include <cstdint>
#include <memory>

#include "gpu_exec/cpu_kernels.h"
#include "gpu_exec/device.h"

namespace librarian::gpu_exec {

/// The table of `isa`; only if cpu_has_isa(isa).
CpuKernels cpu_kernels(CpuIsa isa);

/// A device of other kernels: tests emulate processors with it.
/// @param path  What kind() says after "cpu-".
std::unique_ptr<Device> make_cpu_device(const char* path, const CpuKernels& kernels, int threads);

}  // namespace librarian::gpu_exec
