// Speed of the CPU device: matrix products and one whole layer, in GFLOP per second of processor
// time (robust against other work on the machine) and of wall time.
// usage: layer_bench [--threads N] [--isa NAME] [--repeat N]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>

#include "tests/gpu_exec/exec_testing.h"

namespace librarian::gpu_exec {
namespace {

struct Options {
  int threads = 1;
  int repeats = 5;
  std::string isa;
};

double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }
double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Seconds {
  double cpu, wall;
};
/// Median processor time and least wall time of some runs, after one to warm up.
Seconds measure(int repeats, const std::function<void()>& work) {
  work();
  std::vector<double> cpu;
  std::vector<double> wall;
  for (int i = 0; i < repeats; ++i) {
    const double cpu_begin = cpu_seconds();
    const double wall_begin = wall_seconds();
    work();
    cpu.push_back(cpu_seconds() - cpu_begin);
    wall.push_back(wall_seconds() - wall_begin);
  }
  std::sort(cpu.begin(), cpu.end());
  return {cpu[cpu.size() / 2], *std::min_element(wall.begin(), wall.end())};
}

void print(const char* isa, const char* what, double gflop, Seconds seconds) {
  std::printf("%-9s %-34s %8.1f GFLOP/CPU-s  %8.1f GFLOP/s wall\n", isa, what, gflop / seconds.cpu,
              gflop / seconds.wall);
  std::fflush(stdout);
}

void bench_linear(CpuIsa isa, const Options& options, std::uint64_t rows, std::uint64_t inputs,
                  std::uint64_t outputs, DType type) {
  const auto device = cpu_device(isa, options.threads);
  TestRandom random(1);
  const Bytes x = to_bytes(random.vector(rows * inputs, 1.0F), type);
  const Bytes weights = to_bytes(random.vector(outputs * inputs, 0.02F), type);
  Bytes y(rows * outputs * dtype_bytes(type));
  const DeviceMemory packed = aligned_memory(device->packed_bytes(outputs, inputs, type));
  const DeviceMemory scratch = aligned_memory(device->scratch_bytes({}));
  const double pack_begin = wall_seconds();
  device->pack_matrix({weights.data(), type, {}, false, 0}, outputs, inputs, packed.get());
  const double pack_seconds = wall_seconds() - pack_begin;
  LinearOp op;
  op.x = x.data();
  op.y = y.data();
  op.dtype = type;
  op.rows = rows;
  op.inputs = inputs;
  op.outputs = outputs;
  op.matrix = {packed.get(), type, nullptr};
  const Seconds seconds = measure(options.repeats, [&] { device->linear(op, scratch.get(), {}); });
  char what[128];
  std::snprintf(what, sizeof what, "%llu x %llu x %llu %s (pack %.1f GB/s)",
                static_cast<unsigned long long>(rows), static_cast<unsigned long long>(inputs),
                static_cast<unsigned long long>(outputs), dtype_name(type),
                1e-9 * static_cast<double>(weights.size()) / pack_seconds);
  print(cpu_isa_name(isa), what, 2e-9 * static_cast<double>(rows * inputs * outputs), seconds);
}

class NoCaptures final : public CaptureSink {
 public:
  bool wants(CapturePoint) const override { return false; }
  Result<void> capture(CapturePoint, std::span<const std::byte>) override { return {}; }
};

/// Samples of equal length through a layer of a 1.1 B llama.
void bench_layer(CpuIsa isa, const Options& options, DType type, std::uint64_t samples,
                 std::uint64_t length) {
  LayerSpec spec;
  spec.attention.heads = 32;
  spec.attention.kv_heads = 4;
  spec.attention.head_dim = 64;
  spec.attention.scale = 0.125F;
  spec.attention.rope = default_rope(64);
  spec.mlp.width = 5632;
  const TestLayer layer = make_layer(2048, spec, type);
  const auto device = cpu_device(isa, options.threads);
  const std::uint64_t rows = samples * length;
  const auto executor = loaded_executor(layer, *device, type, rows, length);
  const std::vector<Segment> segments = segments_of(std::vector<std::uint64_t>(samples, length));
  const Bytes state = to_bytes(TestRandom(2).vector(rows * 2048, 1.0F), type);
  NoCaptures sink;
  const Seconds seconds =
      measure(options.repeats, [&] { run_block(*executor, segments, state, sink); });
  const double parameters = 2048.0 * 64 * (2 * 32 + 2 * 4) + 3.0 * 2048 * 5632;
  const double attention = 2.0 * 32 * 64 * 2 * static_cast<double>(length + 1) / 2;
  char what[128];
  std::snprintf(what, sizeof what, "layer 2048/5632 %llux%llu tokens %s",
                static_cast<unsigned long long>(samples), static_cast<unsigned long long>(length),
                dtype_name(type));
  print(cpu_isa_name(isa), what, 1e-9 * static_cast<double>(rows) * (2 * parameters + attention),
        seconds);
}

int run(const Options& options) {
  for (const CpuIsa isa : machine_isas()) {
    if (!options.isa.empty() && options.isa != cpu_isa_name(isa)) {
      continue;
    }
    for (const DType type : {DType::bf16, DType::f32}) {
      bench_linear(isa, options, 512, 1024, 1024, type);
      bench_linear(isa, options, 2048, 2048, 2048, type);
      bench_linear(isa, options, 2048, 5632, 2048, type);
      bench_linear(isa, options, 2048, 2048, 5632, type);
    }
    bench_layer(isa, options, DType::bf16, 16, 128);
    bench_layer(isa, options, DType::bf16, 1, 2048);
  }
  return 0;
}

}  // namespace
}  // namespace librarian::gpu_exec

int main(int argc, char** argv) {
  librarian::gpu_exec::Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--threads") == 0) {
      options.threads = std::atoi(argv[i + 1]);
    } else if (std::strcmp(argv[i], "--repeat") == 0) {
      options.repeats = std::max(1, std::atoi(argv[i + 1]));
    } else if (std::strcmp(argv[i], "--isa") == 0) {
      options.isa = argv[i + 1];
    } else {
      std::fprintf(stderr, "usage: layer_bench [--threads N] [--isa NAME] [--repeat N]\n");
      return 2;
    }
  }
  return librarian::gpu_exec::run(options);
}
