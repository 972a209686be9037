// The real CudaRuntime: a GPU through the CUDA runtime library and cuBLASLt.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "base/unique_handle.h"
#include "base/units.h"
#include "gpu_exec/cuda_device.h"
#include "gpu_exec/cuda_launch.h"
#include "gpu_exec/cuda_launch_rows.h"
#include "gpu_exec/cuda_library.h"
#include "gpu_exec/cuda_memory_info.h"
#include "gpu_exec/cuda_runtime.h"

namespace librarian::gpu_exec {
namespace {

/// For kernels of the library, which are loaded when they are first used.
constexpr std::uint64_t kLateModulesBytes = 192 * kMiB;
/// Tickets of a queue that can be told apart; older ones count as the oldest that can.
constexpr std::size_t kTickets = 1024;
constexpr std::size_t kQueues = 4;
/// Copies of different queues share a wire, and one goes behind another: weights are many pieces,
/// so that rows need not wait for a whole matrix.
constexpr std::uint64_t kCopyBytesMax = 8 * kMiB;

struct StreamTraits {
  using Raw = cudaStream_t;
  static constexpr Raw null = nullptr;
  // A failed destroy cannot be acted on, and throwing here would end the program mid-unwind.
  static void close(Raw stream) noexcept { static_cast<void>(cudaStreamDestroy(stream)); }
};
struct EventTraits {
  using Raw = cudaEvent_t;
  static constexpr Raw null = nullptr;
  static void close(Raw event) noexcept { static_cast<void>(cudaEventDestroy(event)); }
};
using Event = UniqueHandle<EventTraits>;

std::string text_of(cudaError_t error) {
  return std::string(cudaGetErrorName(error)) + ", " + cudaGetErrorString(error);
}

class Gpu final : public CudaRuntime {
 public:
  static Result<std::unique_ptr<Gpu>> open(int index) {
    int count = 0;
    if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess || count == 0) {
      return Error(ErrorCode::invalid_argument,
                   "--device cuda:" + std::to_string(index) + ": no GPU that CUDA can use (" +
                       (error == cudaSuccess ? "none is there" : text_of(error)) +
                       "); use --device cpu");
    }
    if (index < 0 || index >= count) {
      return Error(ErrorCode::invalid_argument, "--device cuda:" + std::to_string(index) + ": " +
                                                    std::to_string(count) +
                                                    " GPUs are there, counted from 0");
    }
    std::array<char, 32> bus{};
    static_cast<void>(cudaDeviceGetPCIBusId(bus.data(), bus.size(), index));
    const std::optional<std::uint64_t> before = gpu_bytes_in_use(bus.data());
    std::unique_ptr<Gpu> gpu(new Gpu);
    LIB_TRY_VOID(gpu->start(index));
    const std::optional<std::uint64_t> after = gpu_bytes_in_use(bus.data());
    CudaProperties& known = gpu->properties_;
    // Without the driver's count, all that is not free is taken to be ours: too much, not too
    // little.
    known.overhead_bytes = before && after && *after >= *before
                               ? *after - *before
                               : known.total_bytes - known.free_bytes;
    return gpu;
  }

  /// No stream may still write to memory whose owner is about to go.
  ~Gpu() override { static_cast<void>(cudaDeviceSynchronize()); }
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  const CudaProperties& properties() const override { return properties_; }

  Result<DeviceMemory> allocate(std::uint64_t bytes) override {
    void* memory = nullptr;
    if (const cudaError_t error = cudaMalloc(&memory, bytes); error != cudaSuccess) {
      static_cast<void>(cudaGetLastError());  // Said here, and of no launch after.
      return Error(ErrorCode::does_not_fit, "the GPU does not give " + format_bytes(bytes) + ": " +
                                                text_of(error) +
                                                "; close what else uses it, or lower "
                                                "--device-memory");
    }
    return DeviceMemory(static_cast<std::byte*>(memory),
                        [](std::byte* at) { static_cast<void>(cudaFree(at)); });
  }
  Result<DeviceMemory> allocate_host(std::uint64_t bytes) override {
    void* memory = nullptr;
    if (const cudaError_t error = cudaHostAlloc(&memory, bytes, cudaHostAllocDefault);
        error != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return Error(ErrorCode::does_not_fit, "cannot pin " + format_bytes(bytes) +
                                                " of host memory: " + text_of(error) +
                                                "; lower --host-memory");
    }
    return DeviceMemory(static_cast<std::byte*>(memory),
                        [](std::byte* at) { static_cast<void>(cudaFreeHost(at)); });
  }

  Ticket mark(Queue queue) override {
    Lane& lane = lane_of(queue);
    ++lane.marks;
    check(cudaEventRecord(lane.events[lane.marks % kTickets].get(), lane.stream.get()), "mark");
    return {queue, lane.marks};
  }
  void wait(Queue queue, Ticket ticket) override {
    if (ticket.number != 0 && ticket.queue != queue) {
      check(cudaStreamWaitEvent(lane_of(queue).stream.get(), event_of(ticket), 0), "wait");
    }
  }
  Result<bool> reached(Ticket ticket) override {
    if (ticket.number != 0 && failure_.empty()) {
      const cudaError_t state = cudaEventQuery(event_of(ticket));
      if (state == cudaErrorNotReady) {
        return false;
      }
      check(state, "work");
    }
    if (!failure_.empty()) {
      return Error(ErrorCode::internal, properties_.name + ": " + failure_);
    }
    return true;
  }

  void copy(Queue queue, const CudaCopy& copy) override {
    const bool together =
        copy.rows == 1 || (copy.from_stride == copy.row_bytes && copy.to_stride == copy.row_bytes);
    if (together) {
      const std::uint64_t bytes = copy.row_bytes * copy.rows;
      for (std::uint64_t at = 0; at < bytes; at += kCopyBytesMax) {
        check(cudaMemcpyAsync(copy.to + at, copy.from + at, std::min(kCopyBytesMax, bytes - at),
                              cudaMemcpyDefault, stream(queue)),
              "copy");
      }
      return;
    }
    const std::uint64_t step = std::max<std::uint64_t>(1, kCopyBytesMax / copy.row_bytes);
    for (std::uint64_t row = 0; row < copy.rows; row += step) {
      check(cudaMemcpy2DAsync(copy.to + row * copy.to_stride, copy.to_stride,
                              copy.from + row * copy.from_stride, copy.from_stride, copy.row_bytes,
                              std::min(step, copy.rows - row), cudaMemcpyDefault, stream(queue)),
            "copy");
    }
  }
  void clear(std::byte* at, std::uint64_t bytes) override {
    check(cudaMemsetAsync(at, 0, bytes, stream(Queue::compute)), "clear");
  }
  void launch(Queue queue, const CudaWiden& kernel) override {
    launch_widen(kernel, stream(queue));
    check(cudaGetLastError(), "widen");
  }
  void launch(const CudaDecode& kernel) override {
    launch_decode(kernel, stream(Queue::weights));
    check(cudaGetLastError(), "decode");
  }
  void launch(const CudaFinish& kernel) override {
    launch_finish(kernel, stream(Queue::compute));
    check(cudaGetLastError(), "finish");
  }
  void launch(const CudaGate& kernel) override {
    launch_gate(kernel, stream(Queue::compute));
    check(cudaGetLastError(), "gate");
  }
  void launch(const CudaRopeTable& kernel) override {
    launch_rope_table(kernel, stream(Queue::compute));
    check(cudaGetLastError(), "rope table");
  }
  void launch(const CudaRotate& kernel) override {
    launch_rotate(kernel, stream(Queue::compute));
    check(cudaGetLastError(), "rotate");
  }
  void launch(const NormOp& kernel) override {
    launch_norm(kernel, stream(Queue::compute));
    check(cudaGetLastError(), "norm");
  }
  void launch(const AddOp& kernel) override {
    launch_add(kernel, stream(Queue::compute));
    check(cudaGetLastError(), "add");
  }
  void launch(const TopkOp& kernel) override {
    launch_topk(kernel, stream(Queue::compute));
    check(cudaGetLastError(), "topk");
  }
  void launch(const CudaRoute& kernel) override {
    launch_route(kernel, stream(Queue::compute));
    check(cudaGetLastError(), "route");
  }
  void launch(const GatherOp& kernel) override {
    launch_gather(kernel, stream(Queue::compute));
    check(cudaGetLastError(), "gather");
  }
  void launch(const CombineOp& kernel) override {
    launch_combine(kernel, stream(Queue::compute));
    check(cudaGetLastError(), "combine");
  }
  void launch(const RoundOp& kernel) override {
    launch_round(kernel, stream(Queue::compute));
    check(cudaGetLastError(), "round");
  }
  void launch(const CudaAttention& kernel, bool tensor_cores) override {
    launch_attention(kernel, tensor_cores, stream(Queue::compute));
    check(cudaGetLastError(), "attention");
  }

  std::uint64_t library_rows() const override { return CudaLibrary::kRows; }
  ProductPlan plan_product(const ProductShape& shape) override {
    ProductPlan own;
    own.engine =
        shape.type == DType::f32 ? ProductPlan::Engine::plain : ProductPlan::Engine::tensor_cores;
    return library_->plan(shape).value_or(own);
  }
  void product(const CudaProduct& kernel, const ProductPlan& plan) override {
    if (plan.engine != ProductPlan::Engine::library) {
      launch_product(kernel, plan.engine == ProductPlan::Engine::tensor_cores,
                     stream(Queue::compute));
      check(cudaGetLastError(), "product");
      return;
    }
    const std::string problem = library_->multiply(kernel, plan, stream(Queue::compute));
    if (!problem.empty()) {
      fail("product by cuBLASLt: " + problem);
    }
  }

  Result<double> measure_peak_flops(DType type) override;

 private:
  struct Lane {
    UniqueHandle<StreamTraits> stream;
    std::vector<Event> events;
    std::uint64_t marks = 0;
  };

  Gpu() = default;

  Result<void> start(int index) {
    cudaDeviceProp found{};
    check(cudaSetDevice(index), "device");
    check(cudaGetDeviceProperties(&found, index), "properties");
    for (Lane& lane : lanes_) {
      cudaStream_t stream = nullptr;
      check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
      lane.stream = UniqueHandle<StreamTraits>(stream);
      for (std::size_t i = 0; i < kTickets; ++i) {
        cudaEvent_t event = nullptr;
        check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
        lane.events.emplace_back(event);
      }
    }
    if (failure_.empty()) {
      LIB_TRY(library_, CudaLibrary::create());
    }
    const CudaCode code = failure_.empty() ? load_kernels() : CudaCode{};
    if (!code.problem.empty() || (found.major >= 8 && code.architecture < 80)) {
      return Error(ErrorCode::invalid_argument,
                   "--device cuda:" + std::to_string(index) + ": this librarian has no code for " +
                       found.name + " (compute capability " + std::to_string(found.major) + "." +
                       std::to_string(found.minor) +
                       "); `cmake --preset cuda-all` builds for every one");
    }
    std::size_t free = 0;
    std::size_t total = 0;
    check(cudaMemGetInfo(&free, &total), "memory");
    if (!failure_.empty()) {
      return Error(ErrorCode::invalid_argument, "--device cuda:" + std::to_string(index) +
                                                    ": the GPU cannot be used: " + failure_);
    }
    properties_.name = found.name;
    properties_.major = found.major;
    properties_.minor = found.minor;
    properties_.multiprocessors = found.multiProcessorCount;
    properties_.libraries = library_->version();
    properties_.total_bytes = total;
    properties_.free_bytes = free;
    return {};
  }

  bool on_tensor_cores(DType type) const {
    return type == DType::f16 || (type == DType::bf16 && properties_.has_bf16());
  }
  Lane& lane_of(Queue queue) { return lanes_[static_cast<std::size_t>(queue)]; }
  cudaStream_t stream(Queue queue) { return lane_of(queue).stream.get(); }
  /// Or that of a later moment, if there were many since: later is right, too, since all work that
  /// an event can mean was given before now.
  cudaEvent_t event_of(Ticket ticket) {
    return lane_of(ticket.queue).events[ticket.number % kTickets].get();
  }

  void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess) {
      fail(std::string(what) + ": " + text_of(error));
    }
  }
  void fail(std::string what) {
    if (failure_.empty()) {
      failure_ = std::move(what);
    }
  }

  CudaProperties properties_;
  std::array<Lane, kQueues> lanes_;
  std::unique_ptr<CudaLibrary> library_;
  std::string failure_;  ///< The first.
};

Result<double> Gpu::measure_peak_flops(DType type) {
  constexpr std::uint64_t kWidth = 8192;
  constexpr int kRepeats = 8;
  constexpr float kMilliseconds = 60;  // Clocks need some time to find their place.
  const std::uint64_t element = dtype_bytes(type);
  const std::uint64_t weight_bytes = kWidth * kWidth * element;
  const std::uint64_t row_bytes = CudaLibrary::kRows * kWidth * element;
  LIB_TRY(const DeviceMemory memory, allocate(weight_bytes + 2 * row_bytes));
  // Random bits below an exponent of one: zeros would flatter the arithmetic.
  std::vector<std::byte> noise(weight_bytes);
  std::uint32_t state = 1;
  for (std::size_t i = 0; i < noise.size(); ++i) {
    state = state * 1664525U + 1013904223U;
    const bool high = i % element == element - 1;
    noise[i] = static_cast<std::byte>(high ? 0x3C | (state >> 24U & 0x81U) : state >> 24U);
  }
  check(cudaMemcpy(memory.get(), noise.data(), weight_bytes, cudaMemcpyHostToDevice), "copy");
  check(cudaMemcpy(memory.get() + weight_bytes, noise.data(), row_bytes, cudaMemcpyHostToDevice),
        "copy");
  check(cudaDeviceSynchronize(), "copy");
  CudaProduct product;
  product.w = memory.get();
  product.x = product.w + weight_bytes;
  product.y = memory.get() + weight_bytes + row_bytes;
  product.type = product.out = type;
  product.rows = CudaLibrary::kRows;
  product.inputs = product.outputs = kWidth;
  product.x_stride = product.w_stride = product.y_stride = kWidth;
  // As the device would: without tensor cores of the type its own kernel.
  const ProductPlan plan = type == DType::f32 || on_tensor_cores(type)
                               ? plan_product({type, type, false, true, kWidth, kWidth})
                               : ProductPlan{};
  std::array<Event, 2> moments;
  for (Event& moment : moments) {
    cudaEvent_t event = nullptr;
    check(cudaEventCreate(&event), "event");
    moment = Event(event);
  }
  float all = 0;
  float last = 1;
  while (all < kMilliseconds && failure_.empty()) {
    check(cudaEventRecord(moments[0].get(), stream(Queue::compute)), "mark");
    for (int i = 0; i < kRepeats; ++i) {
      this->product(product, plan);
    }
    check(cudaEventRecord(moments[1].get(), stream(Queue::compute)), "mark");
    check(cudaEventSynchronize(moments[1].get()), "work");
    check(cudaEventElapsedTime(&last, moments[0].get(), moments[1].get()), "time");
    all += last;
  }
  LIB_TRY_VOID(reached({}));
  return 2.0 * CudaLibrary::kRows * kWidth * kWidth * kRepeats / (static_cast<double>(last) * 1e-3);
}

}  // namespace

Result<std::unique_ptr<Device>> make_cuda_device(const CudaOptions& options) {
  LIB_TRY(std::unique_ptr<Gpu> gpu, Gpu::open(options.index));
  const CudaProperties& known = gpu->properties();
  const std::uint64_t around = known.overhead_bytes + kLateModulesBytes;
  const std::uint64_t available =
      known.free_bytes > kLateModulesBytes ? known.free_bytes - kLateModulesBytes : 0;
  std::uint64_t arena = available;
  if (options.memory_bytes) {
    if (*options.memory_bytes <= around || *options.memory_bytes - around > available) {
      return Error(ErrorCode::does_not_fit,
                   "--device-memory " + format_bytes(*options.memory_bytes) + ": " + known.name +
                       " has " + format_bytes(known.free_bytes) + " free of " +
                       format_bytes(known.total_bytes) + ", and context and libraries take " +
                       format_bytes(around));
    }
    arena = *options.memory_bytes - around;
  }
  return make_cuda_device(std::move(gpu), arena);
}

}  // namespace librarian::gpu_exec
