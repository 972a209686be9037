// The kernels of one path and their table; see cpu_kernel_vectors.h for what must precede it.
#include "gpu_exec/cpu_kernel_experts.h"
#include "gpu_exec/cpu_kernel_peak.h"

namespace librarian::gpu_exec {
namespace {

constexpr CpuKernels kKernels{
    .panel_columns = kPanel,
    .bf16_in_pairs = Bf16::kPaired,
    .linear_scratch_floats = kLinearScratchFloats,
    .linear_shape = linear_shape,
    .attention_scratch_floats = attention_scratch_size,
    .linear = linear_tile,
    .attention = attention_tile,
    .norm = norm_tile,
    .rotate = rotate_tile,
    .add = add_tile,
    .topk = topk_tile,
    .gather = gather_tile,
    .combine = combine_tile,
    .round = round_run,
    .peak = peak_of_vectors,
};

}  // namespace
}  // namespace librarian::gpu_exec
