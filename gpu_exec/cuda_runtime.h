#pragma once
/// A GPU as cuda_device uses it: memory, queues and kernels. The real one is in cuda_runtime.cu;
/// tests put one here that runs the same kernels on the processor, each queue as late as it may.
/// No CUDA header is needed to read this. Private to gpu_exec.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <tuple>

#include "base/error.h"
#include "gpu_exec/cuda_kernels.h"
#include "gpu_exec/device.h"

namespace librarian::gpu_exec {

struct CudaProperties {
  std::string name;  ///< "NVIDIA H100 80GB HBM3"
  int major = 0;     ///< Compute capability.
  int minor = 0;
  int multiprocessors = 0;
  std::string libraries;             ///< Versions that numbers depend on: "cublaslt-130002".
  std::uint64_t total_bytes = 0;     ///< Of the GPU.
  std::uint64_t free_bytes = 0;      ///< When it was opened, context and modules already there.
  std::uint64_t overhead_bytes = 0;  ///< What context and modules take, measured.
  /// Below 8.0 tensor cores take f16 only; bf16 runs as f32 there.
  bool has_bf16() const { return major >= 8; }
};

/// What decides how a product is computed.
struct ProductShape {
  DType type = DType::bf16;
  DType out = DType::bf16;
  bool w_transposed = false;
  bool aligned = true;  ///< Rows of all three begin at multiples of 16 bytes.
  std::uint64_t inputs = 0, outputs = 0;
  bool few_rows = false;  ///< See LinearOp.
  bool operator<(const ProductShape& other) const {
    return std::tie(type, out, w_transposed, aligned, inputs, outputs, few_rows) <
           std::tie(other.type, other.out, other.w_transposed, other.aligned, other.inputs,
                    other.outputs, other.few_rows);
  }
};

/// How products of one shape are computed: from shape, architecture and library alone, never from
/// timing.
struct ProductPlan {
  enum class Engine : std::uint8_t {
    plain,         ///< Our kernel in f32.
    tensor_cores,  ///< Our kernel on tensor cores.
    library,       ///< cuBLASLt with one algorithm.
  };
  Engine engine = Engine::plain;
  int algorithm = -1;  ///< The runtime's number of it.
  std::string text;    ///< For reports.
};

/// A rectangle of bytes; one of the two sides is host memory, or both are the device's.
struct CudaCopy {
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  std::uint64_t row_bytes = 0, rows = 1;
  std::uint64_t from_stride = 0, to_stride = 0;  ///< Bytes from one row to the next.
};

/// Failures come late: the first one is kept, and every reached() says it from then on. Not
/// thread-safe.
class CudaRuntime {
 public:
  virtual ~CudaRuntime() = default;
  virtual const CudaProperties& properties() const = 0;

  /// Device memory, aligned to 256; contents undefined.   @error does_not_fit
  virtual Result<DeviceMemory> allocate(std::uint64_t bytes) = 0;
  /// Host memory that the GPU reads and writes itself.    @error does_not_fit
  virtual Result<DeviceMemory> allocate_host(std::uint64_t bytes) = 0;

  /// As Device.
  virtual Ticket mark(Queue queue) = 0;
  virtual void wait(Queue queue, Ticket ticket) = 0;
  virtual Result<bool> reached(Ticket ticket) = 0;

  virtual void copy(Queue queue, const CudaCopy& copy) = 0;
  /// Zeros, in Queue::compute.
  virtual void clear(std::byte* at, std::uint64_t bytes) = 0;
  virtual void launch(Queue queue, const CudaWiden& kernel) = 0;
  /// In Queue::weights.
  virtual void launch(const CudaDecode& kernel) = 0;
  // All others run on Queue::compute.
  virtual void launch(const CudaFinish& kernel) = 0;
  virtual void launch(const CudaGate& kernel) = 0;
  virtual void launch(const CudaRopeTable& kernel) = 0;
  virtual void launch(const CudaRotate& kernel) = 0;
  virtual void launch(const NormOp& kernel) = 0;
  virtual void launch(const AddOp& kernel) = 0;
  virtual void launch(const TopkOp& kernel) = 0;
  virtual void launch(const CudaRoute& kernel) = 0;
  virtual void launch(const GatherOp& kernel) = 0;
  virtual void launch(const CombineOp& kernel) = 0;
  virtual void launch(const RoundOp& kernel) = 0;
  virtual void launch(const CudaAttention& kernel, bool tensor_cores) = 0;

  /// A library chooses its kernel by the number of rows, too, so it is always given so many; 0:
  /// there is no library.
  virtual std::uint64_t library_rows() const = 0;
  /// The library's plan for a shape; Engine::library or, if it has none that adds up in one order,
  /// another engine.
  virtual ProductPlan plan_product(const ProductShape& shape) = 0;
  /// Engine::library computes exactly library_rows() rows.
  virtual void product(const CudaProduct& kernel, const ProductPlan& plan) = 0;

  /// Floating-point operations per second of large products of `type`, from some milliseconds of
  /// them; takes memory for that time.
  virtual Result<double> measure_peak_flops(DType type) = 0;
};

}  // namespace librarian::gpu_exec
