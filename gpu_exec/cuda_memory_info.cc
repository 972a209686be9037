#include "gpu_exec/cuda_memory_info.h"

#include <dlfcn.h>

#include <memory>

namespace librarian::gpu_exec {
namespace {

// The management library comes with the driver, and its header not with the toolkit: the few
// functions as its reference gives them.
using NvmlDevice = struct NvmlDeviceRecord*;
struct NvmlMemory {
  unsigned long long total, free, used;
};
constexpr int kNvmlSuccess = 0;

struct LibraryCloser {
  void operator()(void* library) const noexcept { static_cast<void>(dlclose(library)); }
};

template <typename Function>
Function* symbol(void* library, const char* name) {
  return reinterpret_cast<Function*>(dlsym(library, name));
}

}  // namespace

std::optional<std::uint64_t> gpu_bytes_in_use(const std::string& pci_bus_id) {
  const std::unique_ptr<void, LibraryCloser> library(dlopen("libnvidia-ml.so.1", RTLD_NOW));
  if (library == nullptr) {
    return std::nullopt;
  }
  auto* const init = symbol<int()>(library.get(), "nvmlInit_v2");
  auto* const shutdown = symbol<int()>(library.get(), "nvmlShutdown");
  auto* const find =
      symbol<int(const char*, NvmlDevice*)>(library.get(), "nvmlDeviceGetHandleByPciBusId_v2");
  auto* const memory_info =
      symbol<int(NvmlDevice, NvmlMemory*)>(library.get(), "nvmlDeviceGetMemoryInfo");
  if (init == nullptr || shutdown == nullptr || find == nullptr || memory_info == nullptr ||
      init() != kNvmlSuccess) {
    return std::nullopt;
  }
  NvmlDevice device = nullptr;
  NvmlMemory memory{};
  const bool known = find(pci_bus_id.c_str(), &device) == kNvmlSuccess &&
                     memory_info(device, &memory) == kNvmlSuccess;
  static_cast<void>(shutdown());
  return known ? std::optional<std::uint64_t>(memory.used) : std::nullopt;
}

}  // namespace librarian::gpu_exec
