// The system's TBB is not built with ThreadSanitizer, which therefore misses that enqueue() comes
// before the task runs. Only reports on TBB's own task object are dropped ("top" is the innermost
// frame), and those on the first lock of a mutex, which is how a task meets what was handed to it;
// everything that our tasks touch under or after that lock is watched.
#if defined(__SANITIZE_THREAD__)
extern "C" const char* __tsan_default_suppressions();
extern "C" const char* __tsan_default_suppressions() {
  return "race_top:enqueue_task\n"
         "race_top:tbb::detail::d1::small_object_allocator\n"
         "race_top:__gthread_mutex_lock\n"
         "race_top:pthread_mutex_lock\n";
}
#endif
