#include "weightmap/quantisation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "gpu_exec/layer_executor.h"
#include "weightmap/safetensors_header.h"

namespace librarian::weightmap {
namespace {

using gpu_exec::DType;
using gpu_exec::QuantisedMatrix;
using testing::HasSubstr;

/// One matrix of tests/golden/quantised, with what its library decodes it to.
struct Fixture {  // NOLINT(bugprone-exception-escape): Json's move may throw
  std::string name;
  Json config;
  std::vector<ModuleTensor> tensors;
  std::map<std::string, std::vector<std::byte>> bytes;
  DType result{};
  std::uint64_t outputs = 0, inputs = 0;
  std::vector<std::byte> expected;

  ModuleTensor& tensor(const std::string& suffix) {
    return *std::find_if(tensors.begin(), tensors.end(),
                         [&](const auto& tensor) { return tensor.suffix == suffix; });
  }
  Result<QuantisedModule> describe() const {
    LIB_TRY(const Quantisation quantisation, read_quantisation(config, name));
    return describe_quantised(quantisation, tensors, outputs, inputs, "layer.proj");
  }
  /// The module must outlive the result's user only as far as `bytes` do.
  Result<QuantisedMatrix> bind() const {
    LIB_TRY(const QuantisedModule module, describe());
    std::map<std::string, std::span<const std::byte>> spans;
    for (const auto& [suffix, data] : bytes) {
      spans[suffix] = data;
    }
    return bind_quantised(module, spans, "layer.proj");
  }
};

Fixture read_fixture(const std::string& name) {
  std::ifstream file(LIBRARIAN_GOLDEN_DIR "/quantised/" + name + ".safetensors", std::ios::binary);
  const std::string all{std::istreambuf_iterator<char>(file), {}};
  std::uint64_t length = 0;
  std::memcpy(&length, all.data(), sizeof length);
  const std::string json = all.substr(8, length);
  Fixture fixture;
  fixture.name = name;
  const Json header = parse_json(json, name).value();
  fixture.config =
      parse_json(header["__metadata__"]["quantization_config"].get<std::string>(), name).value();
  const std::vector<TensorInfo> tensors = parse_safetensors_header(json, all.size(), name).value();
  for (const TensorInfo& tensor : tensors) {
    const auto* begin = reinterpret_cast<const std::byte*>(all.data()) + tensor.bytes.begin;
    std::vector<std::byte> data(begin, begin + (tensor.bytes.end - tensor.bytes.begin));
    if (tensor.name == "expected") {
      fixture.outputs = tensor.shape[0];
      fixture.inputs = tensor.shape[1];
      fixture.result = tensor.dtype == "F32"   ? DType::f32
                       : tensor.dtype == "F16" ? DType::f16
                                               : DType::bf16;
      fixture.expected = std::move(data);
    } else {
      fixture.tensors.push_back({tensor.name, tensor.dtype, tensor.shape});
      fixture.bytes[tensor.name] = std::move(data);
    }
  }
  return fixture;
}

std::vector<std::string> fixture_names() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(LIBRARIAN_GOLDEN_DIR "/quantised")) {
    names.push_back(entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

class QuantisedLayout : public testing::TestWithParam<std::string> {};

// Goal: each layout decodes to the bits of its own library.
// Method: matrices that the libraries decoded, whole and in odd tiles of rows.
TEST_P(QuantisedLayout, DecodesToItsLibrarysBits) {
  const Fixture fixture = read_fixture(GetParam());
  auto matrix = fixture.bind();
  ASSERT_TRUE(matrix) << matrix.error().message();
  EXPECT_EQ(matrix->result, fixture.result);
  const std::uint64_t row_bytes = fixture.inputs * gpu_exec::dtype_bytes(fixture.result);
  for (const std::uint64_t tile : {fixture.outputs, std::uint64_t{7}}) {
    for (std::uint64_t row = 0; row < fixture.outputs; row += tile) {
      const std::uint64_t rows = std::min(tile, fixture.outputs - row);
      std::vector<std::byte> out(rows * row_bytes);
      gpu_exec::dequantise(*matrix, row, rows, 0, fixture.inputs, fixture.result, out.data());
      ASSERT_EQ(std::memcmp(out.data(), fixture.expected.data() + row * row_bytes, out.size()), 0)
          << "rows from " << row << ", " << rows << " of them";
    }
  }
}

// Goal: the definition, element by element, which a GPU follows, says the same; other types of
// computation get the library's value, rounded once more.
TEST_P(QuantisedLayout, SaysTheSameElementByElementAndInOtherTypes) {
  const Fixture fixture = read_fixture(GetParam());
  const QuantisedMatrix matrix = fixture.bind().value();
  const std::uint64_t count = fixture.outputs * fixture.inputs;
  std::vector<std::byte> exact(count * 4);
  gpu_exec::convert_elements(fixture.result, fixture.expected, DType::f32, exact);
  for (std::uint64_t o = 0; o < fixture.outputs; ++o) {
    for (std::uint64_t i = 0; i < fixture.inputs; ++i) {
      const float value = gpu_exec::quantised_element(matrix, o, i);
      std::uint32_t bits = 0;
      std::uint32_t wanted = 0;
      std::memcpy(&bits, &value, sizeof bits);
      std::memcpy(&wanted, exact.data() + (o * fixture.inputs + i) * sizeof wanted, sizeof wanted);
      ASSERT_EQ(bits, wanted) << o << ", " << i << ": " << value;
    }
  }
  for (const DType to : {DType::bf16, DType::f16, DType::f32}) {
    std::vector<std::byte> wanted(count * gpu_exec::dtype_bytes(to));
    gpu_exec::convert_elements(DType::f32, exact, to, wanted);
    std::vector<std::byte> out(wanted.size());
    gpu_exec::dequantise(matrix, 0, fixture.outputs, 0, fixture.inputs, to, out.data());
    EXPECT_EQ(out, wanted) << gpu_exec::dtype_name(to);
    // Columns that neither groups nor bytes end at.
    const std::uint64_t element = gpu_exec::dtype_bytes(to);
    std::vector<std::byte> tile(3 * 50 * element);
    gpu_exec::dequantise(matrix, 5, 3, 37, 87, to, tile.data());
    for (std::uint64_t row = 0; row < 3; ++row) {
      const auto begin =
          wanted.begin() + static_cast<std::ptrdiff_t>(((5 + row) * fixture.inputs + 37) * element);
      EXPECT_TRUE(std::equal(begin, begin + static_cast<std::ptrdiff_t>(50 * element),
                             tile.begin() + static_cast<std::ptrdiff_t>(row * 50 * element)))
          << "row " << row;
    }
  }
}

// Goal: what a library rounds to f16 on the way is rounded as its own arithmetic does, at every
// border of that type.
// Method: a table of numbers of our choice, with one neighbour on each side of each border; enough
// elements for a table of results, and so few that each is computed by itself.
TEST(Dequantise, RoundsToF16OnTheWay) {
  std::vector<float> numbers;
  for (const float border : {0.0F, 2.98023224e-8F, 5.96046448e-8F, 6.103515625e-5F, 1.0F,
                             1.00048828125F, 1.00146484375F, 65504.0F, 65520.0F, 1e30F}) {
    for (const float number :
         {border, std::nextafter(border, 1e38F), std::nextafter(border, -1e38F)}) {
      numbers.insert(numbers.end(), {number, -number});
    }
  }
  numbers.insert(numbers.end(), {INFINITY, -INFINITY, NAN, -NAN});
  const float one = 1;
  for (std::size_t first = 0; first < numbers.size(); first += 16) {
    const std::size_t count = std::min<std::size_t>(16, numbers.size() - first);
    std::array<float, 16> table{};
    std::copy_n(numbers.begin() + static_cast<std::ptrdiff_t>(first), count, table.begin());
    for (const std::uint64_t inputs : {std::uint64_t{16}, std::uint64_t{160}}) {
      std::vector<std::byte> codes(inputs / 2);
      for (std::uint64_t i = 0; i < codes.size(); ++i) {
        codes[i] = static_cast<std::byte>((2 * i % 16) << 4U | (2 * i + 1) % 16);
      }
      QuantisedMatrix matrix;
      matrix.outputs = 1;
      matrix.inputs = inputs;
      matrix.layout = gpu_exec::CodeLayout::table_flat;
      matrix.codes = codes.data();
      matrix.scales = reinterpret_cast<const std::byte*>(&one);
      matrix.scale_inputs = inputs;
      matrix.table = reinterpret_cast<const std::byte*>(table.data());
      matrix.result = DType::f16;
      for (const DType to : {DType::bf16, DType::f16, DType::f32}) {
        std::vector<float> wanted(inputs);
        for (std::uint64_t i = 0; i < inputs; ++i) {
          wanted[i] = gpu_exec::quantised_element(matrix, 0, i);
        }
        std::vector<std::byte> expected(inputs * gpu_exec::dtype_bytes(to));
        gpu_exec::convert_elements(DType::f32, std::as_bytes(std::span(wanted)), to, expected);
        std::vector<std::byte> out(expected.size());
        gpu_exec::dequantise(matrix, 0, 1, 0, inputs, to, out.data());
        EXPECT_EQ(out, expected) << "numbers from " << first << " to " << gpu_exec::dtype_name(to);
      }
    }
  }
}

// Goal: nothing beside the tables that the checkpoint has is read, and none is forgotten.
// Method: a tensor less, or one of another shape or type, is refused by its name.
TEST_P(QuantisedLayout, RefusesAMissingMisshapenOrUnknownTensorByName) {
  const Fixture whole = read_fixture(GetParam());
  const QuantisedModule module = whole.describe().value();
  for (std::size_t i = 0; i < whole.tensors.size(); ++i) {
    const std::string& suffix = whole.tensors[i].suffix;
    const QuantTable table = module.tables.at(suffix);
    // Zero points and group numbers are optional by design where their absence has a meaning.
    const bool optional = table == QuantTable::unused ||
                          (table == QuantTable::zeros && !suffix.starts_with("q")) ||
                          table == QuantTable::group_of_input;
    if (!optional) {
      Fixture fixture = whole;
      fixture.tensors.erase(fixture.tensors.begin() + static_cast<std::ptrdiff_t>(i));
      EXPECT_FALSE(fixture.describe()) << "without " << suffix;
    }
    if (table != QuantTable::unused && table != QuantTable::state) {
      Fixture fixture = whole;
      fixture.tensors[i].shape.push_back(3);
      auto described = fixture.describe();
      ASSERT_FALSE(described) << suffix;
      EXPECT_EQ(described.error().code(), ErrorCode::bad_input);
      EXPECT_THAT(described.error().message(), HasSubstr("layer.proj."));
      fixture = whole;
      fixture.tensors[i].dtype = "I64";
      EXPECT_FALSE(fixture.describe()) << suffix;
    }
  }
  Fixture fixture = whole;
  fixture.tensors.push_back({"weight_surprise", "F32", {1}});
  auto described = fixture.describe();
  ASSERT_FALSE(described);
  EXPECT_THAT(described.error().message(), HasSubstr("layer.proj.weight_surprise"));
}

INSTANTIATE_TEST_SUITE_P(All, QuantisedLayout, testing::ValuesIn(fixture_names()),
                         [](const auto& fixture) { return fixture.param; });

TEST(Quantisation, HasAFixtureOfEveryLayout) { EXPECT_GE(fixture_names().size(), 38U); }

TEST(Quantisation, TensorsKeepTheirNamesWhereOneHoldsAllExperts) {
  for (const auto& [module, suffix, name] :
       {std::tuple{"a.proj", "weight_scale", "a.proj.weight_scale"},
        std::tuple{"a.proj", "qweight", "a.proj.qweight"},
        std::tuple{"a.proj[3]", "weight_scales", "a.proj_scales[3]"},
        std::tuple{"a.proj[12]", "weight", "a.proj[12]"}}) {
    EXPECT_EQ(quantised_tensor_name(module, suffix), name);
    EXPECT_EQ(quantised_module_name(name, suffix), module);
  }
}

TEST(Quantisation, RefusesAScaleThatIsNotANumber) {
  Fixture fixture = read_fixture("gptq_4bit");
  const std::uint16_t nan = 0x7E00;
  std::memcpy(fixture.bytes["scales"].data() + 10, &nan, sizeof nan);
  auto bound = fixture.bind();
  ASSERT_FALSE(bound);
  EXPECT_EQ(bound.error().code(), ErrorCode::bad_input);
  EXPECT_THAT(bound.error().message(),
              HasSubstr("layer.proj.scales: scale 5 is not a finite number"));
}

TEST(Quantisation, RefusesAGroupThatDoesNotExist) {
  for (const std::int32_t group : {-1, 6, std::numeric_limits<std::int32_t>::max()}) {
    Fixture fixture = read_fixture("gptq_3bit_desc");
    std::memcpy(fixture.bytes["g_idx"].data() + sizeof group * 17, &group, sizeof group);
    auto bound = fixture.bind();
    ASSERT_FALSE(bound);
    EXPECT_THAT(bound.error().message(), HasSubstr("layer.proj.g_idx: input 17 is in group"));
  }
}

TEST(Quantisation, RefusesAStateThatDisagreesWithTheShapes) {
  for (const char* text : {"", "{}", R"({"blocksize": 0, "dtype": "bfloat16", "shape": [40, 192]})",
                           R"({"blocksize": 64, "dtype": "bfloat16", "shape": [40, 191]})",
                           R"({"blocksize": 64, "dtype": "int8", "shape": [40, 192]})"}) {
    Fixture fixture = read_fixture("bnb_nf4");
    const auto* begin = reinterpret_cast<const std::byte*>(text);
    fixture.bytes["weight.quant_state.bitsandbytes__nf4"] = {begin, begin + std::strlen(text)};
    auto bound = fixture.bind();
    ASSERT_FALSE(bound) << text;
    EXPECT_EQ(bound.error().code(), ErrorCode::bad_input);
    EXPECT_THAT(bound.error().message(), HasSubstr("quant_state"));
  }
}

TEST(Quantisation, RefusesAConfigThatItDoesNotKnow) {
  const auto refused = [](const char* text) {
    auto read = read_quantisation(parse_json(text, "t").value(), "config.json");
    return read ? std::string("taken") : read.error().message();
  };
  EXPECT_THAT(refused(R"({"quant_method": "hqq"})"), HasSubstr("'hqq' is not built in"));
  EXPECT_THAT(refused(R"({"quant_method": "gptq", "bits": 5, "group_size": 128})"),
              HasSubstr("bits"));
  EXPECT_THAT(refused(R"({"quant_method": "gptq", "bits": 4, "group_size": 0})"),
              HasSubstr("group_size"));
  EXPECT_THAT(refused(R"({"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemv"})"),
              HasSubstr("version gemm"));
  EXPECT_THAT(refused(R"({"quant_method": "fp8", "weight_block_size": [128]})"),
              HasSubstr("weight_block_size"));
  EXPECT_THAT(refused("{}"), HasSubstr("quant_method"));
}

}  // namespace
}  // namespace librarian::weightmap
