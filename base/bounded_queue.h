#pragma once
/// A queue between two stages: full stops the producer, closed ends the consumer.

#include <cstddef>
#include <deque>
#include <optional>
#include <stop_token>
#include <utility>

#include "base/clock.h"
#include "base/error.h"

namespace librarian {

/// FIFO of at most `items_max` items. Thread-safe for any number of producers and consumers.
template <typename T>
class BoundedQueue {
 public:
  BoundedQueue(Clock& clock, std::size_t items_max) : monitor_(clock), items_max_(items_max) {}

  /// Waits for room. @error cancelled  `stop` came first or the queue was closed; not taken.
  Result<void> push(T item, const std::stop_token& stop) {
    auto lock = monitor_.lock();
    monitor_.wait(lock, stop, [&] { return closed_ || items_.size() < items_max_; });
    if (closed_ || items_.size() >= items_max_) {
      return Error(ErrorCode::cancelled, "stopped while waiting for a full queue");
    }
    items_.push_back(std::move(item));
    monitor_.notify_all(lock);
    return {};
  }

  /// Waits for an item. Empty means: closed and drained, or `stop` was requested.
  std::optional<T> pop(const std::stop_token& stop) {
    auto lock = monitor_.lock();
    monitor_.wait(lock, stop, [&] { return closed_ || !items_.empty(); });
    if (items_.empty()) {
      return std::nullopt;
    }
    std::optional<T> item(std::move(items_.front()));
    items_.pop_front();
    monitor_.notify_all(lock);
    return item;
  }

  /// No more pushes; what is in the queue can still be popped.
  void close() {
    auto lock = monitor_.lock();
    closed_ = true;
    monitor_.notify_all(lock);
  }

 private:
  Monitor monitor_;
  const std::size_t items_max_;
  std::deque<T> items_;
  bool closed_ = false;
};

}  // namespace librarian
