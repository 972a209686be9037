#pragma once
/// What executors ask of a device, at the granularity of a kernel call. The CPU device is the
/// reference; others are checked against it.

#include <cstdint>
#include <memory>
#include <string>

#include "base/error.h"

namespace librarian::gpu_exec {

// (operations to be defined by the owner of this folder)
class Device;

/// Instruction-set path of the CPU device. Results are equal bit for bit on one path, and differ
/// in low bits between paths.
enum class CpuIsa : std::uint8_t { portable, avx2, avx512 };
const char* cpu_isa_name(CpuIsa isa);
/// The best path that this machine runs and this program has.
CpuIsa best_cpu_isa();

/// @param threads  Worker threads for kernels, at least 1.
/// @error invalid_argument  this machine cannot run `isa`.
Result<std::unique_ptr<Device>> make_cpu_device(CpuIsa isa, int threads);

}  // namespace librarian::gpu_exec
