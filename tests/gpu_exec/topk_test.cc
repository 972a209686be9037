// Top k, sum and gold logit on each path of the processor: a full softmax's, whatever the company.
#include "gpu_exec/topk.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/gpu_exec/topk_testing.h"

namespace librarian::gpu_exec {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class TopkOnPath : public testing::TestWithParam<CpuIsa> {
 protected:
  TopkAnswer run(const TopkCase& data, int threads = 2, std::uint64_t rows_together = 1000) const {
    const auto device = cpu_device(GetParam(), threads);
    return topk_of(
        data, [&](const TopkOp& op) { device->topk(op); }, rows_together);
  }
};

// Goal: ids are exact, ties by id; sums and log-probabilities are those of a full softmax.
TEST_P(TopkOnPath, IsAFullSoftmaxes) {
  const std::vector<TopkCase> cases = topk_cases();
  for (std::size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(i);
    TopkCase data = cases[i];
    const TopkAnswer got = run(data);
    if (data.softcap != 0) {
      // The path's own tangent may order neighbours otherwise: the k-th value is what must agree.
      const TopkAnswer wanted = full_softmax(data);
      for (std::uint64_t r = 0; r < data.rows; ++r) {
        const float* const products = &data.products[r * data.vocabulary];
        for (std::uint32_t j = 0; j < data.k; ++j) {
          const auto own = static_cast<std::size_t>(got.ids[r * data.k + j]);
          const auto theirs = static_cast<std::size_t>(wanted.ids[r * data.k + j]);
          EXPECT_NEAR(logit_of(products[own], data.multiplier, data.softcap),
                      logit_of(products[theirs], data.multiplier, data.softcap), 1e-6);
        }
        EXPECT_NEAR(got.logsumexp[r], wanted.logsumexp[r], 1e-5);
        EXPECT_TRUE(got.finite[r]);
      }
      continue;
    }
    expect_alike(got, full_softmax(data));
  }
}

// Goal: a row's bits depend on nothing but its logits.
TEST_P(TopkOnPath, GivesARowTheSameBitsInAnyCompany) {
  const TopkCase data = random_case(100, kVocabularyTile + 700, 20, 3);
  const TopkAnswer whole = run(data);
  EXPECT_EQ(run(data, 1).memory, whole.memory);
  EXPECT_EQ(run(data, 2, 7).memory, whole.memory);
}

// Goal: what is not finite is never passed over in silence, and -inf below the k largest is none.
TEST_P(TopkOnPath, SaysWhatIsNotFinite) {
  TopkCase data = random_case(6, kVocabularyTile + 10, 5, 4);
  const auto put = [&](std::uint64_t row, std::uint64_t id, float value) {
    data.products[row * data.vocabulary + id] = value;
  };
  put(0, 3, kNan);
  put(1, kVocabularyTile + 1, kNan);
  put(2, 9, kInfinity);
  put(3, 9, -kInfinity);
  data.gold_ids[4] = 7;
  put(4, 7, -kInfinity);
  const TopkAnswer got = run(data);
  EXPECT_EQ(got.finite, (std::vector<bool>{false, false, false, true, false, true}));
  EXPECT_TRUE(std::isnan(got.logsumexp[1]));
  EXPECT_EQ(got.logsumexp[2], kInfinity);
  EXPECT_EQ(got.ids[2 * data.k], 9);
  // A row of NaN has no candidates at all.
  TopkCase nothing = random_case(1, 100, 5, 5);
  std::fill(nothing.products.begin(), nothing.products.end(), kNan);
  EXPECT_EQ(run(nothing).ids, std::vector<std::int32_t>(5, -1));
}

// Goal: the head's product is f32, not rounded to the activations' type, on every path.
TEST_P(TopkOnPath, ProductsOfNarrowRowsStayWide) {
  constexpr std::uint64_t kRows = 5;
  constexpr std::uint64_t kInputs = 70;
  constexpr std::uint64_t kOutputs = 50;
  const auto device = cpu_device(GetParam(), 2);
  TestRandom random(6);
  for (const DType type : {DType::bf16, DType::f16, DType::f32}) {
    const std::vector<float> x = rounded(random.vector(kRows * kInputs, 1.0F), type);
    const std::vector<float> w = rounded(random.vector(kOutputs * kInputs, 1.0F), type);
    const Bytes x_bytes = to_bytes(x, type);
    const Bytes w_bytes = to_bytes(w, type);
    const DeviceMemory packed = aligned_memory(device->packed_bytes(kOutputs, kInputs, type));
    const DeviceMemory scratch = aligned_memory(device->scratch_bytes({}));
    device->pack_matrix({w_bytes.data(), type, {}, false, kOutputs}, kOutputs, kInputs,
                        packed.get());
    std::vector<float> y(kRows * kOutputs, kNan);
    LinearOp op;
    op.x = x_bytes.data();
    op.y = reinterpret_cast<std::byte*>(y.data());
    op.dtype = type;
    op.rows = kRows;
    op.inputs = kInputs;
    op.outputs = kOutputs;
    op.matrix = {packed.get(), type, nullptr, false};
    op.y_f32 = true;
    device->linear(op, scratch.get(), {});
    for (std::uint64_t r = 0; r < kRows; ++r) {
      for (std::uint64_t o = 0; o < kOutputs; ++o) {
        double sum = 0;
        for (std::uint64_t i = 0; i < kInputs; ++i) {
          sum += static_cast<double>(x[r * kInputs + i]) * w[o * kInputs + i];
        }
        ASSERT_NEAR(y[r * kOutputs + o], sum, 2e-5) << dtype_name(type) << r << " " << o;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, TopkOnPath, testing::ValuesIn(machine_isas()),
                         [](const auto& path) { return cpu_isa_name(path.param); });

}  // namespace
}  // namespace librarian::gpu_exec
