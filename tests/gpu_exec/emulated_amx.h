#pragma once
/// The AMX path for processors without it: its kernel body over an emulation of the instructions.

#include "gpu_exec/cpu_kernels.h"

namespace librarian::gpu_exec {

/// Like amx_kernels() down to the bits for bf16 rows and weights; the rest is the portable path's
/// with wider vectors.
CpuKernels emulated_amx_kernels();

/// Instructions of the emulation that a processor would have refused: tiles without configuration.
std::uint64_t misused_tiles();

}  // namespace librarian::gpu_exec
