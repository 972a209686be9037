// From codes to numbers, many at a time: the bits are quantised_element()'s.
#include <algorithm>
#include <array>
#include <cstddef>
#include <type_traits>
#include <vector>

#include "gpu_exec/quantised.h"
#include "gpu_exec/quantised_functors.h"

namespace librarian::gpu_exec {
namespace {

constexpr std::uint64_t kCodesMax = 256;

template <DType type>
using Bits = std::conditional_t<type == DType::f32, float, std::uint16_t>;

template <DType to>
Bits<to> rounded(float value) {
  if constexpr (to == DType::f32) {
    return value;
  } else if constexpr (to == DType::f16) {
    return f32_to_f16(value);
  } else {
    return f32_to_bf16(value);
  }
}

/// A choice that compilers do not make a branch of, which would keep them from making vectors.
std::uint32_t chosen(bool first, std::uint32_t a, std::uint32_t b) {
  const std::uint32_t mask = 0U - static_cast<std::uint32_t>(first);
  return (a & mask) | (b & ~mask);
}

/// f16_to_f32(f32_to_f16(value)) without branches.
float rounded_to_f16(float value) {
  constexpr std::uint32_t kDropped = 0x1FFF;  // Bits of a significand that f16 has not.
  constexpr std::uint32_t kLeastNormal = 0x38800000;
  constexpr std::uint32_t kOverflow = 0x477FF000;  // 65520
  constexpr std::uint32_t kInfinity = 0x7F800000;
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  const std::uint32_t normal =
      (magnitude + (kDropped >> 1U) + ((magnitude >> 13U) & 1U)) & ~kDropped;
  // Adding 0.5 leaves multiples of 2^-24, rounded by the addition itself.
  const std::uint32_t subnormal = bits_of((float_of(magnitude) + 0.5F) - 0.5F);
  const std::uint32_t nan = (magnitude | 0x400000U) & ~kDropped;
  std::uint32_t result = chosen(magnitude >= kLeastNormal, normal, subnormal);
  result = chosen(magnitude >= kOverflow, kInfinity, result);
  result = chosen(magnitude > kInfinity, nan, result);
  return float_of((bits & 0x80000000U) | result);
}

/// As decoded() rounds: to what the format's library gives, and that to what is wanted.
template <DType result, DType to>
Bits<to> finished(float value) {
  if constexpr (result == DType::f32 || result == to) {
    return rounded<to>(value);
  } else if constexpr (result == DType::f16) {
    return rounded<to>(rounded_to_f16(value));
  } else {
    return rounded<to>(bf16_to_f32(f32_to_bf16(value)));
  }
}

/// How a code's number becomes an element.
struct Affine {
  float zero, scale;
};

/// Codes become numbers by a table, and numbers elements by a multiplication; or codes become
/// elements by a table of their own, where one serves more elements than it has entries.
template <DType to>
class Decoder {
 public:
  using Out = Bits<to>;

  /// Of inputs [begin, end).
  Decoder(const QuantisedMatrix& matrix, std::uint64_t begin, std::uint64_t end)
      : m_(matrix), begin_(begin), end_(end), numbers_(std::size_t{1} << code_bits(matrix)) {
    for (std::size_t code = 0; code < numbers_.size(); ++code) {
      numbers_[code] = code_number(m_, static_cast<std::uint32_t>(code));
    }
  }

  /// @param out  [rows, end - begin]
  void decode(std::uint64_t first, std::uint64_t rows, Out* out) {
    if (m_.group_of_input != nullptr) {
      return decode_in_any_order(first, rows, out);
    }
    switch (m_.layout) {
      case CodeLayout::bits_by_input:
      case CodeLayout::awq:
        return decode_by_group(first, rows, out);
      case CodeLayout::table_flat:
        return decode_flat(first, rows, out);
      default:
        return decode_by_row(first, rows, out);
    }
  }

 private:
  Affine affine(std::uint64_t o, std::uint64_t i, std::uint64_t group) const {
    return {static_cast<float>(zero_at(m_, o, group)), scale_at(m_, o, i, group)};
  }

  /// out[i] = element of number numbers[i] with affine_of(i).
  template <typename AffineOf>
  void finish(const float* numbers, std::uint64_t count, const AffineOf& affine_of,
              Out* out) const {
    const float after = m_.after;
    const auto run = [&](auto result) {
      for (std::uint64_t i = 0; i < count; ++i) {
        const Affine affine = affine_of(i);
        out[i] = finished<decltype(result)::value, to>((numbers[i] - affine.zero) * affine.scale *
                                                       after);
      }
    };
    switch (m_.result) {
      case DType::f32:
        return run(std::integral_constant<DType, DType::f32>());
      case DType::f16:
        return run(std::integral_constant<DType, DType::f16>());
      case DType::bf16:
        return run(std::integral_constant<DType, DType::bf16>());
    }
  }

  /// Inputs of one group, and what turns their codes into elements.
  struct Run {
    std::uint64_t begin, end;
    Affine affine;
    bool has_table;
  };

  /// The runs of rows [o, o_end), which have one scale and zero point, within inputs [begin, end).
  void prepare(std::uint64_t o, std::uint64_t o_end, std::uint64_t begin, std::uint64_t end) {
    runs_.clear();
    tables_.clear();
    for (std::uint64_t i = begin; i < end;) {
      const std::uint64_t group = i / m_.scale_inputs;
      const std::uint64_t group_end = std::min(end, (group + 1) * m_.scale_inputs);
      add_run(o, o_end, i, group_end, group);
      i = group_end;
    }
  }

  void add_run(std::uint64_t o, std::uint64_t o_end, std::uint64_t begin, std::uint64_t end,
               std::uint64_t group) {
    const Affine affine = this->affine(o, begin, group);
    const bool has_table = (o_end - o) * (end - begin) > numbers_.size();
    runs_.push_back({begin, end, affine, has_table});
    if (has_table) {
      tables_.resize(tables_.size() + numbers_.size());
      finish(
          numbers_.data(), numbers_.size(), [affine](std::uint64_t /*i*/) { return affine; },
          &*(tables_.end() - static_cast<std::ptrdiff_t>(numbers_.size())));
    }
  }

  /// All runs of a row.
  /// @param out  Where the first run's first input goes.
  void decode_runs(std::uint64_t o, Out* out) const {
    const Out* table = tables_.data();
    std::array<float, kCodesMax> numbers;  // More elements would have a table.
    for (const Run& run : runs_) {
      if (run.has_table) {
        decode_run(table, o, run.begin, run.end, out);
        table += numbers_.size();
        out += run.end - run.begin;
        continue;
      }
      decode_run(numbers_.data(), o, run.begin, run.end, numbers.data());
      finish(
          numbers.data(), run.end - run.begin, [&run](std::uint64_t /*i*/) { return run.affine; },
          out);
      out += run.end - run.begin;
    }
  }

  void decode_by_row(std::uint64_t first, std::uint64_t rows, Out* out) {
    const std::uint64_t last = first + rows;
    for (std::uint64_t row = first; row < last;) {
      // Rows of one scale go through its tables together.
      const std::uint64_t scale_end = (row / m_.scale_outputs + 1) * m_.scale_outputs;
      const std::uint64_t run_end =
          m_.zero_layout == ZeroLayout::none ? std::min(last, scale_end) : row + 1;
      prepare(row, run_end, begin_, end_);
      for (; row < run_end; ++row, out += end_ - begin_) {
        decode_runs(row, out);
      }
    }
  }

  /// Words of different rows lie side by side: what a group's have in cache serves all rows.
  void decode_by_group(std::uint64_t first, std::uint64_t rows, Out* out) {
    for (std::uint64_t i = begin_; i < end_;) {
      const std::uint64_t group_end = std::min(end_, (i / m_.scale_inputs + 1) * m_.scale_inputs);
      for (std::uint64_t row = 0; row < rows; ++row) {
        prepare(first + row, first + row + 1, i, group_end);
        decode_runs(first + row, out + row * (end_ - begin_) + (i - begin_));
      }
      i = group_end;
    }
  }

  /// Scales are of elements one after the other, across rows.
  void decode_flat(std::uint64_t first, std::uint64_t rows, Out* out) {
    for (std::uint64_t o = first; o < first + rows; ++o, out += end_ - begin_) {
      runs_.clear();
      tables_.clear();
      for (std::uint64_t i = begin_; i < end_;) {
        const std::uint64_t left = m_.scale_inputs - (o * m_.inputs + i) % m_.scale_inputs;
        const std::uint64_t run_end = std::min(end_, i + left);
        add_run(o, o + 1, i, run_end, 0);
        i = run_end;
      }
      decode_runs(o, out);
    }
  }

  /// Each input has a group of its own choice (act-order). Few inputs of all rows at a time, for
  /// what words of different rows share.
  void decode_in_any_order(std::uint64_t first, std::uint64_t rows, Out* out) {
    constexpr std::uint64_t kInputs = 64;
    std::vector<Affine> affines(rows * m_.groups);
    for (std::uint64_t row = 0; row < rows; ++row) {
      for (std::uint64_t group = 0; group < m_.groups; ++group) {
        affines[row * m_.groups + group] = affine(first + row, 0, group);
      }
    }
    std::array<float, kInputs> numbers;
    std::array<float, kInputs> zeros;  // Side by side, for vectors.
    std::array<float, kInputs> scales;
    for (std::uint64_t i = begin_; i < end_; i += kInputs) {
      const std::uint64_t chunk_end = std::min(end_, i + kInputs);
      for (std::uint64_t row = 0; row < rows; ++row) {
        const Affine* const of_row = affines.data() + row * m_.groups;
        for (std::uint64_t k = 0; k < chunk_end - i; ++k) {
          const Affine& affine = of_row[group_at(m_, i + k)];
          zeros[k] = affine.zero;
          scales[k] = affine.scale;
        }
        decode_run(numbers_.data(), first + row, i, chunk_end, numbers.data());
        finish(
            numbers.data(), chunk_end - i,
            [&](std::uint64_t k) {
              return Affine{zeros[k], scales[k]};
            },
            out + row * (end_ - begin_) + (i - begin_));
      }
    }
  }

  /// out[i - begin] = table[code of (o, i)] for inputs [begin, end).
  template <typename T>
  void decode_run(const T* table, std::uint64_t o, std::uint64_t begin, std::uint64_t end,
                  T* out) const {
    // Words are little-endian, so what they hold of one row are its bytes or nibbles in order.
    switch (m_.layout) {
      case CodeLayout::f8_e4m3:
      case CodeLayout::int8:
        return decode_bytes(table, m_.codes + o * m_.inputs, begin, end, out);
      case CodeLayout::bits_by_row: {
        const std::byte* const row = m_.codes + o * words_of(m_.inputs, m_.bits) * 4;
        if (m_.bits == 8) {
          return decode_bytes(table, row, begin, end, out);
        }
        if (m_.bits == 4) {
          return decode_nibbles(table, row, begin, end, 0, out);
        }
        break;
      }
      case CodeLayout::e2m1_by_row:
        return decode_nibbles(table, m_.codes + o * (m_.inputs / 2), begin, end, 0, out);
      case CodeLayout::table_flat:
        return decode_nibbles(table, m_.codes, o * m_.inputs + begin, o * m_.inputs + end, 4, out);
      case CodeLayout::bits_by_input:
        if (m_.bits == 4) {
          return decode_column<4>(table, o, begin, end, out);
        }
        if (m_.bits == 8) {
          return decode_column<8>(table, o, begin, end, out);
        }
        break;
      case CodeLayout::awq:
        for (std::uint64_t i = begin; i < end; ++i) {
          *out++ = table[awq_nibble(word_at(m_.codes, i * (m_.outputs / 8) + o / 8), o)];
        }
        return;
    }
    for (std::uint64_t i = begin; i < end; ++i) {
      *out++ = table[code_at(m_, o, i)];
    }
  }

  template <typename T>
  static void decode_bytes(const T* table, const std::byte* codes, std::uint64_t begin,
                           std::uint64_t end, T* out) {
    for (std::uint64_t i = begin; i < end; ++i) {
      *out++ = table[static_cast<std::uint8_t>(codes[i])];
    }
  }

  /// @param first_shift  Where in a byte its first nibble begins: bit 0 or 4.
  template <typename T>
  static void decode_nibbles(const T* table, const std::byte* codes, std::uint64_t begin,
                             std::uint64_t end, std::uint32_t first_shift, T* out) {
    const auto nibble = [&](std::uint64_t i, std::uint32_t shift) {
      return static_cast<std::uint32_t>(codes[i / 2]) >> shift & 0xFU;
    };
    std::uint64_t i = begin;
    if (i < end && i % 2 == 1) {
      *out++ = table[nibble(i++, 4 - first_shift)];
    }
    for (; i + 2 <= end; i += 2) {
      *out++ = table[nibble(i, first_shift)];
      *out++ = table[nibble(i, 4 - first_shift)];
    }
    if (i < end) {
      *out = table[nibble(i, first_shift)];
    }
  }

  /// A word holds neighbouring inputs of one output.
  template <std::uint32_t bits, typename T>
  void decode_column(const T* table, std::uint64_t o, std::uint64_t begin, std::uint64_t end,
                     T* out) const {
    constexpr std::uint64_t kCodes = 32 / bits;
    for (std::uint64_t i = begin; i < end;) {
      const std::uint64_t word_end = std::min(end, (i / kCodes + 1) * kCodes);
      std::uint32_t word = word_at(m_.codes, i / kCodes * m_.outputs + o) >> (i % kCodes * bits);
      for (; i < word_end; ++i, word >>= bits) {
        *out++ = table[word & ((1U << bits) - 1)];
      }
    }
  }

  const QuantisedMatrix& m_;
  const std::uint64_t begin_, end_;
  std::vector<float> numbers_;  // By code.
  std::vector<Run> runs_;
  std::vector<Out> tables_;  // Of the runs that have one, in order.
};

}  // namespace

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

}  // namespace librarian::gpu_exec
