// Launches of what mixtures of experts do besides products.
#include "gpu_exec/cuda_kernel_experts.h"
#include "gpu_exec/cuda_launch_kernel.h"
#include "gpu_exec/cuda_launch_rows.h"

namespace librarian::gpu_exec {
namespace {

template <typename Op>
void launch_expert(const Op& op, std::uint64_t work, void* cuda_stream) {
  if (work != 0) {
    with_expert_kernel(op, [&](const auto& kernel) { launch_kernel(kernel, cuda_stream); });
  }
}

}  // namespace

void launch_route(const CudaRoute& op, void* cuda_stream) {
  launch_expert(op, op.rows, cuda_stream);
}
void launch_gather(const GatherOp& op, void* cuda_stream) {
  launch_expert(op, op.count, cuda_stream);
}
void launch_combine(const CombineOp& op, void* cuda_stream) {
  launch_expert(op, op.count, cuda_stream);
}
void launch_round(const RoundOp& op, void* cuda_stream) {
  launch_expert(op, op.count, cuda_stream);
}

}  // namespace librarian::gpu_exec
