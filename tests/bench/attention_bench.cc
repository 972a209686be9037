// Speed of the CPU device's attention alone, in GFLOP per second of processor time (robust against
// other work on the machine; median and best) and of wall time; only keys that a query sees count.
// usage: attention_bench [--threads N] [--isa NAME] [--repeat N] [--only TEXT]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "tests/gpu_exec/exec_testing.h"

namespace librarian::gpu_exec {
namespace {

struct Options {
  int threads = 1;
  int repeats = 5;
  std::string isa;
  std::string only;
};

struct Case {
  const char* name;
  std::uint64_t samples, length;
  std::uint32_t heads, kv_heads, head_dim, window;
  bool causal;
  float softcap;
};

constexpr Case kCases[] = {
    {"1x2048 32/4x64", 1, 2048, 32, 4, 64, 0, true, 0},
    {"16x128 32/4x64", 16, 128, 32, 4, 64, 0, true, 0},
    {"1x2048 32/32x128", 1, 2048, 32, 32, 128, 0, true, 0},
    {"16x128 12/12x64", 16, 128, 12, 12, 64, 0, true, 0},
    {"1x1024 12/12x64", 1, 1024, 12, 12, 64, 0, true, 0},
    {"1x2048 8/4x256 cap", 1, 2048, 8, 4, 256, 0, true, 50},
    {"4x512 12/12x64 two-way", 4, 512, 12, 12, 64, 0, false, 0},
    {"1x32768 4/1x64 window 1024", 1, 32768, 4, 1, 64, 1024, true, 0},
    {"1x8192 4/1x128", 1, 8192, 4, 1, 128, 0, true, 0},
};

double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Query and key pairs that one head of a sample multiplies.
double visible_pairs(const Case& test) {
  double pairs = 0;
  for (std::uint64_t i = 0; i < test.length; ++i) {
    const std::uint64_t seen = test.causal ? i + 1 : test.length;
    pairs +=
        static_cast<double>(test.window == 0 ? seen : std::min<std::uint64_t>(seen, test.window));
  }
  return pairs;
}

void bench(CpuIsa isa, const Options& options, const Case& test, DType type) {
  const auto device = cpu_device(isa, options.threads);
  TestRandom random(1);
  const std::uint64_t rows = test.samples * test.length;
  const std::uint64_t kv_count = rows * test.kv_heads * test.head_dim;
  const Bytes q = to_bytes(random.vector(rows * test.heads * test.head_dim, 2.0F), type);
  const Bytes k = to_bytes(random.vector(kv_count, 1.0F), type);
  const Bytes v = to_bytes(random.vector(kv_count, 1.0F), type);
  // As in an executor: all in the device's memory.
  const std::uint64_t scratch_bytes =
      device->scratch_bytes({test.head_dim, test.heads / test.kv_heads});
  const auto memory = device->allocate(scratch_bytes + q.size() + k.size() + v.size());
  std::byte* const out = memory->get() + scratch_bytes;
  std::copy(k.begin(), k.end(), out + q.size());
  std::copy(v.begin(), v.end(), out + q.size() + k.size());
  const auto segments = segments_of(std::vector<std::uint64_t>(test.samples, test.length));
  AttentionOp op;
  op.q = out;
  op.k = out + q.size();
  op.v = out + q.size() + k.size();
  op.dtype = type;
  op.heads = test.heads;
  op.kv_heads = test.kv_heads;
  op.head_dim = test.head_dim;
  op.scale = 1.0F / std::sqrt(static_cast<float>(test.head_dim));
  op.causal = test.causal;
  op.window = test.window;
  op.softcap = test.softcap;
  op.segments = segments;
  std::vector<double> cpu;
  double wall = HUGE_VAL;
  for (int i = 0; i <= options.repeats; ++i) {
    std::copy(q.begin(), q.end(), out);  // Or the scores would shrink run by run.
    const std::clock_t cpu_begin = std::clock();
    const double wall_begin = wall_seconds();
    device->attention(op, memory->get(), {});
    if (i > 0) {  // The first run warms up.
      cpu.push_back(static_cast<double>(std::clock() - cpu_begin) / CLOCKS_PER_SEC);
      wall = std::min(wall, wall_seconds() - wall_begin);
    }
  }
  std::sort(cpu.begin(), cpu.end());
  const double gflop =
      4e-9 * test.heads * test.head_dim * static_cast<double>(test.samples) * visible_pairs(test);
  std::printf("%-9s %-28s %-5s %8.1f GFLOP/CPU-s (best %6.1f)  %8.1f GFLOP/s wall\n",
              cpu_isa_name(isa), test.name, dtype_name(type), gflop / cpu[cpu.size() / 2],
              gflop / cpu[0], gflop / wall);
  std::fflush(stdout);
}

}  // namespace
}  // namespace librarian::gpu_exec

int main(int argc, char** argv) {
  using namespace librarian::gpu_exec;
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--threads") == 0) {
      options.threads = std::atoi(argv[i + 1]);
    } else if (std::strcmp(argv[i], "--repeat") == 0) {
      options.repeats = std::max(1, std::atoi(argv[i + 1]));
    } else if (std::strcmp(argv[i], "--isa") == 0) {
      options.isa = argv[i + 1];
    } else if (std::strcmp(argv[i], "--only") == 0) {
      options.only = argv[i + 1];
    } else {
      std::fprintf(
          stderr, "usage: attention_bench [--threads N] [--isa NAME] [--repeat N] [--only TEXT]\n");
      return 2;
    }
  }
  for (const CpuIsa isa : machine_isas()) {
    if (!options.isa.empty() && options.isa != cpu_isa_name(isa)) {
      continue;
    }
    for (const Case& test : kCases) {
      for (const DType type : {DType::bf16, DType::f32}) {
        if (std::string(test.name).find(options.only) != std::string::npos) {
          bench(isa, options, test, type);
        }
      }
    }
  }
  return 0;
}
