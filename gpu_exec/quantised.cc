#include "gpu_exec/quantised.h"

#include <cmath>
#include <string>

#include "gpu_exec/quantised_functors.h"

namespace librarian::gpu_exec {
namespace {

std::uint64_t scale_rows(const QuantisedMatrix& m) {
  return (m.outputs + m.scale_outputs - 1) / m.scale_outputs;
}

std::uint64_t scale_count(const QuantisedMatrix& m) {
  if (m.layout == CodeLayout::table_flat) {
    return (m.outputs * m.inputs + m.scale_inputs - 1) / m.scale_inputs;
  }
  return m.groups * (m.scale_by_input ? m.outputs : scale_rows(m));
}

}  // namespace

std::uint64_t scale_bytes(ScaleType type) {
  switch (type) {
    case ScaleType::f32:
      return 4;
    case ScaleType::f16:
    case ScaleType::bf16:
      return 2;
    default:
      return 1;
  }
}

float quantised_element(const QuantisedMatrix& matrix, std::uint64_t output, std::uint64_t input) {
  return decoded_element(matrix, output, input);
}

QuantisedSizes quantised_sizes(const QuantisedMatrix& m) {
  QuantisedSizes sizes;
  switch (m.layout) {
    case CodeLayout::f8_e4m3:
    case CodeLayout::int8:
      sizes.codes = m.outputs * m.inputs;
      break;
    case CodeLayout::bits_by_row:
      sizes.codes = m.outputs * words_of(m.inputs, m.bits) * 4;
      break;
    case CodeLayout::e2m1_by_row:
      sizes.codes = m.outputs * (m.inputs / 2);
      break;
    case CodeLayout::bits_by_input:
      sizes.codes = words_of(m.inputs, m.bits) * m.outputs * 4;
      break;
    case CodeLayout::awq:
      sizes.codes = m.inputs * (m.outputs / 8) * 4;
      break;
    case CodeLayout::table_flat:
      sizes.codes = (m.outputs * m.inputs + 1) / 2;
      break;
  }
  sizes.scales = scale_count(m) * scale_bytes(m.scale_type);
  switch (m.zero_layout) {
    case ZeroLayout::none:
      break;
    case ZeroLayout::int8:
      sizes.zeros = scale_rows(m) * m.groups;
      break;
    case ZeroLayout::bits_by_output:
      sizes.zeros = words_of(m.outputs, m.bits) * m.groups * 4;
      break;
    case ZeroLayout::bits_in_row:
      sizes.zeros = m.groups * words_of(m.outputs, m.bits) * 4;
      break;
    case ZeroLayout::awq:
      sizes.zeros = m.groups * (m.outputs / 8) * 4;
      break;
  }
  sizes.group_of_input = m.group_of_input == nullptr ? 0 : m.inputs * 4;
  return sizes;
}

Result<void> check_scales(const QuantisedMatrix& m) {
  const std::uint64_t scales = scale_count(m);
  for (std::uint64_t i = 0; i < scales; ++i) {
    if (!std::isfinite(scale_value(m, i))) {
      return Error(ErrorCode::bad_input, "scale " + std::to_string(i) + " is not a finite number");
    }
  }
  return {};
}

Result<void> check_groups(const QuantisedMatrix& m) {
  if (m.group_of_input != nullptr) {
    for (std::uint64_t i = 0; i < m.inputs; ++i) {
      // Read as unsigned, so that negative ones are too large, too.
      if (group_at(m, i) >= m.groups) {
        return Error(ErrorCode::bad_input,
                     "input " + std::to_string(i) + " is in group " +
                         std::to_string(static_cast<std::int32_t>(word_at(m.group_of_input, i))) +
                         " of " + std::to_string(m.groups));
      }
    }
  }
  return {};
}

}  // namespace librarian::gpu_exec
