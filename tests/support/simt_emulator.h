#pragma once
/// Runs the bodies of CUDA kernels on the processor, by defining what gpu_exec/cuda_simt.h leaves
/// open to other compilers than nvcc. Slow and strict: it stands in for the GPU in tests.
///
/// Threads of a block run one at a time and change only where they meet, so that a run is the same
/// every time. A race still shows: shared memory begins as NaN, asynchronous copies arrive as late
/// as they may, and every other block runs its threads from the last to the first.
///
/// Ends the program with a sentence if lanes of a warp meet in different functions, if threads wait
/// for others that never come, or if an address is misaligned or not in the block's shared memory.

#include <cstddef>
#include <functional>

namespace librarian::gpu_exec::simt {

/// Calls `body` once for every thread of every block, one block after the other.
/// Any number of (operating system) threads may call it at once; a body may not.
/// @param block_threads  A multiple of kWarpThreads, at most 1024.
/// @param shared_bytes   Shared memory of a block, which `body` is given aligned to 128.
void run_blocks(unsigned grid_x, unsigned grid_y, unsigned block_threads, std::size_t shared_bytes,
                const std::function<void(std::byte* shared)>& body);

}  // namespace librarian::gpu_exec::simt
