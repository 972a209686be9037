#include "tests/support/emulated_cuda.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <utility>

#include "gpu_exec/cuda_kernel_attention.h"
#include "gpu_exec/cuda_kernel_decode.h"
#include "gpu_exec/cuda_kernel_experts.h"
#include "gpu_exec/cuda_kernel_products.h"
#include "gpu_exec/cuda_kernel_rows.h"
#include "tests/gpu_exec/cuda_testing.h"

namespace librarian::gpu_exec {
namespace {

constexpr std::size_t kQueues = 4;
constexpr std::uint64_t kFavouredStepsMax = 200;
constexpr const char* kQueueNames[kQueues] = {"weights", "upload", "compute", "download"};

/// Memory full of NaN, of exactly the asked size.
/// @param leaving  Called before it goes.
DeviceMemory poisoned(std::uint64_t bytes, std::function<void(const std::byte*)> leaving) {
  void* memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  LIB_CHECK(memory != nullptr);
  std::memset(memory, 0xFF, bytes);
  return DeviceMemory(static_cast<std::byte*>(memory),
                      [leaving = std::move(leaving)](std::byte* at) {
                        leaving(at);
                        std::free(at);
                      });
}

class EmulatedCuda final : public CudaRuntime {
 public:
  EmulatedCuda(const EmulatedCudaOptions& options, EmulatedCudaRecord* record)
      : options_(options), record_(record), state_(options.seed * 2 + 1) {
    properties_.name = "emulated";
    properties_.major = options.major;
    properties_.minor = options.minor;
    properties_.multiprocessors = 1;
    properties_.libraries = options.library_rows != 0 ? "emulated-library" : "none";
    properties_.total_bytes = properties_.free_bytes = 16ULL << 30U;
  }

  const CudaProperties& properties() const override { return properties_; }

  Result<DeviceMemory> allocate(std::uint64_t bytes) override {
    if (record_ != nullptr) {
      record_->allocations.push_back(bytes);
    }
    return poisoned(bytes, leaving(bytes));
  }
  Result<DeviceMemory> allocate_host(std::uint64_t bytes) override {
    if (record_ != nullptr) {
      record_->host_allocations.push_back(bytes);
    }
    return poisoned(bytes, leaving(bytes));
  }

  Ticket mark(Queue queue) override {
    const Lane& lane = lane_of(queue);
    return {queue, lane.done + lane.work.size()};
  }
  void wait(Queue queue, Ticket ticket) override {
    LIB_CHECK(lane_of(ticket.queue).done + lane_of(ticket.queue).work.size() >= ticket.number);
    lane_of(queue).work.push_back({"", ticket, {}});
  }
  /// Time passes only here, and not always.
  Result<bool> reached(Ticket ticket) override {
    const Lane& lane = lane_of(ticket.queue);
    if (lane.done >= ticket.number && !failed()) {
      return true;
    }
    for (std::uint64_t steps = random() % 4; steps > 0; --steps) {
      step();
    }
    if (failed()) {
      return Error(ErrorCode::internal, "the emulated GPU failed, as it was told to");
    }
    return lane.done >= ticket.number;
  }

  void copy(Queue queue, const CudaCopy& copy) override {
    const std::uint64_t before = copy.rows - 1;
    lane_of(queue).copies.push_back(
        {lane_of(queue).done + lane_of(queue).work.size() + 1,
         {copy.from, copy.from + before * copy.from_stride + copy.row_bytes},
         {copy.to, copy.to + before * copy.to_stride + copy.row_bytes}});
    push(queue, "copy " + std::to_string(copy.row_bytes * copy.rows), [copy] {
      for (std::uint64_t row = 0; row < copy.rows; ++row) {
        std::memcpy(copy.to + row * copy.to_stride, copy.from + row * copy.from_stride,
                    copy.row_bytes);
      }
    });
  }
  void clear(std::byte* at, std::uint64_t bytes) override {
    push(Queue::compute, "clear", [at, bytes] { std::memset(at, 0, bytes); });
  }
  void launch(Queue queue, const CudaWiden& kernel) override {
    push(queue, "widen", [kernel] { with_row_kernel(kernel, run_emulated); });
  }
  void launch(const CudaDecode& kernel) override {
    push(Queue::weights, "decode", [kernel] { with_decode_kernel(kernel, run_emulated); });
  }
  void launch(const CudaFinish& kernel) override { push_rows("finish", kernel); }
  void launch(const CudaGate& kernel) override { push_rows("gate", kernel); }
  void launch(const CudaRopeTable& kernel) override { push_rows("rope_table", kernel); }
  void launch(const CudaRotate& kernel) override { push_rows("rotate", kernel); }
  void launch(const NormOp& kernel) override { push_rows("norm", kernel); }
  void launch(const AddOp& kernel) override { push_rows("add", kernel); }
  void launch(const TopkOp& kernel) override { push_rows("topk", kernel); }
  void launch(const CudaRoute& kernel) override { push_experts("route", kernel); }
  void launch(const GatherOp& kernel) override { push_experts("gather", kernel); }
  void launch(const CombineOp& kernel) override { push_experts("combine", kernel); }
  void launch(const RoundOp& kernel) override { push_experts("round", kernel); }
  void launch(const CudaAttention& kernel, bool tensor_cores) override {
    LIB_CHECK(!tensor_cores || kernel.type == DType::f16 || properties_.has_bf16());
    push(Queue::compute, "attention",
         [kernel, tensor_cores] { with_attention_kernel(kernel, tensor_cores, run_emulated); });
  }

  std::uint64_t library_rows() const override { return options_.library_rows; }
  ProductPlan plan_product(const ProductShape& shape) override {
    LIB_CHECK(options_.library_rows != 0);
    return {ProductPlan::Engine::library, static_cast<int>(shape.outputs % 3), "emulated"};
  }
  void product(const CudaProduct& kernel, const ProductPlan& plan) override {
    if (plan.engine == ProductPlan::Engine::library) {
      LIB_CHECK(kernel.rows == options_.library_rows);
      push(Queue::compute, "library", [kernel, plan, uneven = options_.library_rows_differ] {
        multiply_like_a_library(kernel, plan.algorithm, uneven);
      });
      return;
    }
    const bool tensor_cores = plan.engine == ProductPlan::Engine::tensor_cores;
    LIB_CHECK(!tensor_cores || kernel.type == DType::f16 || properties_.has_bf16());
    push(Queue::compute, "product",
         [kernel, tensor_cores] { with_product_kernel(kernel, tensor_cores, run_emulated); });
  }

  Result<double> measure_peak_flops(DType /*type*/) override { return 1e9; }

 private:
  struct Work {
    std::string name;
    Ticket after;
    std::function<void()> run;
  };
  using Bytes = std::pair<const std::byte*, const std::byte*>;
  struct PendingCopy {
    std::uint64_t number = 0;  ///< Of the piece of work.
    Bytes from, to;
  };
  struct Lane {
    std::deque<Work> work;
    std::deque<PendingCopy> copies;  ///< Among the work, in order.
    std::uint64_t done = 0;
  };

  /// Memory must not go while a copy has still to touch it: a real GPU would read what is there
  /// next. Memory that outlives this runtime is no concern of it.
  std::function<void(const std::byte*)> leaving(std::uint64_t bytes) {
    return [alive = std::weak_ptr<int>(alive_), this, bytes](const std::byte* memory) {
      if (alive.expired() || failed()) {
        return;
      }
      const auto touches = [&](const Bytes& range) {
        return range.first < memory + bytes && memory < range.second;
      };
      for (const Lane& lane : lanes_) {
        LIB_CHECK(std::none_of(lane.copies.begin(), lane.copies.end(), [&](const auto& copy) {
          return touches(copy.from) || touches(copy.to);
        }));
      }
    };
  }

  Lane& lane_of(Queue queue) { return lanes_[static_cast<std::size_t>(queue)]; }
  bool failed() const { return steps_ >= options_.fails_after; }

  std::uint64_t random() {
    state_ = state_ * 6364136223846793005U + 1442695040888963407U;
    return state_ >> 33U;
  }

  void push(Queue queue, std::string name, std::function<void()> run) {
    lane_of(queue).work.push_back({std::move(name), {}, std::move(run)});
  }
  template <typename Kernel>
  void push_rows(const char* name, const Kernel& kernel) {
    push(Queue::compute, name, [kernel] { with_row_kernel(kernel, run_emulated); });
  }
  template <typename Kernel>
  void push_experts(const char* name, const Kernel& kernel) {
    push(Queue::compute, name, [kernel] { with_expert_kernel(kernel, run_emulated); });
  }

  /// Does one piece of work of a queue that has some and need not wait.
  void step() {
    std::array<std::size_t, kQueues> ready{};
    std::size_t count = 0;
    for (std::size_t i = 0; i < kQueues; ++i) {
      if (!lanes_[i].work.empty()) {
        const Ticket& after = lanes_[i].work.front().after;
        if (lane_of(after.queue).done >= after.number) {
          ready[count++] = i;
        }
      }
    }
    if (count == 0) {
      return;
    }
    const auto last = ready.begin() + static_cast<std::ptrdiff_t>(count) - 1;
    std::size_t chosen = 0;
    if (options_.copies_first) {
      // Compute is the third of the four.
      chosen = *std::find_if(ready.begin(), last, [](std::size_t queue) { return queue != 2; });
    } else {
      // One queue goes on for a while and leaves the others far behind, then another does.
      if (favoured_steps_ == 0) {
        favoured_ = random() % kQueues;
        favoured_steps_ = random() % kFavouredStepsMax + 1;
      }
      --favoured_steps_;
      chosen = std::find(ready.begin(), last + 1, favoured_) == last + 1 ? ready[random() % count]
                                                                         : favoured_;
    }
    Lane& lane = lanes_[chosen];
    const Work work = std::move(lane.work.front());
    lane.work.pop_front();
    ++steps_;
    if (work.run && !failed()) {
      work.run();
      if (record_ != nullptr) {
        record_->done.push_back(std::string(kQueueNames[chosen]) + " " + work.name);
      }
    }
    ++lane.done;
    if (!lane.copies.empty() && lane.copies.front().number == lane.done) {
      lane.copies.pop_front();
    }
  }

  /// Sums from another place for each algorithm: as good, with other bits.
  static void multiply_like_a_library(const CudaProduct& op, int algorithm, bool uneven) {
    with_element(op.type, [&](auto element) {
      constexpr DType kIn = decltype(element)::kType;
      with_element(op.out, [&](auto result) {
        constexpr DType kOut = decltype(result)::kType;
        const std::uint64_t first = op.inputs * static_cast<std::uint64_t>(algorithm) / 3;
        for (std::uint64_t row = 0; row < op.rows; ++row) {
          for (std::uint64_t output = 0; output < op.outputs; ++output) {
            float sum = 0;
            for (std::uint64_t i = 0; i < op.inputs; ++i) {
              const std::uint64_t k = (first + (uneven ? row : 0) + i) % op.inputs;
              const std::uint64_t at =
                  op.w_transposed ? k * op.w_stride + output : output * op.w_stride + k;
              sum += load_element<kIn>(op.x, row * op.x_stride + k) * load_element<kIn>(op.w, at);
            }
            store_element<kOut>(sum, op.y, row * op.y_stride + output);
          }
        }
      });
    });
  }

  const EmulatedCudaOptions options_;
  EmulatedCudaRecord* const record_;
  CudaProperties properties_;
  std::array<Lane, kQueues> lanes_;
  std::uint64_t steps_ = 0;
  std::size_t favoured_ = 0;
  std::uint64_t favoured_steps_ = 0;
  std::uint64_t state_;
  const std::shared_ptr<int> alive_ = std::make_shared<int>(0);  // Its end is this one's.
};

}  // namespace

std::unique_ptr<CudaRuntime> make_emulated_cuda(const EmulatedCudaOptions& options,
                                                EmulatedCudaRecord* record) {
  return std::make_unique<EmulatedCuda>(options, record);
}

}  // namespace librarian::gpu_exec
