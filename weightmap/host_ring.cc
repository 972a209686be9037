#include "weightmap/host_ring.h"

#include <sys/mman.h>

#include <utility>

#include "base/error.h"

namespace librarian::weightmap {
namespace {

constexpr std::uint64_t kAlignment = 64;

}  // namespace

HostRing::HostRing(std::uint64_t bytes, gpu_exec::DeviceMemory memory)
    : bytes_(slot_bytes(bytes)), memory_(std::move(memory)) {
  if (memory_ != nullptr) {
    return;
  }
  // Pages of a mapping become resident when first written, so a ring that is larger than a small
  // model needs costs nothing.
  void* pages = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  LIB_CHECK(pages != MAP_FAILED);
  // First touches of small pages would cost more than what is copied into them.
  static_cast<void>(::madvise(pages, bytes_, MADV_HUGEPAGE));
  memory_ = gpu_exec::DeviceMemory(static_cast<std::byte*>(pages),
                                   [size = bytes_](std::byte* at) { ::munmap(at, size); });
}

std::uint64_t HostRing::slot_bytes(std::uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

std::optional<std::span<std::byte>> HostRing::allocate(std::uint64_t bytes) {
  const std::uint64_t slot = slot_bytes(bytes);
  LIB_CHECK(slot <= bytes_);
  if (slots_.empty()) {
    head_ = 0;
    in_use_ = 0;
  }
  const bool wraps = head_ + slot > bytes_;
  const std::uint64_t gap = wraps ? bytes_ - head_ : 0;
  if (in_use_ + gap + slot > bytes_) {
    return std::nullopt;
  }
  // Not `gap > 0`: a slot that ends exactly at the ring's end leaves no gap and wraps all the same.
  const std::uint64_t begin = wraps ? 0 : head_;
  head_ = begin + slot;
  in_use_ += gap + slot;
  slots_.push_back(gap + slot);
  return std::span<std::byte>(memory_.get() + begin, bytes);
}

void HostRing::release_oldest() {
  LIB_CHECK(!slots_.empty());
  in_use_ -= slots_.front();
  slots_.pop_front();
}

}  // namespace librarian::weightmap
