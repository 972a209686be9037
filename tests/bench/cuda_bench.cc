// Speed of the CUDA device on GPU 0, one JSON line per figure; see tests/gpu/run.sh.
//   device    what it is
//   peak      what cuBLASLt reaches on a large square product: 100 % of all that follows
//   product   products of Llama-70B's shapes through the device
//   own       our kernel on tensor cores beside cuBLASLt, and whether their sums are the same
//   rows      whether a row of a product has the same bits wherever it lies among 2048, whatever
//             the others are: shapes for which this is false must not use the library
//   attention causal, samples of 4096, 64 heads of 128, 8 of keys
//   copy      pinned memory to the GPU and back
//   layer     a layer of Llama-70B's shapes over samples of 2048 tokens, resident within 15 GiB and
//             in stages within 4 GiB
// Rates are of wall time around work that was queued together. All data are random: zeros are
// faster. Ratios are to `peak` of the same run. Where there is no GPU it says so and exits 0.
// usage: cuda_bench [--tokens N]     tokens of the layer, a multiple of 8192; default 65536
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <string>
#include <thread>
#include <tuple>

#include "base/units.h"
#include "gpu_exec/cuda_device.h"
#include "gpu_exec/cuda_launch_rows.h"
#include "gpu_exec/cuda_library.h"
#include "tests/gpu_exec/exec_testing.h"

namespace librarian::gpu_exec {
namespace {

constexpr std::uint64_t kRows = CudaLibrary::kRows;
constexpr std::uint64_t kMemoryBytes = 15 * kGiB;
constexpr std::uint64_t kStagedMemoryBytes = 4 * kGiB;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// One line; `fields` without braces.
void print(const std::string& bench, const std::string& fields) {
  std::printf("{\"bench\": \"%s\", %s}\n", bench.c_str(), fields.c_str());
  std::fflush(stdout);
}
std::string field(const char* name, double value) {
  char text[96];
  std::snprintf(text, sizeof text, "\"%s\": %.6g", name, value);
  return text;
}
std::string field(const char* name, std::uint64_t value) {
  return "\"" + std::string(name) + "\": " + std::to_string(value);
}
/// @param text  Without characters that JSON escapes.
std::string field(const char* name, const std::string& text) {
  return "\"" + std::string(name) + "\": \"" + text + "\"";
}
std::string field(const char* name, bool value) {
  return "\"" + std::string(name) + (value ? "\": true" : "\": false");
}

Result<void> finish(Device& device, Queue queue) {
  const Ticket ticket = device.mark(queue);
  for (;;) {
    LIB_TRY(const bool done, device.reached(ticket));
    if (done) {
      return {};
    }
    std::this_thread::yield();
  }
}

/// Random values, each from a place of its own in a block of prime length: no two rows are equal.
void fill(std::span<std::byte> out, DType type, float scale, float centre = 0) {
  constexpr std::size_t kBlockValues = 1048573;
  static std::map<std::tuple<DType, float, float>, Bytes> blocks;
  Bytes& block = blocks[{type, scale, centre}];
  if (block.empty()) {
    block = to_bytes(TestRandom(1).vector(kBlockValues, scale, centre), type);
  }
  for (std::size_t at = 0; at < out.size(); at += block.size()) {
    std::memcpy(out.data() + at, block.data(), std::min(block.size(), out.size() - at));
  }
}

/// Seconds of one `work` on the compute queue: the middle of three, each of as many as take a
/// while.
Result<double> seconds_each(Device& device, const std::function<void()>& work) {
  constexpr double kWhileSeconds = 0.2;
  const auto timed = [&](int repeats) -> Result<double> {
    const double begin = now();
    for (int i = 0; i < repeats; ++i) {
      work();
    }
    LIB_TRY_VOID(finish(device, Queue::compute));
    return (now() - begin) / repeats;
  };
  LIB_TRY_VOID(timed(2));  // Loads modules and wakes the clocks up.
  LIB_TRY(const double once, timed(2));
  const int repeats = std::clamp(static_cast<int>(kWhileSeconds / once), 2, 1000);
  std::vector<double> seconds;
  for (int i = 0; i < 3; ++i) {
    LIB_TRY(const double each, timed(repeats));
    seconds.push_back(each);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[1];
}

struct Product {
  std::uint64_t inputs, outputs;
  const char* what;
};
/// As an executor asks for them: see layer_steps.cc for the slices of large matrices.
constexpr Product k70B[] = {{8192, 8192, "70B q, out"},
                            {8192, 1024, "70B k, v"},
                            {8192, 28672, "70B gate, up"},
                            {28672, 4096, "70B down, half of the outputs"},
                            {28672, 8192, "70B down"}};
constexpr Product k8B[] = {{4096, 4096, "8B q, out"},
                           {4096, 1024, "8B k, v"},
                           {4096, 14336, "8B gate, up"},
                           {14336, 4096, "8B down"}};

/// A product with all it needs on the device.
class ProductRun {
 public:
  static Result<ProductRun> make(Device& device, const Product& product, DType type) {
    // Without this the device would not use the library.
    const ProductSize size{product.outputs, product.inputs, false};
    LIB_TRY(const std::vector<std::string> ways, device.plan_products({&size, 1}, type));
    static_cast<void>(ways);
    const std::uint64_t element = dtype_bytes(type);
    const std::uint64_t w_bytes = device.packed_bytes(product.outputs, product.inputs, type);
    const std::uint64_t bias_bytes = device.vector_bytes(product.outputs);
    const std::uint64_t scratch_bytes = device.scratch_bytes({});
    ProductRun run(device);
    run.x_bytes_ = kRows * product.inputs * element;
    run.y_bytes_ = kRows * product.outputs * element;
    LIB_TRY(run.memory_,
            device.allocate(w_bytes + bias_bytes + scratch_bytes + run.x_bytes_ + run.y_bytes_));
    LIB_TRY(run.host_, device.allocate_host(
                           std::max(w_bytes, run.x_bytes_ + std::max(run.x_bytes_, run.y_bytes_))));
    std::byte* const w = run.memory_.get();
    auto* const bias = reinterpret_cast<float*>(w + w_bytes);
    run.scratch_ = w + w_bytes + bias_bytes;
    run.x_ = run.scratch_ + scratch_bytes;
    const float scale = 1.7F / std::sqrt(static_cast<float>(product.inputs));
    fill({run.host_.get(), w_bytes}, type, scale);
    device.pack_matrix({run.host_.get(), type, {}, false, 0}, product.outputs, product.inputs, w);
    device.load_vector({run.host_.get(), type, {}, 0}, product.outputs, bias);
    LIB_TRY_VOID(finish(device, Queue::weights));
    fill({run.host_.get(), run.x_bytes_}, type, 1.0F);
    run.op_.x = run.x_;
    run.op_.y = run.x_ + run.x_bytes_;
    run.op_.dtype = type;
    run.op_.rows = kRows;
    run.op_.inputs = product.inputs;
    run.op_.outputs = product.outputs;
    run.op_.matrix = {w, type, nullptr, false};
    run.bias_ = bias;
    device.copy_in(run.host_.get(), run.x_, run.x_bytes_);
    LIB_TRY_VOID(finish(device, Queue::upload));
    return run;
  }

  void linear() { device_->linear(op_, scratch_, {}); }
  /// The same with the sums finished apart, in tiles, as gate and up are.
  void in_tiles(bool on) { op_.matrix.bias = on ? bias_ : nullptr; }

  /// y of rows in an order: row i of x is row order[i] of the random rows.
  Result<Bytes> rows_in(const std::vector<std::size_t>& order) {
    const std::uint64_t row_bytes = x_bytes_ / kRows;
    std::byte* const turned = host_.get() + x_bytes_;
    for (std::size_t i = 0; i < order.size(); ++i) {
      std::memcpy(turned + i * row_bytes, host_.get() + order[i] * row_bytes, row_bytes);
    }
    device_->copy_in(turned, x_, x_bytes_);
    LIB_TRY_VOID(finish(*device_, Queue::upload));
    linear();
    LIB_TRY_VOID(finish(*device_, Queue::compute));
    device_->copy_out(op_.y, turned, y_bytes_);
    LIB_TRY_VOID(finish(*device_, Queue::download));
    return Bytes(turned, turned + y_bytes_);
  }

 private:
  explicit ProductRun(Device& device) : device_(&device) {}

  Device* device_;
  DeviceMemory memory_, host_;
  std::uint64_t x_bytes_ = 0, y_bytes_ = 0;
  std::byte* x_ = nullptr;
  std::byte* scratch_ = nullptr;
  const float* bias_ = nullptr;
  LinearOp op_;
};

Result<void> bench_product(Device& device, const Product& product) {
  LIB_TRY(ProductRun run, ProductRun::make(device, product, DType::bf16));
  for (const bool in_tiles : {false, true}) {
    run.in_tiles(in_tiles);
    LIB_TRY(const double seconds, seconds_each(device, [&] { run.linear(); }));
    const double flops =
        2.0 * kRows * static_cast<double>(product.inputs * product.outputs) / seconds;
    print("product", field("what", std::string(product.what)) + ", " + field("rows", kRows) + ", " +
                         field("inputs", product.inputs) + ", " +
                         field("outputs", product.outputs) + ", " + field("in_tiles", in_tiles) +
                         ", " + field("tflops", flops * 1e-12) + ", " +
                         field("of_peak", flops / device.peak_flops(DType::bf16)));
  }
  return {};
}

/// Rows whose bits differ from those of the same row in the first order.
std::size_t rows_that_moved(const Bytes& y, const Bytes& expected,
                            const std::vector<std::size_t>& order) {
  const std::size_t row_bytes = expected.size() / order.size();
  std::size_t count = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    count += std::memcmp(y.data() + i * row_bytes, expected.data() + order[i] * row_bytes,
                         row_bytes) == 0
                 ? 0
                 : 1;
  }
  return count;
}

/// @return  Whether all rows had the same bits in every order.
Result<bool> probe_rows(Device& device, const Product& product, DType type) {
  LIB_TRY(ProductRun run, ProductRun::make(device, product, type));
  std::vector<std::size_t> straight(kRows);
  std::iota(straight.begin(), straight.end(), 0U);
  std::vector<std::vector<std::size_t>> orders(4, straight);
  std::reverse(orders[0].begin(), orders[0].end());
  std::rotate(orders[1].begin(), orders[1].begin() + 1, orders[1].end());
  TestRandom random(7);
  for (std::size_t i = kRows - 1; i > 0; --i) {
    std::swap(orders[2][i], orders[2][random.next() % (i + 1)]);
  }
  // Half of the rows have other neighbours: the first ones, again and again.
  for (std::size_t i = 1; i < kRows; i += 2) {
    orders[3][i] = i % 16;
  }
  const ProductSize size{product.outputs, product.inputs, false};
  std::string engines;
  LIB_TRY(const std::vector<std::string> planned, device.plan_products({&size, 1}, type));
  for (const std::string& engine : planned) {
    engines += (engines.empty() ? "" : "; ") + engine;
  }
  bool all_equal = true;
  for (const bool in_tiles : {false, true}) {
    run.in_tiles(in_tiles);
    LIB_TRY(const Bytes expected, run.rows_in(straight));
    std::size_t different = 0;
    for (const std::vector<std::size_t>& order : orders) {
      LIB_TRY(const Bytes y, run.rows_in(order));
      different += rows_that_moved(y, expected, order);
    }
    all_equal = all_equal && different == 0;
    print("rows",
          field("what", std::string(product.what)) + ", " +
              field("dtype", std::string(dtype_name(type))) + ", " +
              field("inputs", product.inputs) + ", " + field("outputs", product.outputs) + ", " +
              field("in_tiles", in_tiles) + ", " + field("rows_equal", different == 0) + ", " +
              field("rows_different", std::uint64_t{different}) + ", " + field("engines", engines));
  }
  return all_equal;
}

/// Our kernel and the library's, without the device around them.
Result<void> bench_own_kernel(Device& device) {
  constexpr std::uint64_t kWidth = 8192;
  constexpr int kRepeats = 20;
  const std::uint64_t w_bytes = kWidth * kWidth * 2;
  const std::uint64_t x_bytes = kRows * kWidth * 2;
  LIB_TRY(const DeviceMemory memory, device.allocate(w_bytes + 3 * x_bytes));
  LIB_TRY(const std::unique_ptr<CudaLibrary> library, CudaLibrary::create());
  Bytes noise(w_bytes);
  fill(noise, DType::bf16, 0.02F);
  CudaProduct product;
  product.w = memory.get();
  product.x = memory.get() + w_bytes;
  product.y = memory.get() + w_bytes + x_bytes;
  product.type = product.out = DType::bf16;
  product.rows = kRows;
  product.inputs = product.outputs = kWidth;
  product.x_stride = product.w_stride = product.y_stride = kWidth;
  const auto plan = library->plan({DType::bf16, DType::bf16, false, true, kWidth, kWidth});
  if (!plan) {
    return Error(ErrorCode::internal, "cuBLASLt has no algorithm that splits no sum");
  }
  static_cast<void>(cudaMemcpy(memory.get(), noise.data(), w_bytes, cudaMemcpyHostToDevice));
  static_cast<void>(
      cudaMemcpy(memory.get() + w_bytes, noise.data(), x_bytes, cudaMemcpyHostToDevice));
  double tflops[2] = {};
  Bytes results[2] = {Bytes(x_bytes), Bytes(x_bytes)};
  for (const bool own : {false, true}) {
    const auto work = [&] {
      if (own) {
        launch_product(product, true, nullptr);
      } else {
        static_cast<void>(library->multiply(product, *plan, nullptr));
      }
    };
    work();
    static_cast<void>(cudaDeviceSynchronize());
    const double begin = now();
    for (int i = 0; i < kRepeats; ++i) {
      work();
    }
    const cudaError_t error = cudaDeviceSynchronize();
    const double seconds = (now() - begin) / kRepeats;
    if (error != cudaSuccess) {
      return Error(ErrorCode::internal, std::string("product: ") + cudaGetErrorString(error));
    }
    tflops[own ? 1 : 0] = 2e-12 * static_cast<double>(kRows * kWidth * kWidth) / seconds;
    static_cast<void>(
        cudaMemcpy(results[own ? 1 : 0].data(), product.y, x_bytes, cudaMemcpyDeviceToHost));
  }
  print("own", field("rows", kRows) + ", " + field("inputs", kWidth) + ", " +
                   field("outputs", kWidth) + ", " + field("library_tflops", tflops[0]) + ", " +
                   field("own_tflops", tflops[1]) + ", " +
                   field("own_of_library", tflops[1] / tflops[0]) + ", " +
                   field("equal_bits", results[0] == results[1]));
  return {};
}

Result<void> bench_attention(Device& device) {
  constexpr std::uint64_t kSamples = 4;
  constexpr std::uint64_t kLength = 4096;
  constexpr std::uint32_t kHeads = 64;
  constexpr std::uint32_t kKvHeads = 8;
  constexpr std::uint32_t kHeadDim = 128;
  // The output takes the queries' place, so each repetition has fresh ones.
  constexpr std::uint64_t kFresh = 4;
  const std::uint64_t q_bytes = kSamples * kLength * kHeads * kHeadDim * 2;
  const std::uint64_t k_bytes = kSamples * kLength * kKvHeads * kHeadDim * 2;
  LIB_TRY(const DeviceMemory memory,
          device.allocate((kFresh + 1) * q_bytes + 2 * k_bytes + device.scratch_bytes({})));
  LIB_TRY(const DeviceMemory host, device.allocate_host(q_bytes));
  fill({host.get(), q_bytes}, DType::bf16, 1.7F);
  std::byte* const source = memory.get() + kFresh * q_bytes;
  device.copy_in(host.get(), source, q_bytes);
  device.copy_in(host.get() + 1000, source + q_bytes, k_bytes);
  device.copy_in(host.get() + 3000, source + q_bytes + k_bytes, k_bytes);
  LIB_TRY_VOID(finish(device, Queue::upload));
  const std::vector<Segment> segments = segments_of(std::vector<std::uint64_t>(kSamples, kLength));
  AttentionOp op;
  op.k = source + q_bytes;
  op.v = op.k + k_bytes;
  op.dtype = DType::bf16;
  op.heads = kHeads;
  op.kv_heads = kKvHeads;
  op.head_dim = kHeadDim;
  op.scale = 1.0F / std::sqrt(static_cast<float>(kHeadDim));
  op.segments = segments;
  std::byte* const scratch = source + q_bytes + 2 * k_bytes;
  std::vector<double> seconds;
  for (int i = 0; i < 12; ++i) {
    for (std::uint64_t fresh = 0; fresh < kFresh; ++fresh) {
      device.copy(source, memory.get() + fresh * q_bytes, q_bytes);
    }
    LIB_TRY_VOID(finish(device, Queue::compute));
    const double begin = now();
    for (std::uint64_t fresh = 0; fresh < kFresh; ++fresh) {
      op.q = memory.get() + fresh * q_bytes;
      device.attention(op, scratch, {});
    }
    LIB_TRY_VOID(finish(device, Queue::compute));
    seconds.push_back((now() - begin) / kFresh);
  }
  std::sort(seconds.begin(), seconds.end());
  // Only what the causal mask leaves.
  const double flop = 4.0 * kSamples * kHeads * kHeadDim * kLength * (kLength + 1) / 2;
  const double flops = flop / seconds[seconds.size() / 2];
  print("attention", field("samples", kSamples) + ", " + field("tokens_each", kLength) + ", " +
                         field("tflops", flops * 1e-12) + ", " +
                         field("of_peak", flops / device.peak_flops(DType::bf16)));
  return {};
}

Result<void> bench_copies(Device& device) {
  const std::uint64_t bytes = 256 * kMiB;
  LIB_TRY(const DeviceMemory memory, device.allocate(2 * bytes));
  LIB_TRY(const DeviceMemory host, device.allocate_host(2 * bytes));
  fill({host.get(), 2 * bytes}, DType::bf16, 1.0F);
  const auto seconds = [&](bool in, bool out) -> Result<double> {
    double best = 1e9;
    for (int i = 0; i < 5; ++i) {
      const double begin = now();
      if (in) {
        device.copy_in(host.get(), memory.get(), bytes);
      }
      if (out) {
        device.copy_out(memory.get() + bytes, host.get() + bytes, bytes);
      }
      LIB_TRY_VOID(finish(device, Queue::upload));
      LIB_TRY_VOID(finish(device, Queue::download));
      best = std::min(best, now() - begin);
    }
    return best;
  };
  LIB_TRY(const double upload, seconds(true, false));
  LIB_TRY(const double download, seconds(false, true));
  LIB_TRY(const double both, seconds(true, true));
  const auto size = static_cast<double>(bytes) * 1e-9;
  print("copy", field("upload_gb_per_s", size / upload) + ", " +
                    field("download_gb_per_s", size / download) + ", " +
                    field("each_when_both_gb_per_s", size / both));
  return {};
}

/// A layer of Llama-70B over rows in host memory; keeps nothing.
class LayerRun final : public LayerIo {
 public:
  static constexpr std::uint32_t kHidden = 8192;
  static constexpr std::uint64_t kLength = 2048;
  static constexpr std::uint64_t kBlockRows = 4 * kLength;

  explicit LayerRun(std::uint64_t tokens)
      : segments_(segments_of(std::vector<std::uint64_t>(kBlockRows / kLength, kLength))),
        blocks_(tokens / kBlockRows, Block{segments_, kBlockRows}),
        state_(tokens * kHidden * 2) {
    model_.hidden_size = kHidden;
    model_.norm = {NormKind::rms, false, false, 1e-5F};
    model_.final_norm = false;
    LayerSpec layer;
    layer.attention.heads = 64;
    layer.attention.kv_heads = 8;
    layer.attention.head_dim = 128;
    layer.attention.scale = 1.0F / std::sqrt(128.0F);
    layer.attention.rope = default_rope(128);
    layer.mlp.width = 28672;
    model_.layers.push_back(layer);
  }

  /// Multiplications and additions; of the attention only what the causal mask leaves.
  double flop() const {
    const AttentionSpec& attention = model_.layers[0].attention;
    const double heads = attention.heads * attention.head_dim;
    const double kv_heads = attention.kv_heads * attention.head_dim;
    const double parameters =
        kHidden * (2 * heads + 2 * kv_heads) + 3.0 * kHidden * model_.layers[0].mlp.width;
    const double rows = static_cast<double>(blocks_.size()) * kBlockRows;
    return rows * (2 * parameters + 4 * heads * (kLength + 1) / 2);
  }

  Result<void> bench(std::uint64_t memory_bytes, double peak_flops) {
    CudaOptions cuda;
    cuda.memory_bytes = memory_bytes;
    LIB_TRY(const std::unique_ptr<Device> device, make_cuda_device(cuda));
    ExecutorOptions options;
    options.block_rows_max = kBlockRows;
    options.sample_rows_max = kLength;
    options.blocks_max = blocks_.size();
    LIB_TRY(const ExecutorMemory memory, LayerExecutor::memory(model_, options, *device));
    LIB_TRY(const auto stages, LayerExecutor::stages(model_, 0, options, *device));
    LIB_TRY(const auto executor, LayerExecutor::create(model_, options, *device));
    LIB_TRY_VOID(allocate_weights(*device));
    std::vector<double> seconds;
    double load_seconds = 0;
    for (int i = 0; i < 4; ++i) {
      fill(state_, DType::bf16, 1.0F);
      LIB_TRY(load_seconds, load_layer(*executor));
      const double begin = now();
      LIB_TRY_VOID(executor->run(blocks_, *this, {}));
      if (i > 0) {  // The first one loads modules.
        seconds.push_back(now() - begin);
      }
    }
    std::sort(seconds.begin(), seconds.end());
    const double middle = seconds[seconds.size() / 2];
    const auto rows = static_cast<double>(blocks_.size() * kBlockRows);
    print("layer",
          field("tokens", blocks_.size() * kBlockRows) + ", " + field("sample_tokens", kLength) +
              ", " + field("block_rows", kBlockRows) + ", " +
              field("device_memory_bytes", memory_bytes) + ", " +
              field("arena_bytes", memory.device_bytes()) + ", " + field("staged", memory.staged) +
              ", " + field("stages", std::uint64_t{stages.size()}) + ", " +
              field("rows_together", memory.rows_together) + ", " + field("seconds", middle) +
              ", " + field("fastest_seconds", seconds.front()) + ", " +
              field("tokens_per_s", rows / middle) + ", " +
              field("tflops", flop() / middle * 1e-12) + ", " +
              field("of_peak", flop() / middle / peak_flops) + ", " +
              field("load_gb_per_s", memory.staged ? 0 : 1e-9 * layer_bytes() / load_seconds));
    return {};
  }

  bool wants(CapturePoint /*point*/) const override { return false; }
  Result<std::span<std::byte>> load(std::size_t block) override {
    const std::size_t bytes = kBlockRows * kHidden * 2;
    return std::span(state_).subspan(block * bytes, bytes);
  }
  Result<void> capture(CapturePoint /*point*/, std::size_t /*block*/,
                       std::span<const std::byte> /*rows*/) override {
    return {};
  }
  Result<void> store(std::size_t block, std::span<std::byte> rows) override {
    std::memcpy(state_.data() + block * rows.size(), rows.data(), rows.size());
    return {};
  }

 private:
  std::uint64_t tensor_bytes(WeightRole role) const {
    std::uint64_t bytes = dtype_bytes(DType::bf16);
    for (const std::uint64_t size : weight_shape(model_, model_.layers[0], role)) {
      bytes *= size;
    }
    return bytes;
  }
  double layer_bytes() const {
    double bytes = 0;
    for (const WeightRole role : weight_roles(model_, model_.layers[0])) {
      bytes += static_cast<double>(tensor_bytes(role));
    }
    return bytes;
  }

  /// All matrices are the same memory, which is as large as the largest.
  Result<void> allocate_weights(Device& device) {
    if (matrix_ != nullptr) {
      return {};
    }
    std::uint64_t bytes = 0;
    for (const WeightRole role : weight_roles(model_, model_.layers[0])) {
      bytes = std::max(bytes, tensor_bytes(role));
    }
    LIB_TRY(matrix_, device.allocate_host(bytes));
    fill({matrix_.get(), bytes}, DType::bf16, 0.02F);
    norm_.resize(std::size_t{kHidden} * 2);
    fill(norm_, DType::bf16, 0.05F, 1.0F);
    return {};
  }

  /// @return  Seconds until the device had read all.
  Result<double> load_layer(LayerExecutor& executor) {
    const double begin = now();
    executor.begin_layer(0);
    Ticket last;
    for (const WeightRole role : weight_roles(model_, model_.layers[0])) {
      const bool norm = weight_shape(model_, model_.layers[0], role).size() == 1;
      const std::byte* const bytes = norm ? norm_.data() : matrix_.get();
      LIB_TRY(last, executor.load(role, DType::bf16, {bytes, tensor_bytes(role)}));
    }
    while (!executor.keeps_tensors()) {
      LIB_TRY(const bool done, executor.reached(last));
      if (done) {
        break;
      }
    }
    return now() - begin;
  }

  ModelSpec model_;
  std::vector<Segment> segments_;
  std::vector<Block> blocks_;
  Bytes state_;
  DeviceMemory matrix_;
  Bytes norm_;
};

Result<void> print_device() {
  cudaDeviceProp found{};
  int driver = 0;
  int runtime = 0;
  static_cast<void>(cudaDriverGetVersion(&driver));
  static_cast<void>(cudaRuntimeGetVersion(&runtime));
  if (const cudaError_t error = cudaGetDeviceProperties(&found, 0); error != cudaSuccess) {
    return Error(ErrorCode::internal, std::string("GPU 0: ") + cudaGetErrorString(error));
  }
  LIB_TRY(const auto library, CudaLibrary::create());
  print("device",
        field("name", std::string(found.name)) + ", " +
            field("compute_capability",
                  std::to_string(found.major) + "." + std::to_string(found.minor)) +
            ", " + field("multiprocessors", static_cast<std::uint64_t>(found.multiProcessorCount)) +
            ", " + field("memory_bytes", std::uint64_t{found.totalGlobalMem}) + ", " +
            field("driver_cuda", static_cast<std::uint64_t>(driver)) + ", " +
            field("runtime_cuda", static_cast<std::uint64_t>(runtime)) + ", " +
            field("library", library->version()));
  return {};
}

/// What fails is said and does not stop the rest.
class Failures {
 public:
  void operator()(const Result<void>& done) {
    if (!done) {
      ++count_;
      std::fprintf(stderr, "cuda_bench: %s\n", done.error().message().c_str());
    }
  }
  bool none() const { return count_ == 0; }

 private:
  int count_ = 0;
};

/// @return  Whether all could be measured.
Result<bool> run(std::uint64_t tokens) {
  Failures check;
  double peak = 0;
  {
    LIB_TRY(const std::unique_ptr<Device> device, make_cuda_device(CudaOptions{}));
    LIB_TRY_VOID(print_device());
    for (const DType type : {DType::bf16, DType::f16, DType::f32}) {
      print("peak", field("dtype", std::string(dtype_name(type))) + ", " +
                        field("tflops", device->peak_flops(type) * 1e-12));
    }
    peak = device->peak_flops(DType::bf16);
    check(bench_own_kernel(*device));
    check(bench_copies(*device));
    check(bench_attention(*device));
    for (const Product& product : k70B) {
      check(bench_product(*device, product));
    }
  }
  {
    LayerRun layer(tokens);
    check(layer.bench(kMemoryBytes, peak));
    check(layer.bench(kStagedMemoryBytes, peak));
  }
  LIB_TRY(const std::unique_ptr<Device> device, make_cuda_device(CudaOptions{}));
  std::uint64_t unequal = 0;
  for (const DType type : {DType::bf16, DType::f16, DType::f32}) {
    for (const std::span<const Product> products :
         {std::span<const Product>(k8B), std::span<const Product>(k70B)}) {
      for (const Product& product : products) {
        LIB_TRY(const bool equal, probe_rows(*device, product, type));
        unequal += equal ? 0 : 1;
      }
    }
  }
  print("rows_summary", field("shapes_with_unequal_rows", unequal));
  return check.none();
}

}  // namespace
}  // namespace librarian::gpu_exec

int main(int argc, char** argv) {
  std::uint64_t tokens = 65536;
  const bool counted = argc == 3 && std::strcmp(argv[1], "--tokens") == 0;
  if (counted) {
    tokens = std::strtoull(argv[2], nullptr, 10);
  }
  if ((argc != 1 && !counted) || tokens == 0 || tokens % 8192 != 0) {
    std::fprintf(stderr, "usage: cuda_bench [--tokens N]    a multiple of 8192\n");
    return 2;
  }
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess || count == 0) {
    librarian::gpu_exec::print(
        "none",
        librarian::gpu_exec::field(
            "reason", std::string("no GPU that CUDA can use: ") +
                          (error == cudaSuccess ? "none is there" : cudaGetErrorString(error))));
    return 0;
  }
  const auto done = librarian::gpu_exec::run(tokens);
  if (!done) {
    std::fprintf(stderr, "cuda_bench: %s\n", done.error().message().c_str());
  }
  return done && *done ? 0 : 1;
}
