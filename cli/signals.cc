#include "cli/signals.h"

#include <unistd.h>

#include <chrono>
#include <csignal>
#include <ctime>

#include "cli/exit_codes.h"

namespace librarian::cli {
namespace {

// A commit that is under way may finish; everything behind it is redone after a restart anyway.
constexpr auto kPatience = std::chrono::seconds(8);

sigset_t stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGINT, SIGTERM, SIGUSR1}) {
    sigaddset(&set, number);
  }
  return set;
}

}  // namespace

SignalStop::SignalStop() {
  const sigset_t set = stop_signals();
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  thread_ = std::thread([this] { watch(); });
}

SignalStop::~SignalStop() {
  ended_ = true;
  ::pthread_kill(thread_.native_handle(), SIGUSR1);
  thread_.join();
}

void SignalStop::watch() {
  const sigset_t set = stop_signals();
  int number = 0;
  while (::sigwait(&set, &number) != 0) {
  }
  if (ended_) {
    return;
  }
  signal_number_ = number;
  source_.request_stop();
  const timespec patience{kPatience.count(), 0};
  ::sigtimedwait(&set, nullptr, &patience);
  if (ended_) {
    return;
  }
  // Asked twice, or out of patience. The journal makes this as safe as a power cut.
  ::_exit(number == SIGINT ? kExitInterrupted : kExitTerminated);
}

}  // namespace librarian::cli
