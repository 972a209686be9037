#pragma once
/// Runs the kernels that with_..._kernel() choose on the processor.

#include <type_traits>

#include "tests/support/simt_emulator.h"

namespace librarian::gpu_exec {

/// To be given to with_..._kernel().
inline const auto run_emulated = [](const auto& kernel) {
  using Kernel = std::decay_t<decltype(kernel)>;
  simt::run_blocks(kernel.blocks(), 1, Kernel::kThreads, Kernel::kSharedBytes,
                   [&](std::byte* shared) { kernel(shared); });
};

}  // namespace librarian::gpu_exec
