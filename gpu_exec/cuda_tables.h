#pragma once
/// Small tables that kernels read, on their way to the device. Private to gpu_exec.

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

/// A ring of pinned slots. A table is copied in the order of the compute queue, so one place on the
/// device is enough: the copy comes after the kernels that read the table before. Not thread-safe.
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

  /// @param place  kTableBytesMax on the device.
  /// @return       `place`; valid for kernels until the next upload to it.
  template <typename Item>
  const Item* upload(std::span<const Item> items, std::byte* place) {
    const std::uint64_t bytes = items.size_bytes();
    LIB_CHECK(bytes <= kTableBytesMax);
    const std::uint64_t slot = next_++ % kSlots;
    // The host is so many tables ahead that the device may still have to read this one. A device
    // that failed reads nothing.
    while (!runtime_.reached(sent_[slot]).value_or(true)) {
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
    std::byte* const from = memory_.get() + slot * kTableBytesMax;
    std::memcpy(from, items.data(), bytes);
    runtime_.copy(Queue::compute, {from, place, bytes, 1, bytes, bytes});
    sent_[slot] = runtime_.mark(Queue::compute);
    return reinterpret_cast<const Item*>(place);
  }

 private:
  CudaRuntime& runtime_;
  DeviceMemory memory_;
  std::array<Ticket, kSlots> sent_{};
  std::uint64_t next_ = 0;
};

}  // namespace librarian::gpu_exec
