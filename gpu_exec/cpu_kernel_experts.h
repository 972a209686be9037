// Rows on their way to and from experts; part of cpu_kernel_bodies.h.
#include "gpu_exec/cpu_kernel_topk.h"

namespace librarian::gpu_exec {
namespace {

template <typename Storage>
void scale_row(const std::byte* x, float factor, std::uint64_t width, std::byte* y) {
  const Vec factors(factor);
  for (std::uint64_t i = 0; i < width; i += kLanes) {
    const std::uint64_t at = i * Storage::kBytes;
    if (i + kLanes <= width) {
      Storage::store(Storage::load(x + at) * factors, y + at);
    } else {
      store_part<Storage>(load_part<Storage>(x + at, width - i) * factors, y + at, width - i);
    }
  }
}

void gather_tile(const GatherOp& op) {
  with_storage(op.dtype, [&](auto storage) {
    using Storage = decltype(storage);
    const std::uint64_t row_bytes = op.width * Storage::kBytes;
    for (std::uint64_t i = 0; i < op.count; ++i) {
      const std::byte* from = op.x + static_cast<std::uint64_t>(op.rows[i]) * row_bytes;
      std::byte* const to = op.y + i * row_bytes;
      if (op.factors == nullptr) {
        __builtin_memcpy(to, from, row_bytes);
      } else {
        scale_row<Storage>(from, op.factors[i], op.width, to);
      }
    }
  });
}

void combine_tile(const CombineOp& op) {
  for (std::uint64_t r = 0; r < op.count; ++r) {
    const std::uint64_t row = op.rows == nullptr ? r : static_cast<std::uint64_t>(op.rows[r]);
    float* const sums = op.sums + row * op.width;
    const float* const y = op.y + r * op.width;
    const Vec factor(op.factors == nullptr ? 1.0F : op.factors[r]);
    std::uint64_t i = 0;
    for (; i + kLanes <= op.width; i += kLanes) {
      store_f32(multiply_add(load_f32(y + i), factor, load_f32(sums + i)), sums + i);
    }
    if (i < op.width) {
      const std::uint64_t count = op.width - i;
      const auto* from = reinterpret_cast<const std::byte*>(y + i);
      auto* const to = reinterpret_cast<std::byte*>(sums + i);
      store_part<F32>(multiply_add(load_part<F32>(from, count), factor, load_part<F32>(to, count)),
                      to, count);
    }
  }
}

void round_run(const RoundOp& op) {
  with_storage(op.dtype, [&](auto storage) {
    using Storage = decltype(storage);
    std::uint64_t i = 0;
    for (; i + kLanes <= op.count; i += kLanes) {
      Storage::store(load_f32(op.x + i), op.y + i * Storage::kBytes);
    }
    if (i < op.count) {
      store_part<Storage>(
          load_part<F32>(reinterpret_cast<const std::byte*>(op.x + i), op.count - i),
          op.y + i * Storage::kBytes, op.count - i);
    }
  });
}

}  // namespace
}  // namespace librarian::gpu_exec
