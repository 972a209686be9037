#pragma once
/// A GPU that is not there: the CUDA device's kernels run on the processor, and its queues run as
/// late and in as odd an order as the tickets allow. What the device or an executor forgot to wait
/// for shows as wrong numbers.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gpu_exec/cuda_runtime.h"

namespace librarian::gpu_exec {

struct EmulatedCudaOptions {
  int major = 8, minor = 0;  ///< Below 8 without bf16 tensor cores.
  /// A "library" whose sums depend on outputs and on the number of rows, as a real one's may, and
  /// which insists on so many rows; 0: none.
  std::uint64_t library_rows = 0;
  /// Which of the queues that could go on goes on: another order for each.
  std::uint64_t seed = 1;
  bool copies_first = false;  ///< Instead: copies before kernels, whenever they may.
  std::uint64_t fails_after = ~std::uint64_t{0};  ///< Pieces of work done before all else fails.
  bool library_rows_differ = false;  ///< The library's sums depend on a row's place, too.
};

/// What happened, in the order in which it was done (not asked for).
struct EmulatedCudaRecord {
  std::vector<std::uint64_t> allocations, host_allocations;
  std::vector<std::string> done;  ///< "weights copy 128", "compute norm", ...
};

/// @param record  Filled as things happen, if not null; must outlive the runtime.
std::unique_ptr<CudaRuntime> make_emulated_cuda(const EmulatedCudaOptions& options,
                                                EmulatedCudaRecord* record = nullptr);

}  // namespace librarian::gpu_exec
