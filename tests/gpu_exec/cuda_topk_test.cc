// The CUDA kernel of the top k on an emulated GPU: a full softmax's, and the processor's ids.
#include <gtest/gtest.h>

#include <limits>

#include "gpu_exec/cuda_kernel_rows.h"
#include "tests/gpu_exec/cuda_testing.h"
#include "tests/gpu_exec/topk_testing.h"

namespace librarian::gpu_exec {
namespace {

void run_kernel(const TopkOp& op) { with_row_kernel(op, run_emulated); }

// Goal: ids as the processor's; log-probabilities and sums within the last bit of a full softmax.
TEST(CudaTopk, IsAFullSoftmaxes) {
  const std::vector<TopkCase> cases = topk_cases();
  for (std::size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(i);
    expect_alike(topk_of(cases[i], run_kernel, 1000), full_softmax(cases[i]));
  }
}

TEST(CudaTopk, GivesARowTheSameBitsInAnyCompany) {
  const TopkCase data = random_case(5, kVocabularyTile + 300, 20, 3);
  EXPECT_EQ(topk_of(data, run_kernel, 2).memory, topk_of(data, run_kernel, 5).memory);
}

TEST(CudaTopk, SaysWhatIsNotFinite) {
  TopkCase data = random_case(4, kVocabularyTile + 10, 5, 4);
  data.products[3] = std::numeric_limits<float>::quiet_NaN();
  data.products[data.vocabulary + 9] = std::numeric_limits<float>::infinity();
  data.products[2 * data.vocabulary + 9] = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(topk_of(data, run_kernel, 4).finite, (std::vector<bool>{false, false, true, true}));
}

// Goal: the largest k of one tile is the room that the kernel has.
TEST(CudaTopk, HoldsATilesWorthOfCandidates) {
  const TopkCase data = random_case(1, 2 * kVocabularyTile, kTopkMax, 5);
  expect_alike(topk_of(data, run_kernel, 1), full_softmax(data));
}

}  // namespace
}  // namespace librarian::gpu_exec
