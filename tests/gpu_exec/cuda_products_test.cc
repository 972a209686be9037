// Matrix products for CUDA, on an emulated GPU: right, and the same bits for a row wherever and
// with whomever it is computed.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "gpu_exec/cuda_kernel_products.h"
#include "tests/gpu_exec/cuda_testing.h"
#include "tests/gpu_exec/reference.h"

namespace librarian::gpu_exec {
namespace {

/// A kernel, and what comes out of it.
struct Kind {
  DType type, out;
  bool tensor_cores;
};
constexpr Kind kKinds[] = {
    {DType::bf16, DType::bf16, true}, {DType::bf16, DType::f32, true},
    {DType::f16, DType::f16, true},   {DType::f16, DType::f32, true},
    {DType::bf16, DType::f32, false}, {DType::f16, DType::f16, false},
    {DType::f32, DType::f32, false},
};
std::string name_of(const Kind& kind) {
  return std::string(dtype_name(kind.type)) + " to " + dtype_name(kind.out) +
         (kind.tensor_cores ? " with tensor cores" : "");
}

/// How the matrices lie in memory.
struct Layout {
  bool w_transposed = false;
  std::uint64_t x_gap = 0, y_gap = 0;  ///< Elements between rows.
  unsigned odd = 0;  ///< Which of x (1), w (2) and y (4) lie at odd addresses: one element on.
  std::uint64_t w_gap = 0;  ///< Elements between rows.

  std::uint64_t offset(unsigned matrix) const { return (odd & matrix) != 0 ? 1 : 0; }
};

/// Values with `gap` NaN after each row but the last, and `offset` before all.
DeviceMemory placed(const std::vector<float>& values, std::uint64_t width, std::uint64_t gap,
                    std::uint64_t offset, DType type) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> all(offset, kNan);
  for (std::size_t at = 0; at < values.size(); at += width) {
    all.insert(all.end(), at == 0 ? 0 : gap, kNan);
    const auto row = values.begin() + static_cast<std::ptrdiff_t>(at);
    all.insert(all.end(), row, row + static_cast<std::ptrdiff_t>(width));
  }
  const Bytes bytes = to_bytes(all, type);
  DeviceMemory memory = aligned_memory(bytes.size());  // Sanitizers see what lies beyond.
  std::memcpy(memory.get(), bytes.data(), bytes.size());
  return memory;
}

std::vector<float> transposed(const std::vector<float>& rows, std::uint64_t width) {
  std::vector<float> turned;
  for (std::size_t i = 0; i < width; ++i) {
    for (std::size_t at = i; at < rows.size(); at += width) {
      turned.push_back(rows[at]);
    }
  }
  return turned;
}

/// x * w^T as the kernel leaves it, rows dense. Nothing else may be written.
Bytes product(const Kind& kind, const std::vector<float>& x, const std::vector<float>& w,
              std::uint64_t inputs, const Layout& layout = {}) {
  CudaProduct op;
  op.type = kind.type;
  op.out = kind.out;
  op.w_transposed = layout.w_transposed;
  op.rows = x.size() / inputs;
  op.inputs = inputs;
  op.outputs = w.size() / inputs;
  op.x_stride = inputs + layout.x_gap;
  op.w_stride = (layout.w_transposed ? op.outputs : inputs) + layout.w_gap;
  op.y_stride = op.outputs + layout.y_gap;
  const DeviceMemory x_memory = placed(x, inputs, layout.x_gap, layout.offset(1), kind.type);
  const DeviceMemory w_memory =
      layout.w_transposed
          ? placed(transposed(w, inputs), op.outputs, layout.w_gap, layout.offset(2), kind.type)
          : placed(w, inputs, layout.w_gap, layout.offset(2), kind.type);
  op.x = x_memory.get() + layout.offset(1) * dtype_bytes(kind.type);
  op.w = w_memory.get() + layout.offset(2) * dtype_bytes(kind.type);

  const std::uint64_t out_bytes = dtype_bytes(kind.out);
  const std::uint64_t begin = layout.offset(4) * out_bytes;
  const std::uint64_t bytes = begin + op.rows * op.y_stride * out_bytes;
  const DeviceMemory y = aligned_memory(bytes);
  std::memset(y.get(), 0x5A, bytes);
  op.y = y.get() + begin;
  with_product_kernel(op, kind.tensor_cores, run_emulated);

  Bytes rows;
  Bytes gaps(y.get(), op.y);
  for (std::uint64_t row = 0; row < op.rows; ++row) {
    const std::byte* const at = op.y + row * op.y_stride * out_bytes;
    rows.insert(rows.end(), at, at + op.outputs * out_bytes);
    gaps.insert(gaps.end(), at + op.outputs * out_bytes, at + op.y_stride * out_bytes);
  }
  EXPECT_EQ(gaps, Bytes(gaps.size(), std::byte{0x5A})) << "written beside y";
  return rows;
}

Bytes slice(const Bytes& rows, std::uint64_t row_bytes, std::uint64_t begin, std::uint64_t end) {
  return {rows.begin() + static_cast<std::ptrdiff_t>(begin * row_bytes),
          rows.begin() + static_cast<std::ptrdiff_t>(end * row_bytes)};
}
std::vector<float> slice(const std::vector<float>& rows, std::uint64_t width, std::uint64_t begin,
                         std::uint64_t end) {
  return {rows.begin() + static_cast<std::ptrdiff_t>(begin * width),
          rows.begin() + static_cast<std::ptrdiff_t>(end * width)};
}

std::vector<float> weights_of(std::uint64_t inputs, std::uint64_t outputs, DType type) {
  return rounded(
      TestRandom(3).vector(inputs * outputs, 1.5F / std::sqrt(static_cast<float>(inputs))), type);
}

/// Of a row: f32 accumulation, or the rounding of the output.
double tolerance(DType out) {
  return out == DType::f32 ? 1e-6 : (out == DType::bf16 ? 4e-3 : 6e-4);
}

// Goal: the products are those of the definition, to f32 accumulation and one rounding.
// Method: every kernel against double precision, rows, inputs and outputs around the tiles'.
TEST(CudaProducts, AreAccurate) {
  struct Shape {
    std::uint64_t rows, inputs, outputs;
  };
  for (const Shape shape : {Shape{1, 1, 1},
                            {7, 33, 45},
                            {33, 128, 128},
                            {128, 256, 64},
                            {128, 40, 130},
                            {130, 517, 301}}) {
    for (const Kind& kind : kKinds) {
      const auto w = weights_of(shape.inputs, shape.outputs, kind.type);
      const auto x = rounded(TestRandom(8).vector(shape.rows * shape.inputs, 1.0F), kind.type);
      const auto y = to_floats(product(kind, x, w, shape.inputs), kind.out);
      EXPECT_LE(
          worst_row_error(y, reference_linear(to_rows(x, shape.inputs), w, nullptr, shape.outputs)),
          tolerance(kind.out))
          << name_of(kind) << ", " << shape.rows << " rows, " << shape.inputs << " inputs, "
          << shape.outputs << " outputs";
    }
  }
}

// Goal: a row's bits do not depend on the number of rows or its place.
// Method: 200 rows at once against runs of 1, 7 and 33 from the beginning, the middle and the end.
TEST(CudaProducts, GiveARowTheSameBitsInAnyNumber) {
  constexpr std::uint64_t kRows = 200;
  for (const std::uint64_t inputs : {104, 77}) {
    constexpr std::uint64_t kOutputs = 140;
    for (const Kind& kind : kKinds) {
      const auto w = weights_of(inputs, kOutputs, kind.type);
      const auto x = TestRandom(5).vector(kRows * inputs, 1.0F);
      const std::uint64_t row_bytes = kOutputs * dtype_bytes(kind.out);
      const Bytes whole = product(kind, x, w, inputs);
      for (const std::uint64_t count : {1, 7, 33}) {
        for (const std::uint64_t begin : {std::uint64_t{0}, std::uint64_t{110}, kRows - count}) {
          ASSERT_EQ(product(kind, slice(x, inputs, begin, begin + count), w, inputs),
                    slice(whole, row_bytes, begin, begin + count))
              << name_of(kind) << ", rows from " << begin << ", " << count;
        }
      }
    }
  }
}

// Goal: an output's bits do not depend on the outputs computed with it: products may be cut.
// Method: slices of w, with y in place in the rows of a wider matrix, against all at once.
TEST(CudaProducts, GiveAnOutputTheSameBitsInAnySlice) {
  constexpr std::uint64_t kRows = 33;
  constexpr std::uint64_t kOutputs = 270;
  for (const std::uint64_t inputs : {104, 77}) {
    for (const Kind& kind : kKinds) {
      const auto w = weights_of(inputs, kOutputs, kind.type);
      const auto x = TestRandom(6).vector(kRows * inputs, 1.0F);
      const std::uint64_t size = dtype_bytes(kind.out);
      const Bytes whole = product(kind, x, w, inputs);
      for (const auto& [begin, end] :
           {std::pair<std::uint64_t, std::uint64_t>{0, 5}, {64, 192}, {129, 130}, {101, 270}}) {
        Bytes expected;
        for (std::uint64_t row = 0; row < kRows; ++row) {
          const Bytes part = slice(whole, size, row * kOutputs + begin, row * kOutputs + end);
          expected.insert(expected.end(), part.begin(), part.end());
        }
        Layout layout;
        layout.y_gap = kOutputs - (end - begin);
        ASSERT_EQ(product(kind, x, slice(w, inputs, begin, end), inputs, layout), expected)
            << name_of(kind) << ", outputs " << begin << " to " << end;
      }
    }
  }
}

// Goal: how matrices lie in memory changes no bits: gaps between rows (of NaN), odd addresses,
// transposed weights.
TEST(CudaProducts, ReadMatricesAsTheyLie) {
  constexpr std::uint64_t kOutputs = 136;
  for (const std::uint64_t inputs : {104, 77}) {
    for (const Kind& kind : kKinds) {
      const auto w = weights_of(inputs, kOutputs, kind.type);
      const auto x = TestRandom(7).vector(35 * inputs, 1.0F);
      const Bytes dense = product(kind, x, w, inputs);
      for (const Layout& layout : {Layout{false, 24, 8, 0},
                                   {false, 3, 5, 0},
                                   {false, 0, 0, 1},
                                   {false, 0, 0, 2},
                                   {false, 0, 0, 4},
                                   {false, 24, 8, 7},
                                   {true, 24, 3, 0},
                                   {false, 8, 0, 0, 8},
                                   {true, 0, 0, 0, 3},
                                   {true, 5, 0, 7}}) {
        ASSERT_EQ(product(kind, x, w, inputs, layout), dense)
            << name_of(kind) << (layout.w_transposed ? " transposed, " : ", ") << layout.x_gap
            << " and " << layout.y_gap << " between rows, odd " << layout.odd;
      }
    }
  }
}

// Goal: rows and outputs beyond what a tile has of them are neither read nor mixed with others.
// Method: infinities and NaN in one row and in one row of w; all other numbers stay.
TEST(CudaProducts, KeepRowsAndOutputsApart) {
  constexpr std::uint64_t kInputs = 72;
  constexpr std::uint64_t kOutputs = 67;
  constexpr std::uint64_t kRows = 37;
  for (const Kind& kind : kKinds) {
    auto w = weights_of(kInputs, kOutputs, kind.type);
    auto x = TestRandom(9).vector(kRows * kInputs, 1.0F);
    const auto clean = to_floats(product(kind, x, w, kInputs), kind.out);
    x[13 * kInputs + 5] = std::numeric_limits<float>::infinity();
    w[44 * kInputs + 71] = std::numeric_limits<float>::quiet_NaN();
    const auto y = to_floats(product(kind, x, w, kInputs), kind.out);
    for (std::size_t i = 0; i < y.size(); ++i) {
      if (i / kOutputs == 13 || i % kOutputs == 44) {
        EXPECT_FALSE(std::isfinite(y[i])) << name_of(kind) << " " << i;
      } else {
        ASSERT_EQ(y[i], clean[i]) << name_of(kind) << " " << i;
      }
    }
  }
}

// Goal: every tile of a large product is computed, once, in whatever order blocks take them.
// Method: more rows of tiles than a group has, and a last group that is smaller.
TEST(CudaProducts, CoverEveryTile) {
  for (const Kind& kind : {kKinds[1], kKinds[6]}) {
    constexpr std::uint64_t kRows = 1300;
    constexpr std::uint64_t kOutputs = 260;
    const auto w = weights_of(8, kOutputs, kind.type);
    const auto x = rounded(TestRandom(10).vector(kRows * 8, 1.0F), kind.type);
    const auto y = to_floats(product(kind, x, w, 8), kind.out);
    EXPECT_LE(worst_row_error(y, reference_linear(to_rows(x, 8), w, nullptr, kOutputs)), 1e-6)
        << name_of(kind);
  }
}

}  // namespace
}  // namespace librarian::gpu_exec
