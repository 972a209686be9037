// What works row by row for CUDA, on an emulated GPU: the CPU device's bits where the arithmetic is
// the same, right within rounding where it is not, and the same bits for a row in any company.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "gpu_exec/cuda_kernel_rows.h"
#include "tests/gpu_exec/cuda_buffers.h"
#include "tests/gpu_exec/cuda_testing.h"
#include "tests/gpu_exec/reference.h"

namespace librarian::gpu_exec {
namespace {

constexpr Activation kActivations[] = {Activation::identity, Activation::silu,
                                       Activation::gelu,     Activation::gelu_tanh,
                                       Activation::relu,     Activation::relu_squared};

/// How norm_of() calls.
struct NormCase {
  NormKind kind = NormKind::rms;
  bool addend = false, bias = false;
  bool in_place = false;
  unsigned odd_arrays = 0;  ///< Of x, addend, y, weight, bias.
};

struct NormData {
  std::uint64_t width;
  std::vector<float> x, addend, weight, bias;
  NormData(std::uint64_t row_width, std::uint64_t rows, DType type) : width(row_width) {
    TestRandom random(width);
    x = rounded(random.vector(width * rows, 5.0F, 1.0F), type);
    addend = rounded(random.vector(width * rows, 3.0F), type);
    weight = random.vector(width, 0.5F, 1.0F);
    bias = random.vector(width, 0.5F);
  }
};

Bytes norm_of(const NormData& data, DType type, const NormCase& how, std::uint64_t begin = 0,
              std::uint64_t end = 0) {
  const std::uint64_t rows = end == 0 ? data.x.size() / data.width : end - begin;
  const auto rows_of = [&](const std::vector<float>& all, unsigned index) {
    const auto first = all.begin() + static_cast<std::ptrdiff_t>(begin * data.width);
    return Buffer({first, first + static_cast<std::ptrdiff_t>(rows * data.width)}, type,
                  offset_of(how.odd_arrays, index));
  };
  const Buffer x = rows_of(data.x, 0);
  const Buffer addend = rows_of(data.addend, 1);
  const Buffer y(std::vector<float>(rows * data.width), type, offset_of(how.odd_arrays, 2));
  const Buffer weight(data.weight, DType::f32, offset_of(how.odd_arrays, 3));
  const Buffer bias(data.bias, DType::f32, offset_of(how.odd_arrays, 4));
  NormOp op;
  op.x = x.at();
  op.addend = how.addend ? addend.at() : nullptr;
  op.y = how.in_place ? x.at() : y.at();
  op.dtype = type;
  op.rows = rows;
  op.width = data.width;
  op.kind = how.kind;
  op.weight = weight.floats();
  op.bias = how.bias ? bias.floats() : nullptr;
  op.epsilon = 1e-5F;
  with_row_kernel(op, run_emulated);
  return how.in_place ? x.bytes() : y.bytes();
}

/// Of a row: f32 arithmetic, or the rounding of the output.
double tolerance(DType type) {
  return type == DType::f32 ? 1e-6 : (type == DType::bf16 ? 4e-3 : 6e-4);
}

// Goal: norms of every kind are the definition's, for widths around units, warps and blocks.
TEST(CudaRows, NormIsAccurate) {
  for (const std::uint64_t width : {1, 7, 8, 64, 65, 2048, 2056, 5003}) {
    for (const DType type : kTypes) {
      const NormData data(width, 3, type);
      for (const NormCase& how : {NormCase{NormKind::rms, false, false},
                                  {NormKind::rms, true, false},
                                  {NormKind::layer, false, true},
                                  {NormKind::layer, true, true}}) {
        if (how.kind == NormKind::layer && width == 1) {
          continue;  // Nothing is left of one element less its mean.
        }
        Rows v = to_rows(data.x, width);
        const Rows addend = to_rows(data.addend, width);
        for (std::size_t row = 0; how.addend && row < v.size(); ++row) {
          for (std::size_t i = 0; i < width; ++i) {
            v[row][i] += addend[row][i];
          }
        }
        const Rows expected = reference_norm(v, data.weight, how.bias ? &data.bias : nullptr,
                                             {how.kind, how.bias, false, 1e-5F});
        EXPECT_LE(worst_row_error(to_floats(norm_of(data, type, how), type), expected),
                  tolerance(type))
            << dtype_name(type) << " " << width << (how.addend ? " addend" : "");
      }
    }
  }
}

// Goal: a row's bits depend on its numbers alone: not on other rows, on where arrays lie, or on
// whether y is x.
TEST(CudaRows, NormGivesARowTheSameBitsAnywhere) {
  for (const std::uint64_t width : {333, 2312}) {
    for (const DType type : kTypes) {
      const NormData data(width, 20, type);
      for (const NormKind kind : {NormKind::rms, NormKind::layer}) {
        const NormCase plain{kind, true, true, false, 0};
        const Bytes whole = norm_of(data, type, plain);
        for (const bool in_place : {false, true}) {
          for (const unsigned odd : kOddArrays) {
            EXPECT_EQ(norm_of(data, type, {kind, true, true, in_place, odd}), whole)
                << dtype_name(type) << (in_place ? " in place, " : ", ") << odd << " odd";
          }
        }
        const auto row_bytes = static_cast<std::ptrdiff_t>(width * dtype_bytes(type));
        for (const std::uint64_t row : {0, 7, 19}) {
          const auto begin = whole.begin() + static_cast<std::ptrdiff_t>(row) * row_bytes;
          EXPECT_EQ(norm_of(data, type, plain, row, row + 1), Bytes(begin, begin + row_bytes))
              << dtype_name(type) << " row " << row;
        }
      }
    }
  }
}

/// What finish() and gate() are to compute, element by element in f32.
float activated(Activation activation, float x) {
  switch (activation) {
    case Activation::identity:
      return x;
    case Activation::silu:
      return silu(x);
    case Activation::gelu:
      return gelu(x);
    case Activation::gelu_tanh:
      return gelu_tanh(x);
    case Activation::relu:
      return relu(x);
    case Activation::relu_squared:
      return relu(x) * relu(x);
    case Activation::clamped_swish:
      return clamped_swish(x);
  }
  return NAN;
}

/// Rows of a product with its biases. Some elements are not finite.
struct Products {
  std::uint64_t rows, width;
  std::vector<float> first, second, first_bias, second_bias;
  Products(std::uint64_t row_count, std::uint64_t row_width) : rows(row_count), width(row_width) {
    TestRandom random(width);
    first = random.vector(rows * width, 6.0F);
    second = random.vector(rows * width, 2.0F);
    first_bias = random.vector(width, 0.5F);
    second_bias = random.vector(width, 0.5F);
    first.front() = std::numeric_limits<float>::infinity();
    first.back() = std::numeric_limits<float>::quiet_NaN();
  }
  /// y as the operations leave it in rows `gap` elements apart that held 0.25 everywhere.
  Bytes expected(Activation activation, bool bias, bool gated, DType type,
                 std::uint64_t gap) const {
    std::vector<float> y(rows * (width + gap), 0.25F);
    for (std::uint64_t i = 0; i < rows * width; ++i) {
      const std::uint64_t column = i % width;
      float value = activated(activation, bias ? first[i] + first_bias[column] : first[i]);
      if (gated) {
        const float up = bias ? second[i] + second_bias[column] : second[i];
        value *= activation == Activation::clamped_swish ? clamped_up(up) : up;
      }
      y[i / width * (width + gap) + column] = value;
    }
    return to_bytes(y, type);
  }
};

/// @param odd_arrays  Of the two products, the two biases, y.
void expect_finish_and_gate(const Products& products, DType type, Activation activation, bool bias,
                            std::uint64_t gap, unsigned odd_arrays) {
  const auto [rows, width] = std::pair(products.rows, products.width);
  const Buffer first(products.first, DType::f32, offset_of(odd_arrays, 0));
  const Buffer second(products.second, DType::f32, offset_of(odd_arrays, 1));
  const Buffer first_bias(products.first_bias, DType::f32, offset_of(odd_arrays, 2));
  const Buffer second_bias(products.second_bias, DType::f32, offset_of(odd_arrays, 3));
  const std::vector<float> before(rows * (width + gap), 0.25F);
  const Buffer finished(before, type, offset_of(odd_arrays, 4));
  with_row_kernel(CudaFinish{first.floats(), bias ? first_bias.floats() : nullptr, finished.at(),
                             type, activation, rows, width, width + gap},
                  run_emulated);
  EXPECT_EQ(finished.bytes(), products.expected(activation, bias, false, type, gap))
      << dtype_name(type) << " activation " << static_cast<int>(activation);
  const Buffer gated(before, type, offset_of(odd_arrays, 4));
  with_row_kernel(CudaGate{first.floats(), second.floats(), bias ? first_bias.floats() : nullptr,
                           bias ? second_bias.floats() : nullptr, gated.at(), type, activation,
                           rows, width, width + gap},
                  run_emulated);
  EXPECT_EQ(gated.bytes(), products.expected(activation, bias, true, type, gap))
      << dtype_name(type) << " gated, activation " << static_cast<int>(activation);
}

// Goal: what follows a product is the CPU's arithmetic, bit for bit, and stays within its rows.
// Method: each activation, type and layout against the row functors; rows have gaps between them.
TEST(CudaRows, FinishAndGateAreTheFunctors) {
  for (const auto& [rows, width] : {std::pair<std::uint64_t, std::uint64_t>{3, 2568}, {5, 13}}) {
    const Products products(rows, width);
    for (const DType type : kTypes) {
      for (const Activation activation : kActivations) {
        for (const bool bias : {false, true}) {
          for (const std::uint64_t gap : {0, 8, 3}) {
            for (const unsigned odd : kOddArrays) {
              expect_finish_and_gate(products, type, activation, bias, gap, odd);
            }
          }
        }
      }
    }
  }
}

// Goal: each bias is added where there is one, whether or not the other is there.
TEST(CudaRows, GateTakesEitherBias) {
  const Products products(2, 40);
  for (const bool of_gate : {false, true}) {
    Products one = products;
    std::fill(one.first_bias.begin(), one.first_bias.end(), of_gate ? 0.5F : 0.0F);
    std::fill(one.second_bias.begin(), one.second_bias.end(), of_gate ? 0.0F : 0.5F);
    const Buffer y(std::vector<float>(80), DType::bf16);
    with_row_kernel(
        CudaGate{one.first.data(), one.second.data(), of_gate ? one.first_bias.data() : nullptr,
                 of_gate ? nullptr : one.second_bias.data(), y.at(), DType::bf16, Activation::silu,
                 2, 40, 40},
        run_emulated);
    EXPECT_EQ(y.bytes(), one.expected(Activation::silu, true, true, DType::bf16, 0));
  }
}

// Goal: additions are the CPU device's, bit for bit, at any address, and touch nothing else.
TEST(CudaRows, AddIsTheCpus) {
  const auto cpu = cpu_device(CpuIsa::portable, 1);
  for (const std::uint64_t count : {1, 8, 15, 2048, 2049, 5003}) {
    for (const DType type : kTypes) {
      TestRandom random(count);
      const Bytes x = to_bytes(random.vector(count, 2.0F), type);
      const Bytes y = to_bytes(random.vector(count, 2.0F), type);
      const Bytes z = to_bytes(random.vector(count, 2.0F), type);
      for (const bool third : {false, true}) {
        Bytes expected = x;
        cpu->add({expected.data(), y.data(), third ? z.data() : nullptr, type, count, 0.3F});
        for (const unsigned odd : kOddArrays) {
          const Buffer to(x, offset_of(odd, 0) * dtype_bytes(type));
          const Buffer change(y, offset_of(odd, 1) * dtype_bytes(type));
          const Buffer more(z, offset_of(odd, 2) * dtype_bytes(type));
          with_row_kernel(
              AddOp{to.at(), change.at(), third ? more.at() : nullptr, type, count, 0.3F},
              run_emulated);
          ASSERT_EQ(to.bytes(), expected) << dtype_name(type) << " " << count;
        }
      }
    }
  }
}

TEST(CudaRows, WidenIsTheCpus) {
  const auto cpu = cpu_device(CpuIsa::portable, 1);
  for (const std::uint64_t count : {1, 16, 2051}) {
    for (const DType type : kTypes) {
      const Bytes from = to_bytes(TestRandom(count).vector(count, 2.0F), type);
      for (const float plus : {0.0F, 1.0F}) {
        std::vector<float> expected(count);
        cpu->load_vector({from.data(), type, {}, plus}, count, expected.data());
        for (const unsigned odd : kOddArrays) {
          const Buffer in(from, offset_of(odd, 0) * dtype_bytes(type));
          const Buffer out(std::vector<float>(count), DType::f32, offset_of(odd, 1));
          with_row_kernel(CudaWiden{in.at(), type, out.floats(), count, plus}, run_emulated);
          ASSERT_EQ(out.bytes(), to_bytes(expected, DType::f32)) << dtype_name(type) << count;
        }
      }
    }
  }
}

// Goal: tables are the CPU device's, bit for bit, at long positions too.
TEST(CudaRows, RopeTableIsTheCpus) {
  const auto cpu = cpu_device(CpuIsa::portable, 1);
  for (const std::uint32_t rotary_dim : {2, 12, 128, 256}) {
    const RopeSpec rope = default_rope(rotary_dim);
    for (const std::uint64_t first : {0, 100001}) {
      constexpr std::uint64_t kRows = 5;
      std::vector<float> expected(rope_table_floats(kRows, rotary_dim));
      cpu->rope_table({rope.inverse_frequency, 1.25F, first, kRows, expected.data()}, nullptr);
      expected.resize(kRows * rotary_dim);
      const Buffer table(std::vector<float>(expected.size()), DType::f32);
      with_row_kernel(CudaRopeTable{rope.inverse_frequency.data(), 1.25F, first, kRows,
                                    rotary_dim / 2, table.floats()},
                      run_emulated);
      EXPECT_EQ(table.bytes(), to_bytes(expected, DType::f32)) << rotary_dim << " " << first;
    }
  }
}

/// Heads to rotate.
struct Heads {
  static constexpr std::uint64_t kRows = 9;
  std::uint32_t heads, head_dim, rotary_dim;
  RopeStyle style = RopeStyle::halves;
};

/// What rotate() takes besides.
struct RotateCase {
  std::optional<NormKind> norm;
  bool weights_of_each = false;  ///< Each head has weights of its own.
  bool temperatures = false;
  std::uint64_t offset = 0;  ///< Elements before x.
};

class Rotation {
 public:
  Rotation(const Heads& heads, DType type)
      : heads_(heads),
        type_(type),
        rope_(default_rope(heads.rotary_dim)),
        table_(rope_table_floats(100, heads.rotary_dim)) {
    TestRandom random(heads.head_dim);
    x = rounded(random.vector(Heads::kRows * width(), 2.0F), type);
    weight = random.vector(width(), 0.5F, 1.0F);
    cpu_device(CpuIsa::portable, 1)
        ->rope_table({rope_.inverse_frequency, 1.25F, 0, 100, table_.data()}, nullptr);
  }
  std::uint64_t width() const { return std::uint64_t{heads_.heads} * heads_.head_dim; }

  /// Rows [begin, end), where row r is at position 7 * r + 3 of its sample.
  Bytes emulated(const RotateCase& how, std::uint64_t begin = 0,
                 std::uint64_t end = Heads::kRows) const {
    const auto first = x.begin() + static_cast<std::ptrdiff_t>(begin * width());
    const Buffer rows({first, first + static_cast<std::ptrdiff_t>((end - begin) * width())}, type_,
                      how.offset);
    std::vector<CudaRowPlace> places;
    for (std::uint64_t row = begin; row < end; ++row) {
      places.push_back({position(row), how.temperatures ? temperature(row) : 1.0F});
    }
    CudaRotate op;
    op.x = rows.at();
    op.type = type_;
    op.rows = end - begin;
    op.heads = heads_.heads;
    op.head_dim = heads_.head_dim;
    op.rotary_dim = heads_.rotary_dim;
    op.style = heads_.style;
    op.norm = how.norm.value_or(NormKind::rms);
    op.norm_weight = how.norm ? weight.data() : nullptr;
    op.norm_weight_stride = how.weights_of_each ? heads_.head_dim : 0;
    op.epsilon = 1e-5F;
    op.table = heads_.rotary_dim == 0 ? nullptr : table_.data();
    op.places = places.data();
    with_row_kernel(op, run_emulated);
    return rows.bytes();
  }

  /// The same by the CPU device.
  Bytes by_cpu(const RotateCase& how) const {
    Bytes y = to_bytes(x, type_);
    std::vector<Segment> segments;
    for (std::uint64_t row = 0; row < Heads::kRows; ++row) {
      segments.push_back({row, 1, position(row), 0});
    }
    RotateOp op;
    op.x = y.data();
    op.dtype = type_;
    op.rows = Heads::kRows;
    op.heads = heads_.heads;
    op.head_dim = heads_.head_dim;
    op.rotary_dim = heads_.rotary_dim;
    op.style = heads_.style;
    op.norm = how.norm.value_or(NormKind::rms);
    op.norm_weight = how.norm ? weight.data() : nullptr;
    op.norm_weight_stride = how.weights_of_each ? heads_.head_dim : 0;
    op.epsilon = 1e-5F;
    op.segments = segments;
    op.table = table_.data();
    op.temperature_beta = how.temperatures ? 0.1F : 0.0F;
    op.temperature_original = how.temperatures ? kOriginal : 0;
    cpu_device(CpuIsa::portable, 1)->rotate(op, nullptr);
    return y;
  }

  std::vector<float> x, weight;

 private:
  static constexpr std::uint32_t kOriginal = 16;
  static std::uint32_t position(std::uint64_t row) {
    return static_cast<std::uint32_t>(7 * row + 3);
  }
  static float temperature(std::uint64_t row) {
    const std::uint32_t period = position(row) / kOriginal;
    return static_cast<float>(1 + 0.1F * std::log1p(static_cast<double>(period)));
  }

  Heads heads_;
  DType type_;
  RopeSpec rope_;
  std::vector<float> table_;
};

constexpr Heads kHeads[] = {{3, 5, 4},     {7, 16, 16},  {3, 20, 12}, {2, 80, 32}, {5, 128, 128},
                            {2, 256, 256}, {2, 256, 64}, {3, 40, 0},  {1, 2, 2}};

// Goal: without a norm, heads turn as on the CPU device, bit for bit, one rounding and all.
TEST(CudaRows, RotationIsTheCpus) {
  for (Heads heads : kHeads) {
    for (const RopeStyle style : {RopeStyle::halves, RopeStyle::pairs}) {
      heads.style = style;
      for (const DType type : kTypes) {
        const Rotation rotation(heads, type);
        for (const bool temperatures : {false, true}) {
          for (const std::uint64_t offset : {0, 1}) {
            const RotateCase how{std::nullopt, false, temperatures, offset};
            ASSERT_EQ(rotation.emulated(how), rotation.by_cpu(how))
                << dtype_name(type) << " " << heads.head_dim << "/" << heads.rotary_dim
                << (style == RopeStyle::pairs ? " pairs" : "");
          }
        }
      }
    }
  }
}

// Goal: norms of heads, with weights in common or of each, go with it.
// Method: against the CPU device; only the order of the sums differs.
TEST(CudaRows, RotationNormalisesHeads) {
  for (Heads heads : kHeads) {
    for (const RopeStyle style : {RopeStyle::halves, RopeStyle::pairs}) {
      heads.style = style;
      for (const DType type : {DType::bf16, DType::f32}) {
        const Rotation rotation(heads, type);
        for (const NormKind norm : {NormKind::rms, NormKind::layer}) {
          for (const bool each : {false, true}) {
            const RotateCase how{norm, each, true, 0};
            const auto expected = to_floats(rotation.by_cpu(how), type);
            const Bytes y = rotation.emulated(how);
            EXPECT_LE(worst_row_error(to_floats(y, type), to_rows(expected, rotation.width())),
                      tolerance(type))
                << dtype_name(type) << " " << heads.head_dim << "/" << heads.rotary_dim;
            EXPECT_EQ(rotation.emulated({norm, each, true, 1}), y) << "at odd addresses";
          }
        }
      }
    }
  }
}

// Goal: a row's bits depend on its numbers and its position alone.
TEST(CudaRows, RotationGivesARowTheSameBitsInAnyCompany) {
  const Heads heads{5, 80, 32};
  for (const DType type : kTypes) {
    const Rotation rotation(heads, type);
    const RotateCase how{NormKind::layer, true, true, 0};
    const Bytes whole = rotation.emulated(how);
    const auto row_bytes = static_cast<std::ptrdiff_t>(rotation.width() * dtype_bytes(type));
    for (const std::uint64_t row : {0, 4, 8}) {
      const auto begin = whole.begin() + static_cast<std::ptrdiff_t>(row) * row_bytes;
      EXPECT_EQ(rotation.emulated(how, row, row + 1), Bytes(begin, begin + row_bytes)) << row;
    }
  }
}

}  // namespace
}  // namespace librarian::gpu_exec
