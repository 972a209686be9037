// Matrix products: right, and the same bits for a row wherever and with whomever it is computed.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tests/gpu_exec/reference.h"

namespace librarian::gpu_exec {
namespace {

constexpr std::uint64_t kInputs = 517;   // Two full runs of the kernel's depth and a remainder.
constexpr std::uint64_t kOutputs = 301;  // A full column tile and a remainder.

/// One matrix (two for the gated product), its packed form and a way to run it.
class Product {
 public:
  Product(CpuIsa isa, int threads, DType dtype, DType weight_type, bool glu)
      : device_(cpu_device(isa, threads)),
        dtype_(dtype),
        glu_(glu),
        first(weight_type),
        second(weight_type) {
    TestRandom random(3);
    scratch_ = aligned_memory(device_->scratch_bytes({}));
    for (Matrix* matrix : {&first, &second}) {
      matrix->weight = rounded(random.vector(kInputs * kOutputs, 0.06F), weight_type);
      matrix->bias = random.vector(kOutputs, 0.5F);
      matrix->packed = aligned_memory(device_->packed_bytes(kOutputs, kInputs, weight_type));
      const Bytes bytes = to_bytes(matrix->weight, weight_type);
      device_->pack_matrix({bytes.data(), weight_type, {}, false, 0}, kOutputs, kInputs,
                           matrix->packed.get());
    }
  }

  Bytes run(const Bytes& x) {
    const std::uint64_t rows = x.size() / (kInputs * dtype_bytes(dtype_));
    Bytes y(rows * kOutputs * dtype_bytes(dtype_));
    if (glu_) {
      GluOp op;
      op.x = x.data();
      op.y = y.data();
      op.dtype = dtype_;
      op.rows = rows;
      op.inputs = kInputs;
      op.width = kOutputs;
      op.gate = first.view();
      op.up = second.view();
      op.activation = Activation::silu;
      device_->glu(op, scratch_.get(), {});
    } else {
      device_->linear(
          {x.data(), y.data(), dtype_, rows, kInputs, kOutputs, first.view(), Activation::identity},
          scratch_.get(), {});
    }
    return y;
  }

 private:
  struct Matrix {
    explicit Matrix(DType type_of) : type(type_of) {}
    PackedMatrix view() const { return {packed.get(), type, bias.data()}; }
    DType type;
    std::vector<float> weight, bias;
    DeviceMemory packed;
  };
  std::unique_ptr<Device> device_;
  DType dtype_;
  bool glu_;
  DeviceMemory scratch_;

 public:
  Matrix first, second;
};

Bytes slice(const Bytes& rows, std::uint64_t row_bytes, std::uint64_t begin, std::uint64_t end) {
  return {rows.begin() + static_cast<std::ptrdiff_t>(begin * row_bytes),
          rows.begin() + static_cast<std::ptrdiff_t>(end * row_bytes)};
}

class LinearOnPath : public testing::TestWithParam<CpuIsa> {};

// Goal: a row's bits do not depend on the number of rows, its place, its neighbours or threads.
// Method: 777 rows at once against runs of 1, 7, 33, 128 rows from the middle and the end, with
// one and two threads, for every pair of types and both products.
TEST_P(LinearOnPath, GivesARowTheSameBitsInAnyCompany) {
  const std::vector<float> values = TestRandom(7).vector(777 * kInputs, 1.0F);
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    const Bytes x = to_bytes(values, dtype);
    const std::uint64_t x_row = kInputs * dtype_bytes(dtype);
    const std::uint64_t y_row = kOutputs * dtype_bytes(dtype);
    for (const DType weight_type : {DType::bf16, DType::f16, DType::f32}) {
      const bool glu = weight_type == dtype;  // Each type once is enough for the epilogue.
      Product two(GetParam(), 2, dtype, weight_type, glu);
      Product one(GetParam(), 1, dtype, weight_type, glu);
      const Bytes whole = two.run(x);
      for (const std::uint64_t rows : {1, 7, 33, 128}) {
        for (const std::uint64_t begin : {std::uint64_t{0}, std::uint64_t{391}, 777 - rows}) {
          const Bytes part = one.run(slice(x, x_row, begin, begin + rows));
          ASSERT_EQ(part, slice(whole, y_row, begin, begin + rows))
              << rows << " rows at " << begin << ", " << dtype_name(dtype) << " x "
              << dtype_name(weight_type);
        }
      }
    }
  }
}

// Goal: the products are those of the definition, to f32 accumulation error.
// Method: f32 activations against double precision, every weight type, with biases.
TEST_P(LinearOnPath, IsAccurate) {
  const std::vector<float> x = TestRandom(8).vector(33 * kInputs, 1.0F);
  for (const DType weight_type : {DType::bf16, DType::f16, DType::f32}) {
    Product product(GetParam(), 2, DType::f32, weight_type, false);
    const Rows expected =
        reference_linear(to_rows(x, kInputs), product.first.weight, &product.first.bias, kOutputs);
    const auto y = to_floats(product.run(to_bytes(x, DType::f32)), DType::f32);
    EXPECT_LE(worst_row_error(y, expected), 1e-6) << dtype_name(weight_type);
  }
}

TEST_P(LinearOnPath, GatesWithSiluInF32) {
  const std::vector<float> x = TestRandom(9).vector(33 * kInputs, 1.0F);
  Product product(GetParam(), 2, DType::f32, DType::bf16, true);
  Rows expected =
      reference_linear(to_rows(x, kInputs), product.first.weight, &product.first.bias, kOutputs);
  const Rows up =
      reference_linear(to_rows(x, kInputs), product.second.weight, &product.second.bias, kOutputs);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    for (std::size_t j = 0; j < kOutputs; ++j) {
      expected[i][j] *= up[i][j] / (1 + std::exp(-expected[i][j]));
    }
  }
  const auto y = to_floats(product.run(to_bytes(x, DType::f32)), DType::f32);
  EXPECT_LE(worst_row_error(y, expected), 1e-6);
}

// Goal: a stop request ends a long product without computing it.
// Method: with the request made before, the output stays as it was.
TEST_P(LinearOnPath, LooksAtTheStopToken) {
  const auto device = cpu_device(GetParam(), 2);
  const DeviceMemory packed = aligned_memory(device->packed_bytes(64, 64, DType::bf16));
  const DeviceMemory scratch = aligned_memory(device->scratch_bytes({}));
  const Bytes x(64 * 64 * 2);
  Bytes y(64 * 64 * 2, std::byte{0x55});
  std::stop_source source;
  source.request_stop();
  device->linear(
      {x.data(), y.data(), DType::bf16, 64, 64, 64, {packed.get(), DType::bf16, nullptr}},
      scratch.get(), source.get_token());
  EXPECT_EQ(y, Bytes(y.size(), std::byte{0x55}));
  device->linear(
      {x.data(), y.data(), DType::bf16, 64, 64, 64, {packed.get(), DType::bf16, nullptr}},
      scratch.get(), {});
  EXPECT_EQ(y, Bytes(y.size(), std::byte{0}));
}

INSTANTIATE_TEST_SUITE_P(Paths, LinearOnPath, testing::ValuesIn(machine_isas()),
                         [](const auto& isa) { return std::string(cpu_isa_name(isa.param)); });

}  // namespace
}  // namespace librarian::gpu_exec
