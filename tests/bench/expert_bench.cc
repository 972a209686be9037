// A layer with a mixture of experts beside one with an MLP of the same arithmetic a token, on the
// CPU device and through the executor as a run does it: blocks of 2048 rows one after the other.
// Both take turns; GFLOP are those of the products with weights and rates are per second of
// processor time, so that other work on the machine counts for all alike.
// usage: expert_bench [--threads N] [--isa NAME] [--repeat N] [--tokens N]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "tests/gpu_exec/exec_testing.h"

namespace librarian::gpu_exec {
namespace {

constexpr std::uint32_t kHidden = 2048;
constexpr std::uint64_t kBlockRows = 2048;
constexpr std::uint64_t kSampleRows = 128;

struct Options {
  int threads = 1;
  int repeats = 5;
  std::string isa;
  std::uint64_t tokens = 0;  ///< 0: of each default.
};

struct Shape {
  const char* name;
  std::uint32_t experts, top_k, width, shared_width;
};
constexpr Shape kShapes[] = {{"64 experts of 768, top 8", 64, 8, 768, 0},
                             {"64 experts of 512, top 6, shared 1024", 64, 6, 512, 1024}};

/// Attention that hardly counts: one head over short samples.
LayerSpec small_attention() {
  LayerSpec spec;
  spec.attention.heads = spec.attention.kv_heads = 1;
  spec.attention.head_dim = 64;
  spec.attention.scale = 0.125F;
  spec.attention.rope = default_rope(64);
  return spec;
}

/// A layer that is there, and blocks of rows for it.
class Side {
 public:
  Side(CpuIsa isa, int threads, const LayerSpec& spec, std::uint64_t tokens)
      : layer_(make_layer(kHidden, spec, DType::bf16)),
        device_(cpu_device(isa, threads)),
        state_(to_bytes(TestRandom(2).vector(tokens * kHidden, 1.0F), DType::bf16)),
        segments_(segments_of(std::vector<std::uint64_t>(kBlockRows / kSampleRows, kSampleRows))),
        blocks_(tokens / kBlockRows, Block{segments_, kBlockRows}) {
    ExecutorOptions options = executor_options(layer_, DType::bf16, kBlockRows, kSampleRows);
    options.blocks_max = blocks_.size();
    executor_ = loaded_executor(layer_, *device_, options);
    sink_.refused = {{CapturePoint::attn_out, true},       {CapturePoint::resid_mid, true},
                     {CapturePoint::mlp_out, true},        {CapturePoint::router_ids, true},
                     {CapturePoint::router_weights, true}, {CapturePoint::resid_post, true}};
  }

  void run() {
    const std::clock_t begin = std::clock();
    Bytes rows = state_;
    sink_.begin(blocks_, rows);
    const auto done = executor_->run(blocks_, sink_, {});
    LIB_CHECK(static_cast<bool>(done));
    seconds_.push_back(static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC);
  }
  void forget() { seconds_.clear(); }
  const std::vector<double>& seconds() const { return seconds_; }

 private:
  TestLayer layer_;
  std::unique_ptr<Device> device_;
  Bytes state_;
  std::vector<Segment> segments_;
  std::vector<Block> blocks_;
  std::unique_ptr<LayerExecutor> executor_;
  RecordingSink sink_;
  std::vector<double> seconds_;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void bench(CpuIsa isa, const Options& options, const Shape& shape, std::uint64_t tokens) {
  LayerSpec experts = small_attention();
  experts.moe.experts = shape.experts;
  experts.moe.top_k = shape.top_k;
  experts.moe.width = shape.width;
  experts.moe.shared_width = shape.shared_width;
  LayerSpec dense = small_attention();
  dense.mlp.width = shape.top_k * shape.width + shape.shared_width;
  Side sparse(isa, options.threads, experts, tokens);
  Side plain(isa, options.threads, dense, tokens);
  for (int i = 0; i <= options.repeats; ++i) {
    sparse.run();
    plain.run();
    if (i == 0) {  // It warmed up.
      sparse.forget();
      plain.forget();
    }
  }
  std::vector<double> ratios;
  for (std::size_t i = 0; i < plain.seconds().size(); ++i) {
    ratios.push_back(plain.seconds()[i] / sparse.seconds()[i]);
  }
  const double parameters = kHidden * (4.0 * 64 + 3.0 * dense.mlp.width);
  const double gflop = 2e-9 * parameters * static_cast<double>(tokens);
  std::printf("%-9s %-38s %5llu tokens  experts %7.1f  dense %7.1f GFLOP/CPU-s  ratio %.2f\n",
              cpu_isa_name(isa), shape.name, static_cast<unsigned long long>(tokens),
              gflop / median(sparse.seconds()), gflop / median(plain.seconds()), median(ratios));
  std::fflush(stdout);
}

}  // namespace
}  // namespace librarian::gpu_exec

int main(int argc, char** argv) {
  using namespace librarian::gpu_exec;
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const char* const value = i + 1 < argc ? argv[i + 1] : "";
    if (std::strcmp(argv[i], "--threads") == 0 && std::atoi(value) > 0) {
      options.threads = std::atoi(value);
    } else if (std::strcmp(argv[i], "--repeat") == 0 && std::atoi(value) > 0) {
      options.repeats = std::atoi(value);
    } else if (std::strcmp(argv[i], "--isa") == 0) {
      options.isa = value;
    } else if (std::strcmp(argv[i], "--tokens") == 0 && std::atoi(value) % 2048 == 0) {
      options.tokens = std::strtoull(value, nullptr, 10);
    } else {
      std::fprintf(
          stderr,
          "usage: expert_bench [--threads N] [--isa NAME] [--repeat N] [--tokens N*2048]\n");
      return 2;
    }
  }
  for (const CpuIsa isa : machine_isas()) {
    if (!options.isa.empty() && options.isa != cpu_isa_name(isa)) {
      continue;
    }
    for (const Shape& shape : kShapes) {
      for (const std::uint64_t tokens : {2048, 8192}) {
        if (options.tokens == 0 || options.tokens == tokens) {
          bench(isa, options, shape, tokens);
        }
      }
    }
  }
  return 0;
}
