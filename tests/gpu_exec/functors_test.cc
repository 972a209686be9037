// The scalar arithmetic that every backend shares.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "gpu_exec/router_functors.h"
#include "gpu_exec/row_functors.h"
#include "tests/gpu_exec/exec_testing.h"

namespace librarian::gpu_exec {
namespace {

/// The value of a 16-bit float by its definition.
double value_of(std::uint16_t bits, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits;
  const int exponent = (bits & 0x7FFF) >> mantissa_bits;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  double magnitude = 0;
  if (exponent == (1 << exponent_bits) - 1) {
    magnitude = mantissa == 0 ? std::numeric_limits<double>::infinity()
                              : std::numeric_limits<double>::quiet_NaN();
  } else if (exponent == 0) {
    magnitude = std::ldexp(mantissa, 1 - bias - mantissa_bits);
  } else {
    magnitude = std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
  }
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

struct Format {
  const char* name;
  int exponent_bits;
  DType type;
  float (*widen)(std::uint16_t);
  std::uint16_t (*narrow)(float);
};
class Conversions : public testing::TestWithParam<Format> {};

// Goal: all 65536 values widen to what they mean and come back unchanged; NaN stays NaN.
// Method: against ldexp of the fields.
TEST_P(Conversions, WidenExactlyAndRoundTrip) {
  const Format& format = GetParam();
  for (std::uint32_t i = 0; i < 65536; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const double expected = value_of(bits, format.exponent_bits);
    const float widened = format.widen(bits);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(widened)) << i;
      ASSERT_TRUE(std::isnan(value_of(format.narrow(widened), format.exponent_bits))) << i;
      continue;
    }
    ASSERT_EQ(static_cast<double>(widened), expected) << i;
    ASSERT_EQ(std::signbit(widened), std::signbit(expected)) << i;
    ASSERT_EQ(format.narrow(widened), bits) << i;
  }
}

// Goal: rounding is to nearest, ties to even, overflow to infinity, also among subnormals.
// Method: for every two neighbouring values, their middle and the floats next to it.
TEST_P(Conversions, RoundToNearestEven) {
  const Format& format = GetParam();
  const std::uint32_t infinity = ((1U << format.exponent_bits) - 1U) << (15 - format.exponent_bits);
  for (std::uint32_t i = 0; i < infinity; ++i) {
    const auto low = static_cast<std::uint16_t>(i);
    const auto high = static_cast<std::uint16_t>(i + 1);
    // Beyond the largest value, rounding goes as if its exponent went on.
    const double above = high == infinity ? 2 * value_of(low, format.exponent_bits) -
                                                value_of(low - 1, format.exponent_bits)
                                          : value_of(high, format.exponent_bits);
    const auto middle = static_cast<float>((value_of(low, format.exponent_bits) + above) / 2);
    const std::uint16_t even = (i % 2 == 0) ? low : high;
    ASSERT_EQ(format.narrow(middle), even) << i;
    ASSERT_EQ(format.narrow(-middle), even | 0x8000U) << i;
    ASSERT_EQ(format.narrow(std::nextafterf(middle, 0.0F)), low) << i;
    ASSERT_EQ(format.narrow(std::nextafterf(middle, HUGE_VALF)), high) << i;
  }
}

// Goal: the vector paths store and load exactly as the scalar functions do.
// Method: adding zero on the device to all 65536 patterns and, in f32, to values between them.
TEST_P(Conversions, AreTheSameOnEveryPath) {
  const Format& format = GetParam();
  std::vector<std::uint16_t> all(65536);
  for (std::uint32_t i = 0; i < all.size(); ++i) {
    all[i] = static_cast<std::uint16_t>(i);
  }
  for (const CpuIsa isa : machine_isas()) {
    const auto device = cpu_device(isa, 1);
    std::vector<std::uint16_t> x = all;
    const std::vector<std::uint16_t> small(all.size(), format.narrow(0.0009765625F));
    AddOp op;
    op.x = reinterpret_cast<std::byte*>(x.data());
    op.y = reinterpret_cast<const std::byte*>(small.data());
    op.dtype = format.type;
    op.count = x.size();
    device->add(op);
    for (std::uint32_t i = 0; i < x.size(); ++i) {
      const float sum = format.widen(all[i]) + format.widen(small[i]);
      if (std::isnan(sum)) {
        ASSERT_TRUE(std::isnan(format.widen(x[i]))) << i << cpu_isa_name(isa);
      } else {
        ASSERT_EQ(x[i], format.narrow(sum)) << i << cpu_isa_name(isa);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, Conversions,
                         testing::Values(Format{"bf16", 8, DType::bf16, bf16_to_f32, f32_to_bf16},
                                         Format{"f16", 5, DType::f16, f16_to_f32, f32_to_f16}),
                         [](const auto& format) { return std::string(format.param.name); });

// Goal: exp is within 2 ulp of the truth over its whole range.
// Method: a million points against f64 exp, in units of the last place of the f32 result.
TEST(Exp, IsWithinTwoUlp) {
  double worst = 0;
  for (double x = -87.3; x < 88.7; x += 1.76e-4) {
    const auto argument = static_cast<float>(x);
    const double truth = std::exp(static_cast<double>(argument));
    const auto nearest = static_cast<float>(truth);
    const double ulp = static_cast<double>(std::nextafterf(nearest, HUGE_VALF)) - nearest;
    worst = std::max(worst, std::abs(exp_of(argument) - truth) / ulp);
  }
  EXPECT_LE(worst, 2.0);
  EXPECT_GT(worst, 0.0);
}

TEST(Exp, HasTheRightLimits) {
  EXPECT_EQ(exp_of(0.0F), 1.0F);
  EXPECT_EQ(exp_of(-HUGE_VALF), 0.0F);
  EXPECT_EQ(exp_of(-1e30F), 0.0F);
  EXPECT_EQ(exp_of(-104.5F), 0.0F);
  EXPECT_EQ(exp_of(100.0F), HUGE_VALF);
  EXPECT_EQ(exp_of(HUGE_VALF), HUGE_VALF);
  EXPECT_TRUE(std::isnan(exp_of(NAN)));
  // Subnormal results: within one of their steps.
  EXPECT_NEAR(exp_of(-95.0F) / 0x1p-149, std::exp(-95.0) / 0x1p-149, 1.0);
}

// Goal: 2^x is within 1.5 ulp of the truth where it is normal, and exact for whole numbers.
// Method: a million points against f64 exp2, in units of the last place of the f32 result.
TEST(Exp2, IsWithinOneAndAHalfUlp) {
  double worst = 0;
  for (double x = -126.0; x < 127.0; x += 2.53e-4) {
    const auto argument = static_cast<float>(x);
    const double truth = std::exp2(static_cast<double>(argument));
    const auto below = static_cast<float>(std::exp2(std::floor(static_cast<double>(argument))));
    const double ulp = static_cast<double>(std::nextafterf(below, HUGE_VALF)) - below;
    worst = std::max(worst, std::abs(exp2_of(argument) - truth) / ulp);
  }
  EXPECT_LE(worst, 1.5);
  EXPECT_GT(worst, 0.0);
  for (int n = -126; n <= 127; ++n) {
    EXPECT_EQ(exp2_of(static_cast<float>(n)), std::ldexp(1.0F, n)) << n;
  }
}

TEST(Exp2, HasTheRightLimits) {
  EXPECT_EQ(exp2_of(-126.6F), 0.0F);
  EXPECT_EQ(exp2_of(-127.0F), 0.0F);
  EXPECT_EQ(exp2_of(-150.5F), 0.0F);
  EXPECT_EQ(exp2_of(-3e38F), 0.0F);
  EXPECT_EQ(exp2_of(-HUGE_VALF), 0.0F);
  EXPECT_TRUE(std::isnan(exp2_of(NAN)));
}

/// A function of an activation against f64 libm: |error| <= absolute + relative * |truth|.
struct Functor {
  const char* name;
  float (*function)(float);
  double (*truth)(double);
  double absolute, relative;
};
double normal_distribution(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }
const Functor kFunctors[] = {
    {"tanh", tanh_of<float>, [](double x) { return std::tanh(x); }, 0, 4 * 0x1p-23},
    {"erf", erf_of<float>, [](double x) { return std::erf(x); }, 4e-7, 0},
    {"silu", silu<float>, [](double x) { return x / (1 + std::exp(-x)); }, 1e-36, 4 * 0x1p-23},
    {"gelu", gelu<float>, [](double x) { return x * normal_distribution(x); }, 1e-6, 4 * 0x1p-23},
    {"gelu_tanh", gelu_tanh<float>,
     [](double x) {
       // x * (1 + tanh(u)) / 2, written so that it is exact where tanh is near -1.
       const double u = std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
       return x / (1 + std::exp(-2 * u));
     },
     1e-36, 2e-5},
    {"relu", relu<float>, [](double x) { return std::max(x, 0.0); }, 0, 0},
};
class Functors : public testing::TestWithParam<Functor> {};

// Goal: each is what it is called, to the tolerance stated with it.
// Method: points dense around zero and out to +-1e4 against f64 libm.
TEST_P(Functors, AreAccurate) {
  const Functor& functor = GetParam();
  for (double x = 1e-6; x < 1e4; x *= 1.0001) {
    for (const double sign : {1.0, -1.0}) {
      const auto argument = static_cast<float>(sign * x);
      const double truth = functor.truth(argument);
      const double error = std::abs(functor.function(argument) - truth);
      const double allowed = functor.absolute + functor.relative * std::abs(truth);
      ASSERT_LE(error, allowed) << argument;
    }
  }
}

// Goal: zero, the ends and NaN.
TEST_P(Functors, HaveTheRightLimits) {
  const Functor& functor = GetParam();
  EXPECT_EQ(functor.function(0.0F), 0.0F);
  EXPECT_TRUE(std::isnan(functor.function(NAN)));
  for (const float x : {1e6F, -1e6F, 3e38F, -3e38F}) {
    EXPECT_NEAR(functor.function(x), functor.truth(x), 1e-6 * std::abs(functor.truth(x))) << x;
  }
}

INSTANTIATE_TEST_SUITE_P(All, Functors, testing::ValuesIn(kFunctors),
                         [](const auto& functor) { return std::string(functor.param.name); });

TEST(Silu, SaturatesWithoutNan) {
  EXPECT_EQ(silu(-1000.0F), 0.0F);
  EXPECT_EQ(silu(1000.0F), 1000.0F);
  EXPECT_NEAR(silu(1.5F), 1.5 / (1.0 + std::exp(-1.5)), 1e-6);
  EXPECT_TRUE(std::isnan(silu(NAN)));
}

TEST(ConvertElements, HandlesEveryPairOfTypes) {
  const std::vector<float> values = {0.0F, -1.5F, 3.0F, 0x1p-14F, 65504.0F};
  for (const DType from : {DType::bf16, DType::f16, DType::f32}) {
    for (const DType to : {DType::bf16, DType::f16, DType::f32}) {
      const Bytes in = to_bytes(values, from);
      Bytes out(values.size() * dtype_bytes(to));
      convert_elements(from, in, to, out);
      EXPECT_EQ(out, to_bytes(to_floats(in, from), to)) << dtype_name(from) << dtype_name(to);
    }
  }
}

// Catches: an expert outside the best groups, whose score counts as 0, taken before those inside
// whose scores are below 0 with their bias. DeepSeek's own code puts it at minus infinity.
TEST(Router, TakesNoExpertFromOutsideTheBestGroups) {
  MoeSpec moe;
  moe.experts = 4;
  moe.top_k = 2;
  moe.groups = 2;
  moe.score = RouterScore::sigmoid;
  moe.select_bias = true;
  const float products[] = {0.0F, 0.0F, 0.0F, 0.0F};
  const float bias[] = {-3.0F, -3.0F, -2.0F, -2.5F};
  float scores[4], select[4], ranks[4], weights[2];
  std::int32_t ids[2];
  route_row(moe, products, bias, scores, select, ranks, ids, weights);
  EXPECT_EQ(ids[0], 2);
  EXPECT_EQ(ids[1], 3);
}

}  // namespace
}  // namespace librarian::gpu_exec
