#pragma once
/// Whether a library's product treats every row alike: what no library promises and stores depend
/// on. Private to gpu_exec.

#include "base/error.h"
#include "gpu_exec/cuda_runtime.h"

namespace librarian::gpu_exec {

/// Multiplies random rows twice, the second time each in another place, and compares bits. Takes
/// device and host memory for the matrices meanwhile.
/// @error does_not_fit | internal (the GPU failed)
Result<bool> rows_are_alike(CudaRuntime& runtime, const ProductShape& shape,
                            const ProductPlan& plan);

}  // namespace librarian::gpu_exec
