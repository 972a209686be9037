// What mixtures of experts do besides products, for CUDA, on an emulated GPU: the CPU device's
// bits.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "gpu_exec/cuda_kernel_experts.h"
#include "tests/gpu_exec/cuda_area.h"
#include "tests/gpu_exec/cuda_buffers.h"
#include "tests/gpu_exec/cuda_testing.h"

namespace librarian::gpu_exec {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// A router's choices.
struct Routes {
  std::vector<std::int32_t> ids;
  std::vector<float> weights, shared;
  /// NaN equals NaN.
  bool operator==(const Routes& other) const {
    return ids == other.ids &&
           to_bytes(weights, DType::f32) == to_bytes(other.weights, DType::f32) &&
           to_bytes(shared, DType::f32) == to_bytes(other.shared, DType::f32);
  }
};

/// Rows of products, one of them with what a broken model may give.
struct RouterRows {
  MoeSpec moe;
  std::uint64_t rows = 0;
  std::vector<float> products, bias, shared;

  RouterRows(const MoeSpec& of, std::uint64_t count) : moe(of), rows(count) {
    TestRandom random(of.experts + of.top_k);
    products = random.vector(rows * moe.experts, 4.0F);
    bias = random.vector(moe.experts, 0.2F);
    shared = random.vector(rows, 3.0F);
    if (rows < 4) {
      return;
    }
    // Equal ones in row 0; numbers and no numbers in row 1; nothing but NaN in row 2, and only
    // behind the first in row 3.
    std::fill_n(products.begin(), moe.experts, 0.5F);
    float* row = products.data() + moe.experts;
    row[0] = -kInfinity;
    row[moe.experts / 2] = kInfinity;
    row[moe.experts - 1] = kNan;
    std::fill_n(products.begin() + 2 * std::ptrdiff_t{moe.experts}, moe.experts, kNan);
    products[4 * std::size_t{moe.experts} - 1] = kNan;
  }

  RouteOp op(Routes& to, std::uint64_t begin, std::uint64_t end) const {
    to.ids.assign((end - begin) * moe.top_k, -1);
    to.weights.assign((end - begin) * moe.top_k, -1.0F);
    const auto first = shared.begin() + static_cast<std::ptrdiff_t>(begin);
    to.shared.assign(first, first + static_cast<std::ptrdiff_t>(end - begin));
    return {products.data() + begin * moe.experts,       end - begin,   &moe,
            moe.select_bias ? bias.data() : nullptr,     to.ids.data(), to.weights.data(),
            moe.shared_gate ? to.shared.data() : nullptr};
  }
  Routes by_cpu() const {
    Routes routes;
    cpu_device(CpuIsa::portable, 1)->route(op(routes, 0, rows));
    return routes;
  }
  Routes emulated(std::uint64_t begin, std::uint64_t end) const {
    Routes routes;
    const RouteOp o = op(routes, begin, end);
    with_expert_kernel(
        CudaRoute{o.products, o.rows, *o.moe, o.select_bias, o.ids, o.weights, o.shared_products},
        run_emulated);
    return routes;
  }
};

MoeSpec experts(std::uint32_t count, std::uint32_t top_k) {
  MoeSpec moe;
  moe.experts = count;
  moe.top_k = top_k;
  return moe;
}

std::vector<MoeSpec> routers() {
  std::vector<MoeSpec> all = {experts(1, 1),     experts(8, 2),   experts(7, 7),    experts(128, 8),
                              experts(129, 129), experts(256, 8), experts(1024, 3), experts(33, 1)};
  MoeSpec moe = experts(64, 6);
  moe.score = RouterScore::sigmoid;
  moe.groups = 8;
  moe.top_groups = 4;
  moe.select_bias = true;
  moe.multiplier = 2.5F;
  all.push_back(moe);
  moe.group_rank = GroupRank::best;
  moe.shared_gate = true;
  moe.renormalise = false;
  all.push_back(moe);
  moe = experts(160, 3);
  moe.groups = 80;
  moe.top_groups = 3;
  all.push_back(moe);
  moe = experts(40, 5);
  moe.groups = moe.experts;
  moe.top_groups = 5;
  moe.router_cap = 2;
  moe.renormalise_floor = 0.9F;
  all.push_back(moe);
  return all;
}

// Goal: experts and weights are the CPU device's, bit for bit, and a row's depend on it alone.
// Method: every part of a router on rows with equal, infinite and no numbers; rows alone as well.
TEST(CudaExperts, RoutesAreTheCpus) {
  for (const MoeSpec& moe : routers()) {
    const RouterRows router(moe, 9);
    const Routes expected = router.by_cpu();
    const Routes all = router.emulated(0, router.rows);
    EXPECT_EQ(all.ids, expected.ids) << moe.experts << " top " << moe.top_k;
    EXPECT_EQ(all, expected) << moe.experts << " top " << moe.top_k;
    for (const std::uint64_t row : {0, 3, 8}) {
      const Routes one = router.emulated(row, row + 1);
      const auto begin = all.weights.begin() + static_cast<std::ptrdiff_t>(row * moe.top_k);
      EXPECT_EQ(to_bytes(one.weights, DType::f32),
                to_bytes({begin, begin + moe.top_k}, DType::f32));
      EXPECT_TRUE(std::equal(one.ids.begin(), one.ids.end(),
                             all.ids.begin() + static_cast<std::ptrdiff_t>(row * moe.top_k)));
    }
  }
}

class CudaRouter : public OnCudaDevice {
 protected:
  Routes routes_of(const RouterRows& router) {
    DeviceArea area(device(), 1U << 20U);
    Routes routes;
    RouteOp op = router.op(routes, 0, router.rows);
    op.products = reinterpret_cast<const float*>(area.put(to_bytes(router.products, DType::f32)));
    if (op.select_bias != nullptr) {
      op.select_bias = reinterpret_cast<const float*>(area.put(to_bytes(router.bias, DType::f32)));
    }
    std::byte* const shared = area.put(to_bytes(router.shared, DType::f32));
    op.shared_products = op.shared_products == nullptr ? nullptr : reinterpret_cast<float*>(shared);
    const std::uint64_t bytes = routes.weights.size() * sizeof(float);
    std::byte* const ids = area.take(bytes);
    std::byte* const weights = area.take(bytes);
    op.ids = reinterpret_cast<std::int32_t*>(ids);
    op.weights = reinterpret_cast<float*>(weights);
    device().route(op);
    const Bytes chosen = area.get(ids, bytes);
    std::memcpy(routes.ids.data(), chosen.data(), bytes);
    routes.weights = to_floats(area.get(weights, bytes), DType::f32);
    routes.shared = to_floats(area.get(shared, router.rows * sizeof(float)), DType::f32);
    return routes;
  }
};

// Goal: the same from the device that a layer sees, on real hardware, too. NaN has other bits
// there.
TEST_P(CudaRouter, RoutesAreTheCpus) {
  for (const MoeSpec& moe : routers()) {
    const RouterRows router(moe, 3);
    EXPECT_EQ(routes_of(router), router.by_cpu()) << moe.experts << " top " << moe.top_k;
    const RouterRows broken(moe, 9);
    EXPECT_EQ(routes_of(broken).ids, broken.by_cpu().ids) << moe.experts << " top " << moe.top_k;
  }
}

INSTANTIATE_TEST_SUITE_P(Gpus, CudaRouter, testing::Values("emulated", "gpu"),
                         [](const auto& gpu) { return gpu.param; });

// Goal: sums that stay in f32 take the way that was planned for them, however wide; the rows of an
// expert, which are few, are not made as many as the library computes.
// Method: with a library, all of a block's rows leave nothing to our own kernels, and an expert's
// nothing to the library, nor is anything written behind them.
TEST(CudaExperts, SumsInF32GoTheirPlannedWay) {
  constexpr std::uint64_t kLibraryRows = 32;
  constexpr std::uint64_t kInputs = 16;
  constexpr std::uint64_t kOutputs = 8200;
  for (const bool few_rows : {false, true}) {
    const std::uint64_t rows = few_rows ? 3 : kLibraryRows;
    EmulatedCudaRecord record;
    const auto device = make_cuda_device(make_emulated_cuda({8, 0, kLibraryRows, 1}, &record),
                                         std::uint64_t{1} << 30U)
                            .value();
    const ProductSize size{kOutputs, kInputs, false, few_rows};
    const auto texts = device->plan_products({&size, 1}, DType::bf16);
    ASSERT_TRUE(texts);
    EXPECT_THAT(*texts, testing::Each(testing::HasSubstr(few_rows ? "experts, " : "cuBLASLt")));
    record.done.clear();
    DeviceArea area(*device, device->scratch_bytes({}) + (4U << 20U));
    LinearOp op;
    TestRandom random(1);
    const std::vector<float> x = rounded(random.vector(rows * kInputs, 1.0F), DType::bf16);
    const std::vector<float> w = rounded(random.vector(kOutputs * kInputs, 1.0F), DType::bf16);
    op.x = area.put(to_bytes(x, DType::bf16));
    op.matrix.packed = area.put(to_bytes(w, DType::bf16));
    op.rows = rows;
    op.inputs = kInputs;
    op.outputs = kOutputs;
    op.y_f32 = true;
    op.few_rows = few_rows;
    op.y = area.put(Bytes((rows + 1) * kOutputs * sizeof(float), std::byte{0x5A}));
    device->linear(op, area.take(device->scratch_bytes({})), {});
    const Bytes all = area.get(op.y, (rows + 1) * kOutputs * sizeof(float));
    const auto y = to_floats(all, DType::f32);
    for (const std::uint64_t output : {std::uint64_t{0}, kOutputs - 1}) {
      double sum = 0;
      for (std::uint64_t i = 0; i < kInputs; ++i) {
        sum += x[kInputs + i] * w[output * kInputs + i];
      }
      EXPECT_NEAR(y[kOutputs + output], sum, 1e-5);
    }
    EXPECT_EQ(all.back(), std::byte{0x5A});
    EXPECT_THAT(record.done, testing::Contains(few_rows ? "compute product" : "compute library"));
    EXPECT_THAT(record.done,
                testing::Not(testing::Contains(few_rows ? "compute library" : "compute product")));
  }
}

/// Of seven rows, in an order of their own.
constexpr std::array<std::int32_t, 4> kChosen = {6, 0, 3, 4};
constexpr std::array<float, 4> kFactors = {0.3F, 1.0F, -1.7F, 0.001F};

// Goal: rows come to an expert as on the CPU device, bit for bit, at any address, and nothing is
// written behind them.
TEST(CudaExperts, GatherIsTheCpus) {
  const auto cpu = cpu_device(CpuIsa::portable, 1);
  for (const std::uint64_t width : {1, 8, 72, 2061}) {
    for (const DType type : kTypes) {
      const Bytes x = to_bytes(TestRandom(width).vector(7 * width, 2.0F), type);
      for (const bool scaled : {false, true}) {
        Bytes expected(kChosen.size() * width * dtype_bytes(type));
        GatherOp op{x.data(),
                    kChosen.data(),
                    scaled ? kFactors.data() : nullptr,
                    expected.data(),
                    type,
                    kChosen.size(),
                    width};
        cpu->gather(op);
        for (const unsigned odd : kOddArrays) {
          const Buffer from(x, offset_of(odd, 0) * dtype_bytes(type));
          const Buffer to(Bytes(expected.size()), offset_of(odd, 1) * dtype_bytes(type));
          op.x = from.at();
          op.y = to.at();
          with_expert_kernel(op, run_emulated);
          ASSERT_EQ(to.bytes(), expected) << dtype_name(type) << " " << width;
        }
      }
    }
  }
}

// Goal: what experts give is added as on the CPU device, bit for bit, and to no other row.
TEST(CudaExperts, CombineIsTheCpus) {
  const auto cpu = cpu_device(CpuIsa::portable, 1);
  for (const std::uint64_t width : {1, 8, 72, 2061}) {
    TestRandom random(width);
    const std::vector<float> before = random.vector(7 * width, 2.0F);
    const std::vector<float> y = random.vector(kChosen.size() * width, 2.0F);
    for (const bool chosen : {false, true}) {
      for (const bool scaled : {false, true}) {
        std::vector<float> expected = before;
        CombineOp op{expected.data(),
                     chosen ? kChosen.data() : nullptr,
                     scaled ? kFactors.data() : nullptr,
                     y.data(),
                     kChosen.size(),
                     width};
        cpu->combine(op);
        for (const unsigned odd : kOddArrays) {
          const Buffer sums(before, DType::f32, offset_of(odd, 0));
          const Buffer terms(y, DType::f32, offset_of(odd, 1));
          op.sums = sums.floats();
          op.y = terms.floats();
          with_expert_kernel(op, run_emulated);
          ASSERT_EQ(sums.bytes(), to_bytes(expected, DType::f32)) << width;
        }
      }
    }
  }
}

// Goal: sums are rounded once, as everywhere.
TEST(CudaExperts, RoundIsTheCpus) {
  const auto cpu = cpu_device(CpuIsa::portable, 1);
  for (const std::uint64_t count : {1, 8, 2048, 5003}) {
    std::vector<float> x = TestRandom(count).vector(count, 2.0F);
    x.back() = kInfinity;
    for (const DType type : kTypes) {
      Bytes expected(count * dtype_bytes(type));
      cpu->round({x.data(), expected.data(), type, count});
      for (const unsigned odd : kOddArrays) {
        const Buffer from(x, DType::f32, offset_of(odd, 0));
        const Buffer to(Bytes(expected.size()), offset_of(odd, 1) * dtype_bytes(type));
        with_expert_kernel(RoundOp{from.floats(), to.at(), type, count}, run_emulated);
        ASSERT_EQ(to.bytes(), expected) << dtype_name(type) << " " << count;
      }
    }
  }
}

}  // namespace
}  // namespace librarian::gpu_exec
