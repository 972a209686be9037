#pragma once
/// Signals as a stop token: asked once, the job ends where it is safe; asked again, at once.

#include <atomic>
#include <stop_token>
#include <thread>

namespace librarian::cli {

/// Must be made before any other thread starts: it blocks SIGINT, SIGTERM and SIGUSR1 in the
/// whole process and takes them on a thread of its own. Ignores SIGPIPE and SIGXFSZ, which would
/// end the process where an error code is enough.
class SignalStop {
 public:
  SignalStop();
  ~SignalStop();
  SignalStop(const SignalStop&) = delete;
  SignalStop& operator=(const SignalStop&) = delete;

  std::stop_token token() const { return source_.get_token(); }
  /// The signal that asked to stop; 0 if none did.
  int signal_number() const { return signal_number_; }

 private:
  void watch();

  std::stop_source source_;
  std::atomic<int> signal_number_{0};
  std::atomic<bool> ended_{false};
  std::thread thread_;
};

}  // namespace librarian::cli
