#pragma once
/// Small tables that kernels read. Private to gpu_exec.

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <thread>
#include <utility>

#include "gpu_exec/cuda_runtime.h"

namespace librarian::gpu_exec {

/// A ring of slots in pinned host memory, which kernels read where it is: a copy would wait behind
/// those of weights. A slot is used again when the kernel that read it is done. Not thread-safe.
class CudaTables {
 public:
  static constexpr std::uint64_t kSlots = 32;
  static constexpr std::uint64_t kTableBytesMax = 512U << 10U;
  static constexpr std::uint64_t kHostBytes = kSlots * kTableBytesMax;
  /// Of a block, so that its tables fit even if every sample is one row.
  static constexpr std::uint64_t kRowsMax = kTableBytesMax / sizeof(CudaAttentionTile);

  /// @param memory  kHostBytes from the runtime's allocate_host().
  CudaTables(CudaRuntime& runtime, DeviceMemory memory)
      : runtime_(runtime), memory_(std::move(memory)) {}

  /// Calls launch(table) with a copy of `items`, valid for kernels that it gives to the compute
  /// queue.
  template <typename Item, typename Launch>
  void with(std::span<const Item> items, const Launch& launch) {
    LIB_CHECK(items.size_bytes() <= kTableBytesMax);
    const std::uint64_t slot = next_++ % kSlots;
    // The host is so many tables ahead that the device may still have to read this one. A device
    // that failed reads nothing.
    while (!runtime_.reached(read_[slot]).value_or(true)) {
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
    std::byte* const table = memory_.get() + slot * kTableBytesMax;
    std::memcpy(table, items.data(), items.size_bytes());
    launch(reinterpret_cast<const Item*>(table));
    read_[slot] = runtime_.mark(Queue::compute);
  }

 private:
  CudaRuntime& runtime_;
  DeviceMemory memory_;
  std::array<Ticket, kSlots> read_{};
  std::uint64_t next_ = 0;
};

}  // namespace librarian::gpu_exec
