#include "gpu_exec/cuda_probe.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

namespace librarian::gpu_exec {
namespace {

/// No multiple of any tile's rows.
constexpr std::uint64_t kShift = 37;

/// Random bits of numbers between 2^-8 and 1 in size: sums of them round at every step.
void fill(DType type, std::byte* bytes, std::uint64_t count) {
  std::uint32_t state = 12345;
  for (std::uint64_t i = 0; i < count; ++i) {
    state = state * 1664525U + 1013904223U;
    const std::uint32_t sign = state & 0x80000000U;
    const std::uint32_t exponent = 127 - 1 - (state >> 8U & 7U);
    const std::uint32_t bits = sign | exponent << 23U | (state >> 9U & 0x7FFFFFU);
    if (type == DType::f32) {
      std::memcpy(bytes + i * 4, &bits, 4);
    } else {
      const std::uint32_t half =
          type == DType::bf16 ? bits >> 16U
                              : sign >> 16U | (exponent - 112) << 10U | (bits >> 13U & 0x3FFU);
      std::memcpy(bytes + i * 2, &half, 2);
    }
  }
}

Result<void> finish(CudaRuntime& runtime) {
  const Ticket ticket = runtime.mark(Queue::compute);
  while (true) {
    LIB_TRY(const bool reached, runtime.reached(ticket));
    if (reached) {
      return {};
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

}  // namespace

Result<bool> rows_are_alike(CudaRuntime& runtime, const ProductShape& shape,
                            const ProductPlan& plan) {
  const std::uint64_t rows = runtime.library_rows();
  const std::uint64_t shift = kShift % rows;
  const std::uint64_t element = dtype_bytes(shape.type);
  const std::uint64_t x_bytes = rows * shape.inputs * element;
  const std::uint64_t w_bytes = shape.outputs * shape.inputs * element;
  const std::uint64_t y_row = shape.outputs * dtype_bytes(shape.out);
  LIB_TRY(const DeviceMemory x, runtime.allocate(x_bytes));
  LIB_TRY(const DeviceMemory w, runtime.allocate(w_bytes));
  LIB_TRY(const DeviceMemory y, runtime.allocate(rows * y_row));
  LIB_TRY(const DeviceMemory host, runtime.allocate_host(std::max(x_bytes, rows * y_row)));
  // Weights repeat: what matters is that neighbours differ.
  fill(shape.type, host.get(), x_bytes / element);
  for (std::uint64_t at = 0; at < w_bytes; at += x_bytes) {
    const std::uint64_t bytes = std::min(x_bytes, w_bytes - at);
    runtime.copy(Queue::compute, {host.get(), w.get() + at, bytes, 1, bytes, bytes});
  }
  CudaProduct product;
  product.x = x.get();
  product.w = w.get();
  product.y = y.get();
  product.type = shape.type;
  product.out = shape.out;
  product.w_transposed = shape.w_transposed;
  product.rows = rows;
  product.inputs = product.x_stride = shape.inputs;
  product.outputs = product.y_stride = shape.outputs;
  product.w_stride = shape.w_transposed ? shape.outputs : shape.inputs;
  std::vector<std::byte> results[2];
  for (std::vector<std::byte>& result : results) {
    runtime.copy(Queue::compute, {host.get(), x.get(), x_bytes, 1, x_bytes, x_bytes});
    runtime.product(product, plan);
    LIB_TRY_VOID(finish(runtime));  // The host's memory is written next.
    const std::vector<std::byte> rows_before(host.get(), host.get() + x_bytes);
    runtime.copy(Queue::compute,
                 {y.get(), host.get(), rows * y_row, 1, rows * y_row, rows * y_row});
    LIB_TRY_VOID(finish(runtime));
    result.assign(host.get(), host.get() + rows * y_row);
    // The next time row i is what row i + shift was.
    const auto middle =
        rows_before.begin() + static_cast<std::ptrdiff_t>(shift * shape.inputs * element);
    std::rotate_copy(rows_before.begin(), middle, rows_before.end(), host.get());
  }
  std::rotate(results[0].begin(), results[0].begin() + static_cast<std::ptrdiff_t>(shift * y_row),
              results[0].end());
  return results[0] == results[1];
}

}  // namespace librarian::gpu_exec
