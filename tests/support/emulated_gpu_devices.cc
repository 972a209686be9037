// The command line on GPUs that are not there, for tests of whole jobs: linked with cli/main.cc,
// what is here takes the place of the library's own way to open a GPU.
//   --device cuda:0  compute capability 8.0, our own products
//   --device cuda:1  as 0, with a "library" for products that insists on 32 rows
//   --device cuda:2  compute capability 7.5, without bf16 tensor cores
//   --device cuda:3  as 0, with copies before kernels whenever they may: the same kind of device
// --device-memory is for arenas alone: nothing here takes memory for a context.
#include <array>
#include <string>

#include "base/units.h"
#include "gpu_exec/cuda_device.h"
#include "tests/support/emulated_cuda.h"

namespace librarian::gpu_exec {
namespace {

constexpr std::uint64_t kMemoryBytes = 1ULL << 30U;
// For plans of large models: nothing is taken before a job runs.
constexpr std::uint64_t kMemoryBytesMax = 64ULL << 30U;
constexpr std::array<EmulatedCudaOptions, 4> kGpus{
    EmulatedCudaOptions{8, 0, 0, 1}, EmulatedCudaOptions{8, 0, 32, 2},
    EmulatedCudaOptions{7, 5, 0, 3}, EmulatedCudaOptions{8, 0, 0, 4, true}};

}  // namespace

Result<std::unique_ptr<Device>> make_cuda_device(const CudaOptions& options) {
  if (static_cast<std::size_t>(options.index) >= kGpus.size()) {
    return Error(ErrorCode::invalid_argument, "--device cuda:" + std::to_string(options.index) +
                                                  ": there are " + std::to_string(kGpus.size()) +
                                                  " emulated GPUs");
  }
  const std::uint64_t bytes = options.memory_bytes.value_or(kMemoryBytes);
  if (bytes > kMemoryBytesMax) {
    return Error(ErrorCode::does_not_fit, "--device-memory " + format_bytes(bytes) +
                                              ": the emulated GPU has " +
                                              format_bytes(kMemoryBytesMax));
  }
  return make_cuda_device(make_emulated_cuda(kGpus.at(static_cast<std::size_t>(options.index))),
                          bytes);
}

}  // namespace librarian::gpu_exec
