// Nothing but arithmetic, to measure the processor's peak; part of cpu_kernel_bodies.h.

namespace librarian::gpu_exec {
namespace {

/// As CpuKernels::peak: as many independent sums as the product's micro kernel has.
inline std::uint64_t peak_of_vectors(DType /*type*/, std::uint64_t rounds, float* sink) {
  constexpr int kSums = 2 * kMicroRows;
  const Vec x(sink[0]);
  const Vec y(sink[1]);
  Vec sum[kSums];
#pragma GCC unroll 32
  for (Vec& one : sum) {
    one = y;
  }
  for (std::uint64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 32
    for (Vec& one : sum) {
      one = multiply_add(one, x, y);
    }
  }
  for (int i = 1; i < kSums; ++i) {
    sum[0] = sum[0] + sum[i];
  }
  alignas(64) float lanes[kLanes];
  F32::store(sum[0], reinterpret_cast<std::byte*>(lanes));
  sink[0] = lanes[0];
  return rounds * kSums * kLanes * 2;
}

}  // namespace
}  // namespace librarian::gpu_exec
