// Matrix products: right, and the same bits for a row wherever and with whomever it is computed.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "gpu_exec/cpu_isa.h"
#include "gpu_exec/cpu_pack.h"
#include "tests/gpu_exec/emulated_amx.h"
#include "tests/gpu_exec/reference.h"

namespace librarian::gpu_exec {
namespace {

constexpr const char* kEmulatedAmx = "emulated_amx";

/// Every path that this machine runs, and the tile kernel on emulated instructions.
std::vector<std::string> paths() {
  std::vector<std::string> names;
  for (const CpuIsa isa : machine_isas()) {
    names.emplace_back(cpu_isa_name(isa));
  }
  names.emplace_back(kEmulatedAmx);
  return names;
}

CpuKernels kernels_of(const std::string& path) {
  for (const CpuIsa isa : machine_isas()) {
    if (path == cpu_isa_name(isa)) {
      return cpu_kernels(isa);
    }
  }
  return emulated_amx_kernels();
}

std::unique_ptr<Device> device_of(const std::string& path, int threads) {
  return make_cpu_device(path.c_str(), kernels_of(path), threads);
}

struct Shape {
  std::uint64_t inputs, outputs;
};
// Some runs of every kernel's depth and a remainder; some panels and a remainder.
constexpr Shape kOdd{517, 301};
constexpr Shape kDeep{2117, 45};  // More inputs than a slice of tiles has.
constexpr Shape kWide{40, 1100};  // More outputs than a task takes.
constexpr Shape kSmall{70, 44};

/// What is multiplied.
struct Product {
  Shape shape;
  DType dtype, weight_type;
  bool glu = false;
  Activation activation = Activation::identity;
};
std::string name_of(const Product& product) {
  return std::string(dtype_name(product.dtype)) + " x " + dtype_name(product.weight_type) + ", " +
         std::to_string(product.shape.inputs) + " inputs, " +
         std::to_string(product.shape.outputs) + " outputs" + (product.glu ? ", gated" : "");
}

/// A product's matrices, packed for a device.
class Packed {
 public:
  Packed(std::unique_ptr<Device> device, const Product& product)
      : device_(std::move(device)), product_(product) {
    TestRandom random(3);
    scratch_ = aligned_memory(device_->scratch_bytes({}));
    const auto [inputs, outputs] = product.shape;
    const float scale = 1.5F / std::sqrt(static_cast<float>(inputs));
    for (Matrix* matrix : {&first, &second}) {
      matrix->weight = rounded(random.vector(inputs * outputs, scale), product.weight_type);
      matrix->bias = random.vector(outputs, 0.5F);
      matrix->packed = aligned_memory(device_->packed_bytes(outputs, inputs, product.weight_type));
      const Bytes bytes = to_bytes(matrix->weight, product.weight_type);
      device_->pack_matrix({bytes.data(), product.weight_type, {}, false, 0}, outputs, inputs,
                           matrix->packed.get());
    }
  }

  Bytes run(const Bytes& x) {
    const auto [inputs, outputs] = product_.shape;
    const std::uint64_t rows = x.size() / x_row();
    constexpr std::uint64_t kGuard = 64;
    Bytes y(rows * y_row() + kGuard, std::byte{0x5A});
    if (product_.glu) {
      device_->glu({x.data(), y.data(), product_.dtype, rows, inputs, outputs, view(first),
                    view(second), product_.activation},
                   scratch_.get(), {});
    } else {
      device_->linear({x.data(), y.data(), product_.dtype, rows, inputs, outputs, view(first),
                       product_.activation},
                      scratch_.get(), {});
    }
    EXPECT_EQ(Bytes(y.end() - kGuard, y.end()), Bytes(kGuard, std::byte{0x5A}));
    y.resize(y.size() - kGuard);
    return y;
  }

  std::uint64_t x_row() const { return product_.shape.inputs * dtype_bytes(product_.dtype); }
  std::uint64_t y_row() const { return product_.shape.outputs * dtype_bytes(product_.dtype); }
  Bytes x_rows(const Bytes& x, std::uint64_t begin, std::uint64_t end) const {
    return slice(x, x_row(), begin, end);
  }
  Bytes y_rows(const Bytes& y, std::uint64_t begin, std::uint64_t end) const {
    return slice(y, y_row(), begin, end);
  }

 private:
  struct Matrix {
    std::vector<float> weight, bias;
    DeviceMemory packed;
  };
  PackedMatrix view(const Matrix& matrix) const {
    return {matrix.packed.get(), product_.weight_type, matrix.bias.data()};
  }
  static Bytes slice(const Bytes& rows, std::uint64_t row_bytes, std::uint64_t begin,
                     std::uint64_t end) {
    return {rows.begin() + static_cast<std::ptrdiff_t>(begin * row_bytes),
            rows.begin() + static_cast<std::ptrdiff_t>(end * row_bytes)};
  }

  std::unique_ptr<Device> device_;
  const Product product_;
  DeviceMemory scratch_;

 public:
  Matrix first, second;
};

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::identity:
      return x;
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu:
      return x / 2 * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::gelu_tanh:
      return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::relu:
      return std::max(x, 0.0);
    case Activation::relu_squared:
      return std::max(x, 0.0) * std::max(x, 0.0);
    case Activation::clamped_swish:
      return std::min(x, 7.0) / (1 + std::exp(-1.702 * std::min(x, 7.0)));
  }
  return 0;
}

/// The product in double precision.
Rows expected_of(const Packed& packed, const Product& product, const std::vector<float>& x) {
  const Rows rows = to_rows(x, product.shape.inputs);
  const std::uint64_t outputs = product.shape.outputs;
  Rows y = reference_linear(rows, packed.first.weight, &packed.first.bias, outputs);
  const Rows up = reference_linear(rows, packed.second.weight, &packed.second.bias, outputs);
  for (std::size_t i = 0; i < y.size(); ++i) {
    for (std::size_t j = 0; j < outputs; ++j) {
      const double factor = !product.glu ? 1
                            : product.activation == Activation::clamped_swish
                                ? std::clamp(up[i][j], -7.0, 7.0) + 1
                                : up[i][j];
      y[i][j] = activated(product.activation, y[i][j]) * factor;
    }
  }
  return y;
}

/// Of a row: f32 accumulation, or the rounding of the output (and, of f16, of its small ones).
double tolerance(DType dtype) {
  return dtype == DType::f32 ? 1e-6 : (dtype == DType::bf16 ? 2e-3 : 3e-4);
}

constexpr DType kTypes[] = {DType::bf16, DType::f16, DType::f32};

class LinearOnPath : public testing::TestWithParam<std::string> {
 protected:
  void TearDown() override { EXPECT_EQ(misused_tiles(), 0U); }
};

// Goal: a row's bits do not depend on the number of rows, its place or the threads.
// Method: 777 rows at once on two threads against runs of 1, 7, 33, 128 rows from the beginning,
// the middle and the end on one, for every pair of types, with and without a gate.
TEST_P(LinearOnPath, GivesARowTheSameBitsInAnyNumber) {
  std::vector<Product> products{{kDeep, DType::bf16, DType::bf16}, {kDeep, DType::f32, DType::f32}};
  for (const DType dtype : kTypes) {
    for (const DType weight_type : kTypes) {
      const bool glu = weight_type == dtype;  // Each type once is enough for the epilogue.
      products.push_back({kOdd, dtype, weight_type, glu, Activation::silu});
    }
  }
  for (const Product& product : products) {
    const Bytes x = to_bytes(TestRandom(7).vector(777 * product.shape.inputs, 1.0F), product.dtype);
    Packed two(device_of(GetParam(), 2), product);
    Packed one(device_of(GetParam(), 1), product);
    const Bytes whole = two.run(x);
    for (const std::uint64_t rows : {1, 7, 33, 128}) {
      for (const std::uint64_t begin : {std::uint64_t{0}, std::uint64_t{391}, 777 - rows}) {
        ASSERT_EQ(one.run(one.x_rows(x, begin, begin + rows)),
                  one.y_rows(whole, begin, begin + rows))
            << rows << " rows at " << begin << ", " << name_of(product);
      }
    }
  }
}

// Method: 4096 rows and wide outputs on one to four threads, which cut them differently.
TEST_P(LinearOnPath, GivesTheSameBitsOnAnyNumberOfThreads) {
  for (const DType type : {DType::bf16, DType::f32}) {
    for (const bool glu : {false, true}) {
      for (const auto& [shape, rows] : {std::pair(kSmall, 4096), std::pair(kWide, 300)}) {
        const Product product{shape, type, type, glu};
        const Bytes x = to_bytes(TestRandom(8).vector(rows * shape.inputs, 1.0F), type);
        Packed one(device_of(GetParam(), 1), product);
        const Bytes whole = one.run(x);
        for (const int threads : {2, 3, 4}) {
          ASSERT_EQ(Packed(device_of(GetParam(), threads), product).run(x), whole)
              << threads << " threads, " << name_of(product);
        }
        const Bytes last = one.x_rows(x, rows - 1, rows);
        ASSERT_EQ(one.run(last), one.y_rows(whole, rows - 1, rows)) << name_of(product);
      }
    }
  }
}

// Goal: neither a row's place nor its neighbours show in its bits.
// Method: one row at many places between rows of random numbers, then of infinities and NaN.
TEST_P(LinearOnPath, KeepsNeighboursOutOfARow) {
  constexpr std::uint64_t kRows = 530;
  for (const DType type : kTypes) {
    const Product product{kSmall, type, type, false, Activation::gelu};
    Packed packed(device_of(GetParam(), 2), product);
    const std::uint64_t width = packed.x_row();
    const Bytes row = to_bytes(TestRandom(9).vector(kSmall.inputs, 1.0F), type);
    const Bytes alone = packed.run(row);
    std::vector<float> poison(kRows * kSmall.inputs, std::numeric_limits<float>::infinity());
    for (std::size_t i = 0; i < poison.size(); i += 3) {
      poison[i] = std::numeric_limits<float>::quiet_NaN();
    }
    for (const Bytes& others : {to_bytes(TestRandom(10).vector(kRows * kSmall.inputs, 1.0F), type),
                                to_bytes(poison, type)}) {
      for (const std::uint64_t place : {0, 1, 13, 15, 16, 31, 32, 223, 224, 255, 256, 511, 529}) {
        Bytes x = others;
        std::memcpy(x.data() + place * width, row.data(), width);
        ASSERT_EQ(packed.y_rows(packed.run(x), place, place + 1), alone)
            << "row " << place << ", " << name_of(product);
      }
    }
  }
}

// Goal: the products are those of the definition, to f32 accumulation and one rounding.
// Method: every pair of types against double precision, with biases.
TEST_P(LinearOnPath, IsAccurate) {
  for (const Shape shape : {kOdd, kDeep, Shape{1, 1}}) {
    for (const DType dtype : kTypes) {
      for (const DType weight_type : kTypes) {
        const Product product{shape, dtype, weight_type};
        Packed packed(device_of(GetParam(), 2), product);
        const auto x = rounded(TestRandom(8).vector(33 * shape.inputs, 1.0F), dtype);
        const auto y = to_floats(packed.run(to_bytes(x, dtype)), dtype);
        EXPECT_LE(worst_row_error(y, expected_of(packed, product, x)), 2 * tolerance(dtype))
            << name_of(product);
      }
    }
  }
}

// Method: each activation, of a product and of a gate, against double precision.
TEST_P(LinearOnPath, ActivatesInF32) {
  for (const Activation activation :
       {Activation::identity, Activation::silu, Activation::gelu, Activation::gelu_tanh,
        Activation::relu, Activation::relu_squared, Activation::clamped_swish}) {
    for (const DType dtype : {DType::bf16, DType::f32}) {
      for (const bool glu : {false, true}) {
        const Product product{kOdd, dtype, DType::bf16, glu, activation};
        Packed packed(device_of(GetParam(), 1), product);
        const auto x = rounded(TestRandom(9).vector(33 * kOdd.inputs, 1.5F), dtype);
        const auto y = to_floats(packed.run(to_bytes(x, dtype)), dtype);
        EXPECT_LE(worst_row_error(y, expected_of(packed, product, x)), 2 * tolerance(dtype))
            << "activation " << static_cast<int>(activation) << ", " << name_of(product);
      }
    }
  }
}

// Goal: a matrix may lie in runs of rows inside a larger tensor, or transposed, at any alignment.
// Method: packing it from there gives the same bytes as packing it from a copy of its own; the
// memory before holds other bytes, and ends where the tensor does (sanitizers see beyond).
TEST_P(LinearOnPath, PacksFromWithinATensor) {
  const auto device = device_of(GetParam(), 3);
  for (const DType type : kTypes) {
    const std::uint64_t size = dtype_bytes(type);
    for (const Shape shape : {kOdd, Shape{64, 64}, Shape{1, 3}, Shape{97, 200}}) {
      const auto [inputs, outputs] = shape;
      // Runs of 12 rows, 30 apart, from the fifth on.
      const RowRuns runs{5, 12, 30};
      const std::uint64_t tensor_rows = runs.at(outputs - 1) + 1;
      const Bytes tensor = to_bytes(TestRandom(4).vector(tensor_rows * inputs, 1.0F), type);
      Bytes own(outputs * inputs * size);
      for (std::uint64_t i = 0; i < outputs; ++i) {
        std::memcpy(own.data() + i * inputs * size, tensor.data() + runs.at(i) * inputs * size,
                    inputs * size);
      }
      Bytes odd(tensor.size() + 1);
      Bytes turned(tensor.size() + 1);
      std::memcpy(odd.data() + 1, tensor.data(), tensor.size());
      for (std::uint64_t i = 0; i < tensor_rows; ++i) {
        for (std::uint64_t k = 0; k < inputs; ++k) {
          std::memcpy(turned.data() + 1 + (k * tensor_rows + i) * size,
                      tensor.data() + (i * inputs + k) * size, size);
        }
      }
      const PanelLayout layout = panel_layout(kernels_of(GetParam()), type);
      const std::uint64_t bytes = (outputs + layout.columns - 1) / layout.columns *
                                  packed_panel_bytes(inputs, layout, type);
      EXPECT_EQ(device->packed_bytes(outputs, inputs, type), (bytes + 63) / 64 * 64);
      const auto packed_from = [&](const MatrixSource& source, int before) {
        const DeviceMemory packed = aligned_memory(bytes);  // Of exactly that size.
        std::memset(packed.get(), before, bytes);
        device->pack_matrix(source, outputs, inputs, packed.get());
        return Bytes(packed.get(), packed.get() + bytes);
      };
      const Bytes expected = packed_from({own.data(), type, {}, false, 0}, 0);
      ASSERT_EQ(packed_from({odd.data() + 1, type, runs, false, 0}, 0xAA), expected)
          << dtype_name(type) << " in runs of rows, " << inputs << " inputs";
      ASSERT_EQ(packed_from({turned.data() + 1, type, runs, true, tensor_rows}, 0xAA), expected)
          << dtype_name(type) << " transposed, " << inputs << " inputs";
    }
  }
}

// Goal: a stop request ends a long product without computing it.
// Method: with the request made before, the output stays as it was.
TEST_P(LinearOnPath, LooksAtTheStopToken) {
  const auto device = device_of(GetParam(), 2);
  const DeviceMemory packed = aligned_memory(device->packed_bytes(64, 64, DType::bf16));
  const DeviceMemory scratch = aligned_memory(device->scratch_bytes({}));
  const Bytes x(64 * 64 * 2);
  Bytes y(64 * 64 * 2, std::byte{0x55});
  const LinearOp op{x.data(),
                    y.data(),
                    DType::bf16,
                    64,
                    64,
                    64,
                    {packed.get(), DType::bf16, nullptr},
                    Activation::identity};
  std::stop_source source;
  source.request_stop();
  device->linear(op, scratch.get(), source.get_token());
  EXPECT_EQ(y, Bytes(y.size(), std::byte{0x55}));
  device->linear(op, scratch.get(), {});
  EXPECT_EQ(y, Bytes(y.size(), std::byte{0}));
}

TEST_P(LinearOnPath, DoesNothingWithoutRows) {
  Packed packed(device_of(GetParam(), 2), {kSmall, DType::bf16, DType::bf16});
  EXPECT_TRUE(packed.run({}).empty());
}

// Goal: the peak is a property of the machine, measured once, of all threads together.
TEST_P(LinearOnPath, MeasuresItsPeakOnce) {
  const auto device = device_of(GetParam(), 2);
  for (const DType type : kTypes) {
    const double peak = device->peak_flops(type);
    EXPECT_GT(peak, 1e6) << dtype_name(type);
    EXPECT_LT(peak, 1e14) << dtype_name(type);
    EXPECT_EQ(device->peak_flops(type), peak);
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, LinearOnPath, testing::ValuesIn(paths()),
                         [](const auto& path) { return path.param; });

}  // namespace
}  // namespace librarian::gpu_exec
