// The tests of latent_test.cc on emulated GPUs with and without tensor cores for bf16.
#include "gpu_exec/cuda_device.h"
#include "tests/gpu_exec/latent_testing.h"
#include "tests/support/emulated_cuda.h"

namespace librarian::gpu_exec {
namespace {

std::vector<TestDevice> emulated_gpus() {
  std::vector<TestDevice> gpus;
  for (const int major : {7, 8}) {
    gpus.push_back({"emulated_sm" + std::to_string(major) + "0", [major] {
                      EmulatedCudaOptions options;
                      options.major = major;
                      return *make_cuda_device(make_emulated_cuda(options), 1ULL << 30U);
                    }});
  }
  return gpus;
}

INSTANTIATE_TEST_SUITE_P(EmulatedGpus, PartedHeads, testing::ValuesIn(emulated_gpus()),
                         name_of_device);
INSTANTIATE_TEST_SUITE_P(EmulatedGpus, TurnedHeads, testing::ValuesIn(emulated_gpus()),
                         name_of_device);

}  // namespace
}  // namespace librarian::gpu_exec
