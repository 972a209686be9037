#include "gpu_exec/cpu_peak.h"

#include <algorithm>
#include <ctime>
#include <numeric>
#include <thread>
#include <vector>

namespace librarian::gpu_exec {
namespace {

double thread_seconds() {
  timespec time{};
  LIB_CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) == 0);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// Of the calling thread: the best of some runs, since most things only slow one down.
double thread_peak_flops(const CpuKernels& kernels, DType type) {
  constexpr int kRuns = 8;
  constexpr double kRunSeconds = 0.001;
  std::uint64_t rounds = 256;
  double best = 0;
  for (int run = 0; run < kRuns;) {
    float sink[2] = {0.5F, 0.25F};
    const double begin = thread_seconds();
    const auto operations = static_cast<double>(kernels.peak(type, rounds, sink));
    const double seconds = thread_seconds() - begin;
    if (seconds < kRunSeconds) {
      rounds *= 2;
      continue;
    }
    best = std::max(best, operations / seconds);
    ++run;
  }
  return best;
}

}  // namespace

double measured_peak_flops(const CpuKernels& kernels, DType type, TaskPool& pool) {
  const auto processors = std::max(1U, std::thread::hardware_concurrency());
  std::vector<double> peaks(std::min(processors, static_cast<unsigned int>(pool.threads())));
  pool.run(peaks.size(), [&](std::uint64_t i) { peaks[i] = thread_peak_flops(kernels, type); });
  return std::accumulate(peaks.begin(), peaks.end(), 0.0);
}

}  // namespace librarian::gpu_exec
