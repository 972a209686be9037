#pragma once
/// Parallel loops on a TBB arena of a fixed number of threads. Private to gpu_exec.

#include <atomic>
#include <cstdint>
#include <memory>

#include "base/error.h"

namespace librarian::gpu_exec {

class TaskPool {
 public:
  explicit TaskPool(int threads);
  ~TaskPool();
  TaskPool(const TaskPool&) = delete;
  TaskPool& operator=(const TaskPool&) = delete;

  int threads() const { return threads_; }

  /// Calls task(i) for every i in [0, count), on the pool's threads in any order, and waits for
  /// all. Tasks must not throw, nor start loops. Call from one thread at a time.
  template <typename Task>
  void run(std::uint64_t count, const Task& task) {
    if (threads_ == 1) {
      for (std::uint64_t i = 0; i < count; ++i) {
        task(i);
      }
      return;
    }
    // TBB orders all this already; the counter shows it to ThreadSanitizer, which cannot see into
    // TBB's library, and proves that no task was left out.
    struct Loop {
      const Task& task;
      std::atomic<std::uint64_t> finished;
    };
    Loop loop{task, 0};
    loop.finished.store(0, std::memory_order_release);
    run_calls(
        count,
        [](void* context, std::uint64_t i) {
          auto& self = *static_cast<Loop*>(context);
          static_cast<void>(self.finished.load(std::memory_order_acquire));
          self.task(i);
          self.finished.fetch_add(1, std::memory_order_acq_rel);
        },
        &loop);
    LIB_CHECK(loop.finished.load(std::memory_order_acquire) == count);
  }

  /// Inside a task: the number of the thread that runs it, in [0, threads()). A task keeps its
  /// thread, and the thread runs no other task meanwhile.
  int thread_index() const;

 private:
  struct Arena;
  void run_calls(std::uint64_t count, void (*call)(void* context, std::uint64_t i), void* context);

  const int threads_;
  std::unique_ptr<Arena> arena_;  ///< Null for one thread: then the caller does it all.
};

}  // namespace librarian::gpu_exec
