// Launches of what works row by row or element by element.
#include "gpu_exec/cuda_kernel_rows.h"
#include "gpu_exec/cuda_launch_kernel.h"
#include "gpu_exec/cuda_launch_rows.h"

namespace librarian::gpu_exec {
namespace {

template <typename Op>
void launch_rows(const Op& op, std::uint64_t work, void* cuda_stream) {
  if (work != 0) {
    with_row_kernel(op, [&](const auto& kernel) { launch_kernel(kernel, cuda_stream); });
  }
}

}  // namespace

void launch_finish(const CudaFinish& op, void* cuda_stream) {
  launch_rows(op, op.rows, cuda_stream);
}
void launch_gate(const CudaGate& op, void* cuda_stream) { launch_rows(op, op.rows, cuda_stream); }
void launch_widen(const CudaWiden& op, void* cuda_stream) {
  launch_rows(op, op.count, cuda_stream);
}
void launch_norm(const NormOp& op, void* cuda_stream) { launch_rows(op, op.rows, cuda_stream); }
void launch_rope_table(const CudaRopeTable& op, void* cuda_stream) {
  launch_rows(op, op.rows, cuda_stream);
}
void launch_rotate(const CudaRotate& op, void* cuda_stream) {
  launch_rows(op, op.rows, cuda_stream);
}
void launch_topk(const TopkOp& op, void* cuda_stream) { launch_rows(op, op.rows, cuda_stream); }
void launch_add(const AddOp& op, void* cuda_stream) { launch_rows(op, op.count, cuda_stream); }

}  // namespace librarian::gpu_exec
