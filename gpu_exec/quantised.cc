#include "gpu_exec/quantised.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "gpu_exec/quantised_functors.h"

namespace librarian::gpu_exec {
namespace {

template <DType to>
struct Element {
  using Type = std::uint16_t;
};
template <>
struct Element<DType::f32> {
  using Type = float;
};

template <DType to>
typename Element<to>::Type rounded(float value) {
  if constexpr (to == DType::f32) {
    return value;
  } else if constexpr (to == DType::f16) {
    return f32_to_f16(value);
  } else {
    return f32_to_bf16(value);
  }
}

/// Decodes by tables: what each code becomes under one scale and zero point. A table pays where it
/// serves more elements than it has entries, which is what scales are shared for.
template <DType to>
class Decoder {
 public:
  using Type = typename Element<to>::Type;

  /// Of inputs [begin, end).
  Decoder(const QuantisedMatrix& matrix, std::uint64_t begin, std::uint64_t end)
      : m_(matrix), codes_(std::uint64_t{1} << code_bits(matrix)), begin_(begin), end_(end) {}

  void decode(std::uint64_t first, std::uint64_t rows, Type* out) {
    switch (m_.layout) {
      case CodeLayout::bits_by_input:
      case CodeLayout::awq:
        return decode_by_input(first, rows, out);
      case CodeLayout::table_flat:
        return decode_flat(first, rows, out);
      default:
        return decode_by_row(first, rows, out);
    }
  }

 private:
  void fill(Type* table, std::uint64_t o, std::uint64_t i, std::uint64_t group) const {
    const float scale = scale_at(m_, o, i, group);
    const std::int32_t zero = zero_at(m_, o, group);
    for (std::uint64_t code = 0; code < codes_; ++code) {
      table[code] = rounded<to>(decoded(m_, static_cast<std::uint32_t>(code), scale, zero));
    }
  }
  /// tables_[group] for output `o`.
  void fill_all_groups(std::uint64_t o) {
    tables_.resize(m_.groups * codes_);
    for (std::uint64_t group = 0; group < m_.groups; ++group) {
      fill(tables_.data() + group * codes_, o, 0, group);
    }
  }

  /// Inputs [begin, end) of one row, with one table.
  /// @param out  Where input `begin` goes.
  void decode_run(const Type* table, std::uint64_t o, std::uint64_t begin, std::uint64_t end,
                  Type* out) const {
    if (m_.layout == CodeLayout::f8_e4m3 || m_.layout == CodeLayout::int8) {
      const std::byte* codes = m_.codes + o * m_.inputs;
      for (std::uint64_t i = begin; i < end; ++i) {
        *out++ = table[static_cast<std::uint8_t>(codes[i])];
      }
      return;
    }
    const bool nibbles = m_.layout == CodeLayout::e2m1_by_row ||
                         (m_.layout == CodeLayout::bits_by_row && m_.bits == 4);
    std::uint64_t i = begin;
    if (nibbles && begin % 2 == 0) {
      // Words are little-endian, so their nibbles are those of bytes in order.
      const std::uint64_t row_bytes =
          m_.layout == CodeLayout::e2m1_by_row ? m_.inputs / 2 : words_of(m_.inputs, 4) * 4;
      const std::byte* codes = m_.codes + o * row_bytes;
      for (; i + 2 <= end; i += 2) {
        const auto pair = static_cast<std::uint8_t>(codes[i / 2]);
        *out++ = table[pair & 0xFU];
        *out++ = table[pair >> 4U];
      }
    }
    for (; i < end; ++i) {
      *out++ = table[code_at(m_, o, i)];
    }
  }

  void decode_by_row(std::uint64_t first, std::uint64_t rows, Type* out) {
    const std::uint64_t stride = end_ - begin_;
    const std::uint64_t last = first + rows;
    for (std::uint64_t row = first; row < last;) {
      // Rows of one scale, which go through its tables together.
      const std::uint64_t scale_end = (row / m_.scale_outputs + 1) * m_.scale_outputs;
      const std::uint64_t run_end =
          m_.zero_layout == ZeroLayout::none ? std::min(last, scale_end) : row + 1;
      Type* const to_run = out + (row - first) * stride;
      if (m_.group_of_input != nullptr) {
        fill_all_groups(row);
        for (std::uint64_t o = row; o < run_end; ++o) {
          for (std::uint64_t i = begin_; i < end_; ++i) {
            to_run[(o - row) * stride + i - begin_] =
                tables_[group_at(m_, i) * codes_ + code_at(m_, o, i)];
          }
        }
      } else {
        tables_.resize(codes_);
        for (std::uint64_t i = begin_; i < end_;) {
          const std::uint64_t group = i / m_.scale_inputs;
          const std::uint64_t group_end = std::min(end_, (group + 1) * m_.scale_inputs);
          fill(tables_.data(), row, i, group);
          for (std::uint64_t o = row; o < run_end; ++o) {
            decode_run(tables_.data(), o, i, group_end, to_run + (o - row) * stride + i - begin_);
          }
          i = group_end;
        }
      }
      row = run_end;
    }
  }

  void decode_flat(std::uint64_t first, std::uint64_t rows, Type* out) {
    tables_.resize(codes_);
    for (std::uint64_t o = first; o < first + rows; ++o) {
      for (std::uint64_t i = begin_; i < end_;) {
        const std::uint64_t element = o * m_.inputs + i;
        const std::uint64_t left = m_.scale_inputs - element % m_.scale_inputs;
        const std::uint64_t run_end = std::min(end_, i + left);
        fill(tables_.data(), o, i, 0);
        decode_run(tables_.data(), o, i, run_end, out);
        out += run_end - i;
        i = run_end;
      }
    }
  }

  /// Words hold inputs of one output (GPTQ) or outputs of one input (AWQ), outputs side by side: so
  /// input by input, with a table for each row.
  void decode_by_input(std::uint64_t first, std::uint64_t rows, Type* out) {
    const std::uint64_t stride = end_ - begin_;
    const bool all = m_.group_of_input != nullptr;
    tables_.resize((all ? m_.groups : 1) * rows * codes_);
    const auto fill_group = [&](std::uint64_t group, std::uint64_t place) {
      for (std::uint64_t row = 0; row < rows; ++row) {
        fill(tables_.data() + (place * rows + row) * codes_, first + row, 0, group);
      }
    };
    for (std::uint64_t group = 0; all && group < m_.groups; ++group) {
      fill_group(group, group);
    }
    std::uint64_t current = ~std::uint64_t{0};
    for (std::uint64_t i = begin_; i < end_; ++i) {
      const std::uint64_t group = group_at(m_, i);
      if (!all && group != current) {
        fill_group(group, 0);
        current = group;
      }
      const Type* tables = tables_.data() + (all ? group : 0) * rows * codes_;
      for (std::uint64_t row = 0; row < rows; ++row) {
        out[row * stride + i - begin_] = tables[row * codes_ + code_at(m_, first + row, i)];
      }
    }
  }

  const QuantisedMatrix& m_;
  const std::uint64_t codes_;  // How many a table has.
  const std::uint64_t begin_, end_;
  std::vector<Type> tables_;
};

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

void dequantise(const QuantisedMatrix& matrix, std::uint64_t first, std::uint64_t rows,
                std::uint64_t begin, std::uint64_t end, DType to, std::byte* out) {
  LIB_CHECK(first + rows <= matrix.outputs && begin <= end && end <= matrix.inputs);
  switch (to) {
    case DType::bf16:
      return Decoder<DType::bf16>(matrix, begin, end)
          .decode(first, rows, reinterpret_cast<std::uint16_t*>(out));
    case DType::f16:
      return Decoder<DType::f16>(matrix, begin, end)
          .decode(first, rows, reinterpret_cast<std::uint16_t*>(out));
    case DType::f32:
      return Decoder<DType::f32>(matrix, begin, end)
          .decode(first, rows, reinterpret_cast<float*>(out));
  }
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
