#pragma once
/// A device on an NVIDIA GPU. Built with LIBRARIAN_WITH_CUDA; without, opening one says how to get
/// it. No CUDA header is needed to read this.

#include <cstdint>
#include <memory>
#include <optional>

#include "base/error.h"
#include "gpu_exec/device.h"

namespace librarian::gpu_exec {

class CudaRuntime;

struct CudaOptions {
  int index = 0;  ///< As CUDA counts GPUs.
  /// Most memory to use of it, context and modules included; absent: what is free, less a reserve.
  std::optional<std::uint64_t> memory_bytes;
};

/// Whether results of this device were checked on hardware and committed; until then it is not
/// chosen by itself, and says so.
inline constexpr bool kCudaProvenOnHardware = false;

/// @error invalid_argument  this build has no CUDA, or there is no such GPU.
/// @error does_not_fit      the GPU has not the memory asked for.
Result<std::unique_ptr<Device>> make_cuda_device(const CudaOptions& options);

/// A device over a runtime; tests bring their own.
/// @param memory_bytes  For arenas alone.
Result<std::unique_ptr<Device>> make_cuda_device(std::unique_ptr<CudaRuntime> runtime,
                                                 std::uint64_t memory_bytes);

}  // namespace librarian::gpu_exec
