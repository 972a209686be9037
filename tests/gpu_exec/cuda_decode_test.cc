// Quantised matrices on the CUDA device: the CPU's bits for every layout, whatever part of a matrix
// is wanted and however little of it the device holds at a time; on an emulated GPU everywhere, on
// a real one where there is one (CTest label gpu).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "gpu_exec/cuda_window.h"
#include "tests/gpu_exec/cuda_area.h"
#include "tests/gpu_exec/cuda_buffers.h"
#include "tests/gpu_exec/quantised_testing.h"

namespace librarian::gpu_exec {
namespace {

using testing::HasSubstr;

/// Outputs [0, count) are `rows` of a matrix.
struct Part {
  const char* name;
  RowRuns rows;
  std::uint64_t count;
};
constexpr std::uint64_t kOutputs = 72;
constexpr Part kParts[] = {{"all", {}, kOutputs},
                           {"a slice", {37, ~std::uint64_t{0}, 0}, 21},
                           {"the last", {kOutputs - 1, ~std::uint64_t{0}, 0}, 1},
                           {"every other", {1, 1, 2}, 30},
                           {"runs", {3, 5, 20}, 17}};

Bytes by_cpu(const QuantisedMatrix& matrix, const Part& part, DType type) {
  const std::uint64_t row_bytes = matrix.inputs * dtype_bytes(type);
  Bytes rows(part.count * row_bytes);
  for (std::uint64_t i = 0; i < part.count; ++i) {
    dequantise(matrix, part.rows.at(i), 1, 0, matrix.inputs, type, rows.data() + i * row_bytes);
  }
  return rows;
}

class CudaDecode : public OnCudaDevice {
 protected:
  Bytes decode(const QuantisedMatrix& matrix, const Part& part, DType type,
               std::uint64_t staging_bytes) {
    area_->clear();
    MatrixSource source;
    source.type = type;
    source.rows = part.rows;
    source.quantised = &matrix;
    source.staging = area_->take(device().staging_bytes());
    source.staging_bytes = staging_bytes;
    const std::uint64_t bytes = part.count * matrix.inputs * dtype_bytes(type);
    std::byte* const packed = area_->take(bytes);
    device().pack_matrix(source, part.count, matrix.inputs, packed);
    return area_->get(packed, bytes, Queue::weights);
  }
  void SetUp() override {
    OnCudaDevice::SetUp();
    if (!IsSkipped()) {
      area_ = std::make_unique<DeviceArea>(device(), device().staging_bytes() + (1U << 20U));
    }
  }

 private:
  std::unique_ptr<DeviceArea> area_;
};

/// As little as can be decoded at a time: what the largest output needs, and its words' others.
std::uint64_t least_staging(const QuantisedMatrix& matrix, const Part& part) {
  std::uint64_t bytes = 0;
  for (std::uint64_t i = 0; i < part.count; ++i) {
    bytes = std::max(bytes, quantised_window(matrix, part.rows, i, i + 1).bytes());
  }
  return bytes;
}

// Goal: a matrix on the device is what the CPU decodes, bit for bit.
// Method: random codes in every layout, with inputs that end inside units, words and groups; whole
// matrices and parts of fused ones; all at once, and as little at a time as can be.
TEST_P(CudaDecode, GivesTheCpusBits) {
  for (const std::uint64_t inputs : {120, 312}) {
    for (const auto& quantised : all_layouts(kOutputs, inputs)) {
      const QuantisedMatrix& matrix = quantised->matrix;
      for (const Part& part : kParts) {
        for (const DType type : kTypes) {
          const Bytes expected = by_cpu(matrix, part, type);
          ASSERT_EQ(decode(matrix, part, type, device().staging_bytes()), expected)
              << quantised->name << ", " << part.name << " in " << dtype_name(type);
          ASSERT_EQ(decode(matrix, part, type, least_staging(matrix, part)), expected)
              << quantised->name << ", " << part.name << " in " << dtype_name(type) << ", by parts";
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Gpus, CudaDecode, testing::Values("emulated", "gpu"),
                         [](const auto& gpu) { return gpu.param; });

// Goal: only what is wanted of a matrix goes over the bus, and it is never more than the memory
// holds.
TEST(CudaWindow, HoldsWhatItsOutputsNeed) {
  for (const auto& quantised : all_layouts(kOutputs, 120)) {
    const QuantisedMatrix& matrix = quantised->matrix;
    const QuantisedSizes sizes = quantised_sizes(matrix);
    const QuantisedWindow whole = quantised_window(matrix, {}, 0, kOutputs);
    std::uint64_t copied = 0;
    for (const CudaCopy& copy : whole.copies_to(nullptr)) {
      copied += copy.row_bytes * copy.rows;
    }
    std::uint64_t tables = sizes.codes + sizes.scales + sizes.zeros + sizes.group_of_input;
    tables += matrix.table != nullptr ? 64 : 0;
    tables += matrix.scale_table != nullptr ? 1024 + (sizes.scales + 255) / 256 * 4 : 0;
    EXPECT_EQ(copied, tables) << quantised->name;
    EXPECT_LT(quantised_window(matrix, {}, 8, 16).bytes(), whole.bytes()) << quantised->name;
    for (const std::uint64_t bytes : {whole.bytes(), whole.bytes() - 1, whole.bytes() * 2 / 3}) {
      const std::uint64_t end = window_end(matrix, {}, 0, kOutputs, bytes);
      EXPECT_EQ(end == kOutputs, bytes == whole.bytes()) << quantised->name;
      EXPECT_LE(quantised_window(matrix, {}, 0, end).bytes(), bytes) << quantised->name;
    }
  }
}

/// Whether a copy reads nothing but one of the matrix's tables.
bool is_of_a_table(const CudaCopy& copy, const TestQuantised& matrix) {
  const std::byte* const end = copy.from + (copy.rows - 1) * copy.from_stride + copy.row_bytes;
  return std::any_of(matrix.tables.begin(), matrix.tables.end(), [&](const Bytes& table) {
    return table.data() < copy.from && end <= table.data() + table.size();
  });
}

// Goal: no byte is read that is not the checkpoint's.
TEST(CudaWindow, ReadsNothingButTheTables) {
  for (const auto& quantised : all_layouts(kOutputs, 120)) {
    for (const Part& part : kParts) {
      for (std::uint64_t end = 1; end <= part.count; ++end) {
        for (const std::uint64_t begin : {std::uint64_t{0}, end - 1}) {
          const QuantisedWindow window = quantised_window(quantised->matrix, part.rows, begin, end);
          for (const CudaCopy& copy : window.copies_to(nullptr)) {
            ASSERT_TRUE(is_of_a_table(copy, *quantised)) << quantised->name << " " << part.name;
          }
        }
      }
    }
  }
}

/// A layer with fused matrices, each of which has a quantised form.
struct QuantisedLayer {
  TestLayer plain;  ///< With the decoded weights.
  std::map<WeightKey, std::shared_ptr<const TestQuantised>> quantised;

  explicit QuantisedLayer(DType type) {
    LayerSpec spec = awkward_layer();
    spec.mlp.fused = true;
    plain = make_layer(72, spec, type);
    bool by_input = false;
    for (auto& [key, values] : plain.weights) {
      const std::vector<std::uint64_t> shape = weight_shape(plain.model, spec, key.role);
      if (shape.size() != 2) {
        continue;
      }
      by_input = !by_input;
      quantised[key] = by_input ? gptq_matrix(shape[0], shape[1]) : fp8_matrix(shape[0], shape[1]);
      Bytes decoded(shape[0] * shape[1] * dtype_bytes(type));
      dequantise(quantised[key]->matrix, 0, shape[0], 0, shape[1], type, decoded.data());
      values = to_floats(decoded, type);
    }
  }

  std::unique_ptr<LayerExecutor> executor(Device& device, ExecutorOptions options) const {
    options.quantised = true;
    auto executor = LayerExecutor::create(plain.model, options, device);
    EXPECT_TRUE(executor) << executor.error().message();
    (*executor)->begin_layer(0);
    for (const auto& [key, values] : plain.weights) {
      const auto found = quantised.find(key);
      if (found != quantised.end()) {
        EXPECT_TRUE((*executor)->load(key, found->second->matrix));
      } else {
        plain.loaded[key] = std::make_shared<const Bytes>(to_bytes(values, plain.weight_type));
        EXPECT_TRUE((*executor)->load(key, plain.weight_type, *plain.loaded[key]));
      }
    }
    return *std::move(executor);
  }
};

// Goal: a layer with quantised weights is the layer with the decoded ones, whole and in stages,
// within the memory that was planned, whatever order the queues take.
TEST(CudaQuantisedLayer, IsThatOfTheDecodedWeights) {
  for (const DType type : {DType::bf16, DType::f32}) {
    const QuantisedLayer layer(type);
    ExecutorOptions options = executor_options(layer.plain, type, 20, 20);
    const std::vector<Segment> segments = segments_of({13, 1, 6});
    const Bytes state = to_bytes(TestRandom(3).vector(std::size_t{20} * 72, 2.0F), type);
    const auto roomy = make_cuda_device(make_emulated_cuda({}), 1ULL << 30U).value();
    RecordingSink expected;
    run_block(*loaded_executor(layer.plain, *roomy, options), segments, state, expected);
    options.quantised = true;
    const ExecutorMemory memory = *LayerExecutor::memory(layer.plain.model, options, *roomy);
    for (const std::uint64_t limit : {memory.device_bytes(), memory.device_bytes() - 1}) {
      for (const std::uint64_t seed : {1, 2, 3}) {
        EmulatedCudaOptions gpu;
        gpu.seed = seed;
        EmulatedCudaRecord record;
        const auto device = make_cuda_device(make_emulated_cuda(gpu, &record), limit).value();
        RecordingSink sink;
        run_block(*layer.executor(*device, options), segments, state, sink);
        EXPECT_EQ(sink.rows, expected.rows) << limit << " bytes, seed " << seed;
        EXPECT_EQ(record.allocations.size(), 1U);
        EXPECT_THAT(record.done, testing::Contains("weights decode"));
      }
    }
  }
}

TEST(CudaQuantisedLayer, IsRefusedWhereNoMemoryWasPlannedForIt) {
  const QuantisedLayer layer(DType::bf16);
  const auto device = make_cuda_device(make_emulated_cuda({}), 1ULL << 30U).value();
  const ExecutorOptions options = executor_options(layer.plain, DType::bf16, 20, 20);
  const auto executor = LayerExecutor::create(layer.plain.model, options, *device).value();
  executor->begin_layer(0);
  const auto& [key, quantised] = *layer.quantised.begin();
  const auto loaded = executor->load(key, quantised->matrix);
  ASSERT_FALSE(loaded);
  EXPECT_THAT(loaded.error().message(), HasSubstr("no memory was planned"));
}

}  // namespace
}  // namespace librarian::gpu_exec
