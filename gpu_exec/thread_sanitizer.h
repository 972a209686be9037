#pragma once
/// Tells ThreadSanitizer what TBB's own (uninstrumented) library guarantees: everything before a
/// parallel loop happens before its tasks, and these before what follows it. Empty otherwise.

#if defined(__SANITIZE_THREAD__)
#define LIBRARIAN_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define LIBRARIAN_THREAD_SANITIZER 1
#endif
#endif

#ifdef LIBRARIAN_THREAD_SANITIZER
#include <sanitizer/tsan_interface.h>
#endif

namespace librarian::gpu_exec {

/// One parallel loop.
class ThreadSanitizerFence {
 public:
#ifdef LIBRARIAN_THREAD_SANITIZER
  void before_tasks() { __tsan_release(&begin_); }
  void task_begins() { __tsan_acquire(&begin_); }
  void task_ends() { __tsan_release(&end_); }
  void after_tasks() { __tsan_acquire(&end_); }

 private:
  char begin_ = 0;
  char end_ = 0;
#else
  void before_tasks() {}
  void task_begins() {}
  void task_ends() {}
  void after_tasks() {}
#endif
};

}  // namespace librarian::gpu_exec
