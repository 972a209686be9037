#pragma once
/// What a device does for mixtures of experts besides products of matrices. Pointers, queues and
/// bits are as Device says.

#include <cstddef>
#include <cstdint>

#include "gpu_exec/model_spec.h"

namespace librarian::gpu_exec {

/// Experts of each row and their weights from the router's products, in f32.
struct RouteOp {
  const float* products = nullptr;  ///< [rows, experts], bias included.
  std::uint64_t rows = 0;
  const MoeSpec* moe = nullptr;        ///< Host memory.
  const float* select_bias = nullptr;  ///< [experts], or null.
  std::int32_t* ids = nullptr;         ///< [rows, top_k], the best first; equal ones by number.
  float* weights = nullptr;            ///< [rows, top_k] of `ids`.
  float* shared_products = nullptr;    ///< [rows] become their sigmoids; or null.
};

/// y[i] = x[rows[i]] * factors[i], with one rounding.
struct GatherOp {
  const std::byte* x = nullptr;        ///< [.., width] row-major, `dtype`.
  const std::int32_t* rows = nullptr;  ///< [count]
  const float* factors = nullptr;      ///< [count], or null: 1.
  std::byte* y = nullptr;              ///< [count, width], `dtype`; must not overlap x.
  DType dtype = DType::bf16;
  std::uint64_t count = 0, width = 0;
};

/// sums[rows[i]] += y[i] * factors[i], in f32.
struct CombineOp {
  float* sums = nullptr;               ///< [.., width] row-major.
  const std::int32_t* rows = nullptr;  ///< [count], none twice; or null: row i.
  const float* factors = nullptr;      ///< [count], or null: 1.
  const float* y = nullptr;            ///< [count, width]
  std::uint64_t count = 0, width = 0;
};

/// y = x, rounded.
struct RoundOp {
  const float* x = nullptr;
  std::byte* y = nullptr;  ///< `dtype`; must not overlap x.
  DType dtype = DType::bf16;
  std::uint64_t count = 0;
};

/// Most experts that route() takes.
inline constexpr std::uint32_t kExpertsMax = 1024;

}  // namespace librarian::gpu_exec
