#pragma once
/// Products by cuBLASLt, each shape by one algorithm that sums in one order. Private to gpu_exec.

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include "base/error.h"
#include "gpu_exec/cuda_kernels.h"
#include "gpu_exec/cuda_runtime.h"

namespace librarian::gpu_exec {

/// Not thread-safe.
class CudaLibrary {
 public:
  /// Of every product: enough for full rate.
  static constexpr std::uint64_t kRows = 2048;

  /// @error internal  the library does not start on the current device.
  static Result<std::unique_ptr<CudaLibrary>> create();
  ~CudaLibrary();
  CudaLibrary(const CudaLibrary&) = delete;
  CudaLibrary& operator=(const CudaLibrary&) = delete;

  /// "cublaslt-130002"
  std::string version() const;
  /// Asks the library's heuristics, with fixed inputs and kRows rows, for algorithms that split no
  /// sum and want no workspace (in which partial sums would be added up), and takes the first.
  /// Nothing: there is none.
  /// @source cuBLAS documentation, "Results reproducibility": equal bits for equal library, GPU and
  ///         algorithm; that a row's place changes nothing is what tests/gpu checks.
  std::optional<ProductPlan> plan(const ProductShape& shape);
  /// @return  Empty, or what went wrong.
  std::string multiply(const CudaProduct& product, const ProductPlan& plan, void* cuda_stream);

 private:
  struct Impl;
  explicit CudaLibrary(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace librarian::gpu_exec
