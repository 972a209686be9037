#include "base/byte_budget.h"

#include <algorithm>
#include <string>

namespace librarian {

Result<void> ByteBudget::acquire(std::uint64_t bytes, const std::stop_token& stop) {
  if (bytes > bytes_max_) {
    return Error(ErrorCode::invalid_argument, "asked for " + std::to_string(bytes) +
                                                  " bytes of a budget of " +
                                                  std::to_string(bytes_max_));
  }
  auto lock = monitor_.lock();
  if (!monitor_.wait(lock, stop, [&] { return bytes_in_use_ + bytes <= bytes_max_; })) {
    return Error(ErrorCode::cancelled, "stopped while waiting for buffer space");
  }
  bytes_in_use_ += bytes;
  bytes_peak_ = std::max(bytes_peak_, bytes_in_use_);
  return {};
}

void ByteBudget::release(std::uint64_t bytes) {
  auto lock = monitor_.lock();
  LIB_CHECK(bytes <= bytes_in_use_);
  bytes_in_use_ -= bytes;
  monitor_.notify_all(lock);
}

std::uint64_t ByteBudget::bytes_in_use() {
  auto lock = monitor_.lock();
  return bytes_in_use_;
}

std::uint64_t ByteBudget::bytes_peak() {
  auto lock = monitor_.lock();
  return bytes_peak_;
}

}  // namespace librarian
