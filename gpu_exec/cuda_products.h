#pragma once
/// Which way a product goes: the library's, if rows keep their bits there, or our own kernel's.
/// Private to gpu_exec.

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "gpu_exec/cuda_runtime.h"

namespace librarian::gpu_exec {

/// Not thread-safe.
class CudaProducts {
 public:
  /// @param runtime  Must outlive this.
  explicit CudaProducts(CudaRuntime& runtime) : runtime_(runtime) {}

  /// As Device::plan_products().
  /// @param tile_outputs  Outputs of a product whose sums are finished apart, at most.
  Result<std::vector<std::string>> plan(std::span<const ProductSize> sizes, DType type,
                                        std::uint64_t tile_outputs);
  /// Goes the way that was planned for its shape; if none was, our own kernel's. The library reads
  /// and writes whole multiples of its rows.
  void multiply(const CudaProduct& product);

  bool on_tensor_cores(DType type) const {
    return type == DType::f16 || (type == DType::bf16 && runtime_.properties().has_bf16());
  }

 private:
  ProductPlan own_plan(DType type) const;
  Result<void> plan_shape(const ProductShape& shape);

  CudaRuntime& runtime_;
  std::map<ProductShape, ProductPlan> plans_;
};

}  // namespace librarian::gpu_exec
