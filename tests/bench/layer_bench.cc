// Speed of the CPU device: matrix products and one whole layer, in GFLOP per second of processor
// time (robust against other work on the machine) and of wall time. All data are random: zeros are
// faster on some machines.
// usage: layer_bench [--threads N] [--isa NAME] [--repeat N] [--dtypes LIST] [--sizes LIST]
//                    [--layers LIST] [--json] [--paced]
//   --isa    all (the default), best (what the program itself would take), or a path's name
//   --dtypes bf16,f32
//   --sizes  ROWSxINPUTSxOUTPUTS,... or none
//   --layers SAMPLESxTOKENS,... or none
//   --json   one line per repetition instead of one per case
//   --paced  each repetition waits for a line on standard input, so that a script can take turns
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <iostream>
#include <sstream>

#include "tests/gpu_exec/exec_testing.h"

namespace librarian::gpu_exec {
namespace {

using Shape = std::vector<std::uint64_t>;

struct Options {
  int threads = 1;
  int repeats = 5;
  std::string isa = "all";
  bool json = false;
  bool paced = false;
  std::vector<DType> dtypes{DType::bf16, DType::f32};
  /// Rows, inputs, outputs; rows as many as keep the caches honest.
  std::vector<Shape> sizes{{512, 1024, 1024},  {4096, 1024, 1024}, {2048, 2048, 2048},
                           {2048, 2048, 5632}, {2048, 5632, 2048}, {2048, 4096, 4096},
                           {4096, 4096, 4096}};
  /// Samples, tokens of each.
  std::vector<Shape> layers{{16, 128}, {1, 2048}};
};

double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }
double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// What is measured: its name and how much arithmetic one repetition is.
struct Case {
  CpuIsa isa;
  std::string kind;  ///< "linear" or "layer".
  Shape shape;
  DType dtype;
  double gflop;
  double pack_seconds;  ///< Processor time for the weights, once per layer; 0: not measured.
};

std::string shape_text(const Shape& shape) {
  std::string text;
  for (const std::uint64_t size : shape) {
    text += (text.empty() ? "" : "x") + std::to_string(size);
  }
  return text;
}

struct Seconds {
  double cpu, wall;
};

void print_repetition(const Case& what, int threads, Seconds seconds) {
  std::printf(
      "{\"kind\": \"%s\", \"shape\": \"%s\", \"dtype\": \"%s\", \"isa\": \"%s\", \"threads\": %d, "
      "\"gflop\": %.3f, \"pack_cpu_s\": %.6f, \"cpu_s\": %.6f, \"wall_s\": %.6f}\n",
      what.kind.c_str(), shape_text(what.shape).c_str(), dtype_name(what.dtype),
      cpu_isa_name(what.isa), threads, what.gflop, what.pack_seconds, seconds.cpu, seconds.wall);
  std::fflush(stdout);
}

void print_medians(const Case& what, std::vector<double> cpu, std::vector<double> wall) {
  std::sort(cpu.begin(), cpu.end());
  std::sort(wall.begin(), wall.end());
  const std::size_t middle = cpu.size() / 2;
  std::printf("%-9s %-6s %-16s %-4s %8.1f GFLOP/CPU-s  %8.1f GFLOP/s wall", cpu_isa_name(what.isa),
              what.kind.c_str(), shape_text(what.shape).c_str(), dtype_name(what.dtype),
              what.gflop / cpu[middle], what.gflop / wall[middle]);
  if (what.pack_seconds > 0) {
    std::printf("  (pack %.1f CPU-ms)", 1e3 * what.pack_seconds);
  }
  std::printf("\n");
  std::fflush(stdout);
}

/// Runs `work` once to warm up and then as often as asked, printing what was measured.
void measure(const Options& options, const Case& what, const std::function<void()>& work) {
  work();
  std::vector<double> cpu;
  std::vector<double> wall;
  for (int i = 0; i < options.repeats; ++i) {
    std::string line;
    if (options.paced && !std::getline(std::cin, line)) {
      return;
    }
    const double cpu_begin = cpu_seconds();
    const double wall_begin = wall_seconds();
    work();
    cpu.push_back(cpu_seconds() - cpu_begin);
    wall.push_back(wall_seconds() - wall_begin);
    if (options.json) {
      print_repetition(what, options.threads, {cpu.back(), wall.back()});
    }
  }
  if (!options.json) {
    print_medians(what, std::move(cpu), std::move(wall));
  }
}

void bench_linear(CpuIsa isa, const Options& options, const Shape& shape, DType type) {
  const std::uint64_t rows = shape[0];
  const std::uint64_t inputs = shape[1];
  const std::uint64_t outputs = shape[2];
  const auto device = cpu_device(isa, options.threads);
  TestRandom random(1);
  const Bytes x = to_bytes(random.vector(rows * inputs, 1.0F), type);
  const Bytes weights = to_bytes(random.vector(outputs * inputs, 0.02F), type);
  // As in an executor: all in the device's memory.
  const std::uint64_t packed_bytes = device->packed_bytes(outputs, inputs, type);
  const std::uint64_t scratch_bytes = device->scratch_bytes({});
  const std::uint64_t y_bytes = rows * outputs * dtype_bytes(type);
  const auto memory = device->allocate(packed_bytes + scratch_bytes + x.size() + y_bytes);
  std::byte* const packed = memory->get();
  std::byte* const scratch = packed + packed_bytes;
  LinearOp op;
  op.x = scratch + scratch_bytes;
  op.y = scratch + scratch_bytes + x.size();
  op.dtype = type;
  op.rows = rows;
  op.inputs = inputs;
  op.outputs = outputs;
  op.matrix = {packed, type, nullptr};
  std::copy(x.begin(), x.end(), scratch + scratch_bytes);
  const auto pack = [&] {
    device->pack_matrix({weights.data(), type, {}, false, 0}, outputs, inputs, packed);
  };
  pack();  // The first time also starts threads.
  const double pack_begin = cpu_seconds();
  pack();
  const double pack_seconds = cpu_seconds() - pack_begin;
  const double gflop = 2e-9 * static_cast<double>(rows * inputs * outputs);
  measure(options, {isa, "linear", shape, type, gflop, pack_seconds},
          [&] { device->linear(op, scratch, {}); });
}

/// Samples of equal length through a layer of a 1.1 B llama.
void bench_layer(CpuIsa isa, const Options& options, const Shape& shape, DType type) {
  const std::uint64_t samples = shape[0];
  const std::uint64_t length = shape[1];
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
  RecordingSink sink;
  sink.refused = {{CapturePoint::attn_out, true},
                  {CapturePoint::resid_mid, true},
                  {CapturePoint::mlp_out, true},
                  {CapturePoint::resid_post, true}};
  // Of the attention only what a causal mask leaves; kernels_vs_torch.py counts the same.
  const double parameters = 2048.0 * 64 * (2 * 32 + 2 * 4) + 3.0 * 2048 * 5632;
  const double attention = 2.0 * 32 * 64 * 2 * static_cast<double>(length + 1) / 2;
  const double gflop = 1e-9 * static_cast<double>(rows) * (2 * parameters + attention);
  measure(options, {isa, "layer", shape, type, gflop, 0},
          [&] { run_block(*executor, segments, state, sink); });
}

void run(const Options& options) {
  for (const CpuIsa isa : machine_isas()) {
    const bool wanted = options.isa == "best"
                            ? isa == best_cpu_isa()
                            : options.isa == "all" || options.isa == cpu_isa_name(isa);
    if (!wanted) {
      continue;
    }
    for (const DType type : options.dtypes) {
      for (const Shape& shape : options.sizes) {
        bench_linear(isa, options, shape, type);
      }
      for (const Shape& shape : options.layers) {
        bench_layer(isa, options, shape, type);
      }
    }
  }
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) {
    parts.push_back(part);
  }
  return parts;
}

/// Shapes like 16x128,1x2048, each of `dimensions` sizes above 0, or none at all.
bool parse_shapes(const std::string& text, std::size_t dimensions, std::vector<Shape>& shapes) {
  shapes.clear();
  if (text == "none") {
    return true;
  }
  for (const std::string& item : split(text, ',')) {
    Shape shape;
    for (const std::string& size : split(item, 'x')) {
      shape.push_back(std::strtoull(size.c_str(), nullptr, 10));
    }
    if (shape.size() != dimensions || std::count(shape.begin(), shape.end(), 0) > 0) {
      return false;
    }
    shapes.push_back(std::move(shape));
  }
  return !shapes.empty();
}

bool parse_dtypes(const std::string& text, std::vector<DType>& dtypes) {
  dtypes.clear();
  for (const std::string& name : split(text, ',')) {
    for (const DType type : {DType::bf16, DType::f16, DType::f32}) {
      if (name == dtype_name(type)) {
        dtypes.push_back(type);
      }
    }
  }
  return dtypes.size() == split(text, ',').size() && !dtypes.empty();
}

bool parse_option(const std::string& name, const std::string& value, Options& options) {
  if (name == "--threads") {
    options.threads = std::atoi(value.c_str());
    return options.threads > 0;
  }
  if (name == "--repeat") {
    options.repeats = std::atoi(value.c_str());
    return options.repeats > 0;
  }
  if (name == "--isa") {
    options.isa = value;
    return true;
  }
  if (name == "--sizes") {
    return parse_shapes(value, 3, options.sizes);
  }
  if (name == "--layers") {
    return parse_shapes(value, 2, options.layers);
  }
  return name == "--dtypes" && parse_dtypes(value, options.dtypes);
}

bool parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--json") {
      options.json = true;
    } else if (name == "--paced") {
      options.paced = true;
    } else if (++i == argc || !parse_option(name, argv[i], options)) {
      return false;
    }
  }
  return true;
}

}  // namespace
}  // namespace librarian::gpu_exec

int main(int argc, char** argv) {
  librarian::gpu_exec::Options options;
  if (!librarian::gpu_exec::parse(argc, argv, options)) {
    std::fprintf(stderr,
                 "usage: layer_bench [--threads N] [--isa NAME] [--repeat N] [--dtypes bf16,f32]\n"
                 "                   [--sizes ROWSxINPUTSxOUTPUTS,...|none]\n"
                 "                   [--layers SAMPLESxTOKENS,...|none] [--json] [--paced]\n");
    return 2;
  }
  librarian::gpu_exec::run(options);
  return 0;
}
