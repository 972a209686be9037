// Never instrumented for ThreadSanitizer (see CMakeLists.txt): TBB's headers and its library make
// one synchronisation, of which it would see half.
#include "gpu_exec/task_pool.h"

#include <tbb/global_control.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <algorithm>

namespace librarian::gpu_exec {

struct TaskPool::Arena {
  explicit Arena(int threads)
      : limit(tbb::global_control::max_allowed_parallelism,
              std::max<std::size_t>(
                  static_cast<std::size_t>(threads),
                  tbb::global_control::active_value(tbb::global_control::max_allowed_parallelism))),
        arena(threads) {}
  // More threads than CPUs is the user's choice: without this TBB warns on standard error.
  tbb::global_control limit;
  tbb::task_arena arena;
};

TaskPool::TaskPool(int threads)
    : threads_(threads), arena_(threads > 1 ? std::make_unique<Arena>(threads) : nullptr) {}
TaskPool::~TaskPool() = default;

int TaskPool::thread_index() const {
  const int index = threads_ == 1 ? 0 : tbb::this_task_arena::current_thread_index();
  LIB_CHECK(index >= 0 && index < threads_);
  return index;
}

void TaskPool::run_calls(std::uint64_t count, void (*call)(void* context, std::uint64_t i),
                         void* context) {
  using Range = tbb::blocked_range<std::uint64_t>;
  arena_->arena.execute([&] {
    tbb::parallel_for(
        Range(0, count, 1),
        [&](const Range& range) {
          for (std::uint64_t i = range.begin(); i < range.end(); ++i) {
            call(context, i);
          }
        },
        tbb::simple_partitioner());
  });
}

}  // namespace librarian::gpu_exec
