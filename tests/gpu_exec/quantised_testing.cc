#include "tests/gpu_exec/quantised_testing.h"

#include <algorithm>
#include <utility>

namespace librarian::gpu_exec {
namespace {

std::uint64_t divide_up(std::uint64_t value, std::uint64_t unit) {
  return (value + unit - 1) / unit;
}

/// Adds a table to a matrix, off any alignment.
const std::byte* keep(TestQuantised& matrix, const Bytes& table) {
  Bytes& kept = matrix.tables.emplace_back(table.size() + 1);
  std::copy(table.begin(), table.end(), kept.begin() + 1);
  return kept.data() + 1;
}

Bytes random_bytes(TestRandom& random, std::uint64_t count) {
  Bytes bytes(count);
  std::generate(bytes.begin(), bytes.end(),
                [&] { return static_cast<std::byte>(random.next() >> 40U); });
  return bytes;
}

/// Small numbers, none of them NaN, whose bits differ from one to the next.
Bytes random_scales(TestRandom& random, ScaleType type, std::uint64_t bytes) {
  switch (type) {
    case ScaleType::f32:
      return to_bytes(random.vector(bytes / 4, 0.02F, 0.03F), DType::f32);
    case ScaleType::f16:
      return to_bytes(random.vector(bytes / 2, 0.02F, 0.03F), DType::f16);
    case ScaleType::bf16:
      return to_bytes(random.vector(bytes / 2, 0.02F, 0.03F), DType::bf16);
    default:
      break;
  }
  Bytes scales = random_bytes(random, bytes);
  for (std::byte& scale : scales) {
    // Exponents of about 2^-6, or numbers of a table.
    const auto low = static_cast<unsigned>(scale) % 16;
    scale = static_cast<std::byte>(type == ScaleType::e8m0      ? 115 + low
                                   : type == ScaleType::f8_e4m3 ? 0x08 + low
                                                                : low * 16 + low);
  }
  return scales;
}

}  // namespace

std::shared_ptr<const TestQuantised> filled(std::string name, QuantisedMatrix matrix,
                                            bool groups_shuffled) {
  auto result = std::make_shared<TestQuantised>();
  result->name = std::move(name);
  TestRandom random(result->name.size() + matrix.outputs * 31 + matrix.bits);
  if (groups_shuffled) {
    Bytes groups(matrix.inputs * 4, std::byte{0});
    for (std::uint64_t i = 0; i < matrix.inputs; ++i) {
      groups[4 * i] = static_cast<std::byte>((random.next() >> 20U) % matrix.groups);
    }
    matrix.group_of_input = keep(*result, groups);
  }
  const QuantisedSizes sizes = quantised_sizes(matrix);
  Bytes codes = random_bytes(random, sizes.codes);
  if (matrix.layout == CodeLayout::f8_e4m3) {
    // NaN has other bits on other machines, and no checkpoint has any.
    std::replace(codes.begin(), codes.end(), std::byte{0x7F}, std::byte{0x7E});
    std::replace(codes.begin(), codes.end(), std::byte{0xFF}, std::byte{0xFE});
  }
  matrix.codes = keep(*result, codes);
  matrix.scales = keep(*result, random_scales(random, matrix.scale_type, sizes.scales));
  matrix.zeros = sizes.zeros == 0 ? nullptr : keep(*result, random_bytes(random, sizes.zeros));
  if (matrix.layout == CodeLayout::table_flat) {
    matrix.table = keep(*result, to_bytes(random.vector(16, 1.0F), DType::f32));
  }
  if (matrix.scale_type == ScaleType::table8) {
    matrix.scale_table = keep(*result, to_bytes(random.vector(256, 0.5F), DType::f32));
    matrix.scale_of_256 = keep(
        *result, to_bytes(random.vector(divide_up(sizes.scales, 256), 0.02F, 0.05F), DType::f32));
    matrix.scale_offset = 0.01F;
  }
  result->matrix = matrix;
  return result;
}

std::shared_ptr<const TestQuantised> gptq_matrix(std::uint64_t outputs, std::uint64_t inputs,
                                                 std::uint32_t bits, bool shuffled) {
  QuantisedMatrix m;
  m.outputs = outputs;
  m.inputs = inputs;
  m.layout = CodeLayout::bits_by_input;
  m.bits = bits;
  m.scale_type = ScaleType::f16;
  m.scale_by_input = true;
  m.scale_inputs = 24;
  m.groups = divide_up(inputs, 24);
  m.zero_layout = ZeroLayout::bits_in_row;
  m.zero_plus = 1;
  m.result = DType::f16;
  return filled("gptq_" + std::to_string(bits) + (shuffled ? "_shuffled" : ""), m, shuffled);
}

std::shared_ptr<const TestQuantised> fp8_matrix(std::uint64_t outputs, std::uint64_t inputs,
                                                ScaleType scales) {
  QuantisedMatrix m;
  m.outputs = outputs;
  m.inputs = inputs;
  m.scale_type = scales;
  m.scale_outputs = 20;
  m.scale_inputs = 50;
  m.groups = divide_up(inputs, 50);
  return filled("fp8_" + std::to_string(static_cast<int>(scales)), m);
}

std::vector<std::shared_ptr<const TestQuantised>> all_layouts(std::uint64_t outputs,
                                                              std::uint64_t inputs) {
  std::vector<std::shared_ptr<const TestQuantised>> all;
  for (const ScaleType scales : {ScaleType::f32, ScaleType::bf16, ScaleType::e8m0}) {
    all.push_back(fp8_matrix(outputs, inputs, scales));
  }
  QuantisedMatrix by_row;
  by_row.outputs = outputs;
  by_row.inputs = inputs;
  by_row.layout = CodeLayout::int8;
  by_row.scale_inputs = 24;
  by_row.groups = inputs / 24;
  all.push_back(filled("int8", by_row));
  by_row.zero_layout = ZeroLayout::int8;
  all.push_back(filled("int8_zeros", by_row));
  by_row.after = 1.0F / 127;
  by_row.result = DType::f16;
  all.push_back(filled("int8_after", by_row));
  by_row.after = 1;
  for (const std::uint32_t bits : {2, 3, 4, 8}) {
    by_row.layout = CodeLayout::bits_by_row;
    by_row.bits = bits;
    by_row.zero_layout = ZeroLayout::none;
    all.push_back(filled("bits_" + std::to_string(bits), by_row));
    by_row.zero_layout = ZeroLayout::bits_by_output;
    all.push_back(filled("bits_zeros_" + std::to_string(bits), by_row));
    all.push_back(filled("bits_shuffled_" + std::to_string(bits), by_row, true));
    all.push_back(gptq_matrix(outputs, inputs, bits));
    all.push_back(gptq_matrix(outputs, inputs, bits, true));
  }
  QuantisedMatrix e2m1;
  e2m1.outputs = outputs;
  e2m1.inputs = inputs;
  e2m1.layout = CodeLayout::e2m1_by_row;
  e2m1.bits = 4;
  e2m1.scale_type = ScaleType::e8m0;
  e2m1.scale_inputs = 8;
  e2m1.groups = inputs / 8;
  all.push_back(filled("mxfp4", e2m1));
  e2m1.scale_type = ScaleType::f8_e4m3;
  e2m1.has_global = true;
  e2m1.global = 0.3F;
  all.push_back(filled("nvfp4", e2m1));
  e2m1.divides_by_global = true;
  all.push_back(filled("nvfp4_divides", e2m1));
  QuantisedMatrix awq = gptq_matrix(outputs, inputs)->matrix;
  awq.layout = CodeLayout::awq;
  awq.zero_layout = ZeroLayout::awq;
  awq.zero_plus = 0;
  all.push_back(filled("awq", awq));
  QuantisedMatrix flat;
  flat.outputs = outputs;
  flat.inputs = inputs;
  flat.layout = CodeLayout::table_flat;
  flat.bits = 4;
  flat.scale_inputs = 64;
  flat.result = DType::f32;
  all.push_back(filled("flat", flat));
  flat.scale_type = ScaleType::table8;
  flat.scale_inputs = 4;  // So that there are outer scales.
  all.push_back(filled("flat_nested", flat));
  return all;
}

}  // namespace librarian::gpu_exec
