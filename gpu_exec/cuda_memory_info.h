#pragma once
/// Memory of a GPU as its driver counts it, over all processes. Private to gpu_exec.

#include <cstdint>
#include <optional>
#include <string>

namespace librarian::gpu_exec {

/// Bytes in use on a GPU; unlike CUDA's own call this opens no context, so it can be asked before
/// and after one. Nothing if the driver's management library (NVML) is not there.
/// @param pci_bus_id  As cudaDeviceGetPCIBusId() gives it.
std::optional<std::uint64_t> gpu_bytes_in_use(const std::string& pci_bus_id);

}  // namespace librarian::gpu_exec
