#pragma once
/// The CUDA attention kernels, and which of them computes what. Private to gpu_exec.

#include "gpu_exec/cuda_kernel_attention_plain.h"
#include "gpu_exec/cuda_kernel_attention_tensor.h"

namespace librarian::gpu_exec {

template <simt::MmaType type, typename Launch>
inline void with_tensor_attention(const CudaAttention& op, const Launch& launch) {
  if (op.shared_dim != 0 || op.value_dim != op.head_dim || op.v_strides.row != op.k_strides.row ||
      op.v_strides.head != op.k_strides.head) {
    if (op.head_dim <= 192 && op.value_dim <= 128) {
      launch(TensorAttention<type, 192, 128, true>::of(op));
    } else {
      launch(TensorAttention<type, 256, 256, true>::of(op));
    }
  } else if (op.head_dim <= 64) {
    launch(TensorAttention<type, 64>::of(op));
  } else if (op.head_dim <= 80) {
    launch(TensorAttention<type, 80>::of(op));
  } else if (op.head_dim <= 96) {
    launch(TensorAttention<type, 96>::of(op));
  } else if (op.head_dim <= 128) {
    launch(TensorAttention<type, 128>::of(op));
  } else {
    launch(TensorAttention<type, 256>::of(op));
  }
}

/// Calls launch(kernel) with the kernel that computes `whole`, as with_product_kernel() does;
/// blocks may want more than 48 KiB of shared memory, but not more than 64.
/// @param whole         At least one tile and head, head_dim in [1, kHeadDimMax], so value_dim,
///                      heads a multiple of kv_heads; no tile without rows. Less than 2^31 tiles
///                      times heads.
/// @param tensor_cores  Multiply 16-bit elements with them, probabilities rounded to their type;
///                      of f32 there is one kernel only.
template <typename Launch>
inline void with_attention_kernel(const CudaAttention& whole, bool tensor_cores,
                                  const Launch& launch) {
  const CudaAttention op = AttentionCore::filled(whole);
  if (tensor_cores && op.type == DType::bf16) {
    with_tensor_attention<simt::MmaType::bf16>(op, launch);
  } else if (tensor_cores && op.type == DType::f16) {
    with_tensor_attention<simt::MmaType::f16>(op, launch);
  } else {
    with_element(op.type, [&](auto element) {
      if (op.value_dim <= 128) {
        launch(PlainAttention<decltype(element)::kType, 128>::of(op));
      } else {
        launch(PlainAttention<decltype(element)::kType, 256>::of(op));
      }
    });
  }
}

}  // namespace librarian::gpu_exec
