#pragma once
/// Launches of CUDA kernels: products and what works row by row. Each enqueues at most one kernel
/// on `cuda_stream`, a cudaStream_t of the current device, and returns; of nothing to do it
/// launches nothing. Whether a launch was taken is what cudaGetLastError() says afterwards. No CUDA
/// header. Private to gpu_exec.

#include "gpu_exec/cuda_kernels.h"
#include "gpu_exec/device.h"

namespace librarian::gpu_exec {

/// @param tensor_cores  Multiply 16-bit elements with them: bf16 needs compute capability 8.0.
void launch_product(const CudaProduct& op, bool tensor_cores, void* cuda_stream);
void launch_finish(const CudaFinish& op, void* cuda_stream);
void launch_gate(const CudaGate& op, void* cuda_stream);
void launch_widen(const CudaWiden& op, void* cuda_stream);
void launch_norm(const NormOp& op, void* cuda_stream);
void launch_rope_table(const CudaRopeTable& op, void* cuda_stream);
void launch_rotate(const CudaRotate& op, void* cuda_stream);
void launch_add(const AddOp& op, void* cuda_stream);
void launch_topk(const TopkOp& op, void* cuda_stream);
void launch_decode(const CudaDecode& op, void* cuda_stream);
void launch_route(const CudaRoute& op, void* cuda_stream);
void launch_gather(const GatherOp& op, void* cuda_stream);
void launch_combine(const CombineOp& op, void* cuda_stream);
void launch_round(const RoundOp& op, void* cuda_stream);

}  // namespace librarian::gpu_exec
