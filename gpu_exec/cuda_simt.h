#pragma once
/// What a kernel body sees of a GPU: numbers of threads and blocks, barriers, shuffles, and
/// products of tensor cores. nvcc turns each into the instruction; for any other compiler they are
/// functions that whoever runs the body defines, which is how tests run CUDA kernels on a processor
/// (tests/support/simt_emulator). Private to gpu_exec.
///
/// Every thread of a warp must reach each of the warp-wide functions, and every thread of a block
/// each sync_threads(), in the same order.
/// @source PTX ISA: ldmatrix, mma.m16n8k16, mma.m16n8k8, cp.async, shfl.sync

#include <cstdint>

#include "gpu_exec/row_functors.h"

#ifdef __CUDACC__
#define LIBRARIAN_KERNEL_BODY __device__ __forceinline__
#else
#define LIBRARIAN_KERNEL_BODY inline
#endif

namespace librarian::gpu_exec::simt {

inline constexpr unsigned kWarpThreads = 32;

/// Element types that tensor cores multiply; both are 16 bits wide.
enum class MmaType : std::uint8_t { bf16, f16 };

#ifdef __CUDACC__

__device__ __forceinline__ unsigned thread_index() { return threadIdx.x; }
__device__ __forceinline__ unsigned block_threads() { return blockDim.x; }
__device__ __forceinline__ unsigned block_index_x() { return blockIdx.x; }
__device__ __forceinline__ unsigned block_index_y() { return blockIdx.y; }
__device__ __forceinline__ unsigned grid_blocks_x() { return gridDim.x; }

__device__ __forceinline__ void sync_threads() { __syncthreads(); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }

/// The value of the lane whose number is this one's xor `mask`.
__device__ __forceinline__ float shuffle_xor(float value, unsigned mask) {
  return __shfl_xor_sync(0xFFFFFFFFU, value, static_cast<int>(mask));
}

/// a * b + c with one rounding.
__device__ __forceinline__ float fused_multiply_add(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}

/// Four 8 x 8 matrices of 16-bit elements: lane i gives the address of row i % 8 of matrix i / 8
/// (16 bytes, aligned to 16); r[m] is elements {2 * (lane % 4), + 1} of row lane / 4 of matrix m.
__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], const void* shared_row) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
/// As load_matrices(), each matrix transposed: r[m] is elements {lane / 4} of rows
/// 2 * (lane % 4) and + 1.
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&r)[4],
                                                         const void* shared_row) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// c += a * b for A [16, 16] and B [16, 8], f32 sums. With g = lane / 4 and t = lane % 4:
/// a[0], a[1]: rows g, g + 8 at columns 2t, 2t + 1; a[2], a[3]: the same rows at columns 2t + 8, +
/// 9; b0: rows 2t, 2t + 1 of column g; b1: rows 2t + 8, + 9 of column g; c[0], c[1]: row g at
/// columns 2t, 2t + 1; c[2], c[3]: row g + 8 there. bf16 needs compute capability 8.0; below it
/// there is f16 only, in two steps of 8.
template <MmaType type>
__device__ __forceinline__ void multiply_accumulate(float (&c)[4], const std::uint32_t (&a)[4],
                                                    std::uint32_t b0, std::uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  if constexpr (type == MmaType::bf16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#else
  if constexpr (type == MmaType::bf16) {
    __trap();  // The runtime never launches it here; see CudaProperties::has_bf16().
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2]), "r"(a[3]), "r"(b1));
  }
#endif
}

/// Copies 16 bytes from device memory to shared memory, both aligned to 16, or writes 16 zero bytes
/// unless `valid` (then `global` is not read). There once copies_wait() and a barrier have passed.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(to), "l"(global), "r"(bytes)
               : "memory");
#else
  *static_cast<uint4*>(shared) =
      valid ? *static_cast<const uint4*>(global) : make_uint4(0, 0, 0, 0);
#endif
}
/// Ends a group of copies.
__device__ __forceinline__ void copies_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/// Waits until at most `groups` groups of this thread's copies are under way.
template <int groups>
__device__ __forceinline__ void copies_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
#endif
}

#else  // Defined by whoever runs kernel bodies; the contracts stand above.

unsigned thread_index();
unsigned block_threads();
unsigned block_index_x();
unsigned block_index_y();
unsigned grid_blocks_x();
void sync_threads();
void sync_warp();
float shuffle_xor(float value, unsigned mask);
float fused_multiply_add(float a, float b, float c);
void load_matrices(std::uint32_t (&r)[4], const void* shared_row);
void load_matrices_transposed(std::uint32_t (&r)[4], const void* shared_row);
template <MmaType type>
void multiply_accumulate(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                         std::uint32_t b1);
void copy_async_16(void* shared, const void* global, bool valid);
void copies_commit();
/// Call through copies_wait<groups>().
void copies_wait_for(int groups);
template <int groups>
void copies_wait() {
  copies_wait_for(groups);
}

#endif

}  // namespace librarian::gpu_exec::simt
