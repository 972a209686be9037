#pragma once
/// Host slots for weights in flight: one allocation, handed out and given back in the same order.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>

#include "gpu_exec/device.h"

namespace librarian::weightmap {

/// First-in-first-out allocator over one buffer. Not thread-safe. Every slot is contiguous and
/// aligned to 64 bytes; a slot that does not fit behind the last one begins at the start again.
class HostRing {
 public:
  /// @param memory  slot_bytes(bytes) to use, aligned to 64, or null: pages of its own.
  explicit HostRing(std::uint64_t bytes, gpu_exec::DeviceMemory memory = nullptr);
  ~HostRing() = default;
  HostRing(const HostRing&) = delete;
  HostRing& operator=(const HostRing&) = delete;

  /// Bytes that slots of these sizes occupy at most when they are in the ring together.
  static std::uint64_t slot_bytes(std::uint64_t bytes);

  /// A slot of `bytes`, or nothing until enough older slots were given back. An empty ring takes
  /// any slot up to its size.
  std::optional<std::span<std::byte>> allocate(std::uint64_t bytes);
  /// Gives the oldest slot back. There must be one.
  void release_oldest();

  std::uint64_t bytes() const { return bytes_; }
  std::uint64_t bytes_in_use() const { return in_use_; }

 private:
  std::uint64_t bytes_;
  gpu_exec::DeviceMemory memory_;
  std::uint64_t head_ = 0;           // Where the next slot begins.
  std::uint64_t in_use_ = 0;         // Slots and the gaps before them.
  std::deque<std::uint64_t> slots_;  // Bytes of each slot with its gap, oldest first.
};

}  // namespace librarian::weightmap
