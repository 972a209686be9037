#include "gpu_exec/cuda_window.h"

#include <algorithm>

#include "gpu_exec/quantised_functors.h"

namespace librarian::gpu_exec {
namespace {

constexpr std::uint64_t kPieceAlignment = 256;
/// Outputs whose codes and zero points end with a word, whatever their bits.
constexpr std::uint64_t kWordOutputs = 32;

bool by_input(const QuantisedMatrix& m) {
  return m.layout == CodeLayout::bits_by_input || m.layout == CodeLayout::awq ||
         m.zero_layout == ZeroLayout::bits_in_row || m.zero_layout == ZeroLayout::awq;
}

}  // namespace

/// Of outputs [lo, hi) of the matrix.
class WindowBuilder {
 public:
  WindowBuilder(const QuantisedMatrix& matrix, std::uint64_t lo, std::uint64_t hi)
      : m_(matrix), lo_(lo), hi_(hi) {
    window_.matrix_ = matrix;
    window_.matrix_.outputs = hi - lo;
  }

  QuantisedWindow build() {
    add_codes();
    add_scales();
    add_zeros();
    if (m_.group_of_input != nullptr) {
      run(&QuantisedMatrix::group_of_input, 0, m_.inputs * 4);
    }
    if (m_.layout == CodeLayout::table_flat) {
      run(&QuantisedMatrix::table, 0, std::uint64_t{16} * 4);
    }
    return window_;
  }

 private:
  /// Bytes [begin, end) of rows `stride` apart.
  void rectangle(const std::byte* QuantisedMatrix::*table, std::uint64_t stride,
                 std::uint64_t begin, std::uint64_t end, std::uint64_t rows) {
    window_.pieces_.push_back({table, window_.bytes_, begin, end - begin, rows, stride});
    window_.bytes_ +=
        ((end - begin) * rows + kPieceAlignment - 1) / kPieceAlignment * kPieceAlignment;
  }
  void run(const std::byte* QuantisedMatrix::*table, std::uint64_t begin, std::uint64_t end) {
    rectangle(table, end - begin, begin, end, 1);
  }

  void add_codes() {
    constexpr auto kCodes = &QuantisedMatrix::codes;
    switch (m_.layout) {
      case CodeLayout::f8_e4m3:
      case CodeLayout::int8:
        return run(kCodes, lo_ * m_.inputs, hi_ * m_.inputs);
      case CodeLayout::bits_by_row: {
        const std::uint64_t row_bytes = words_of(m_.inputs, m_.bits) * 4;
        return run(kCodes, lo_ * row_bytes, hi_ * row_bytes);
      }
      case CodeLayout::e2m1_by_row:
        return run(kCodes, lo_ * (m_.inputs / 2), hi_ * (m_.inputs / 2));
      case CodeLayout::bits_by_input:
        return rectangle(kCodes, m_.outputs * 4, lo_ * 4, hi_ * 4, words_of(m_.inputs, m_.bits));
      case CodeLayout::awq:
        return rectangle(kCodes, m_.outputs / 8 * 4, lo_ / 8 * 4, hi_ / 8 * 4, m_.inputs);
      case CodeLayout::table_flat:
        return run(kCodes, lo_ * m_.inputs / 2, (hi_ * m_.inputs + 1) / 2);
    }
  }

  void add_scales() {
    const std::uint64_t bytes = scale_bytes(m_.scale_type);
    if (m_.scale_by_input) {
      LIB_CHECK(m_.scale_type != ScaleType::table8);
      return rectangle(&QuantisedMatrix::scales, m_.outputs * bytes, lo_ * bytes, hi_ * bytes,
                       m_.groups);
    }
    std::uint64_t first = lo_ / m_.scale_outputs * m_.groups;
    std::uint64_t last = scale_rows_end() * m_.groups;
    if (m_.layout == CodeLayout::table_flat) {
      first = lo_ * m_.inputs / m_.scale_inputs;
      last = (hi_ * m_.inputs - 1) / m_.scale_inputs + 1;
    }
    run(&QuantisedMatrix::scales, first * bytes, last * bytes);
    if (m_.scale_type == ScaleType::table8) {
      run(&QuantisedMatrix::scale_table, 0, std::uint64_t{256} * 4);
      run(&QuantisedMatrix::scale_of_256, first / 256 * 4, ((last - 1) / 256 + 1) * 4);
    }
  }
  std::uint64_t scale_rows_end() const { return (hi_ - 1) / m_.scale_outputs + 1; }

  void add_zeros() {
    constexpr auto kZeros = &QuantisedMatrix::zeros;
    const std::uint64_t first_word = lo_ * m_.bits / 32;
    switch (m_.zero_layout) {
      case ZeroLayout::none:
        return;
      case ZeroLayout::int8:
        return run(kZeros, lo_ / m_.scale_outputs * m_.groups, scale_rows_end() * m_.groups);
      case ZeroLayout::bits_by_output:
        return run(kZeros, first_word * m_.groups * 4, words_of(hi_, m_.bits) * m_.groups * 4);
      case ZeroLayout::bits_in_row:
        return rectangle(kZeros, words_of(m_.outputs, m_.bits) * 4, first_word * 4,
                         words_of(hi_, m_.bits) * 4, m_.groups);
      case ZeroLayout::awq:
        return rectangle(kZeros, m_.outputs / 8 * 4, lo_ / 8 * 4, hi_ / 8 * 4, m_.groups);
    }
  }

  const QuantisedMatrix& m_;
  const std::uint64_t lo_, hi_;
  QuantisedWindow window_;
};

std::vector<CudaCopy> QuantisedWindow::copies_to(std::byte* memory) const {
  std::vector<CudaCopy> copies;
  for (const Piece& piece : pieces_) {
    copies.push_back({matrix_.*piece.table + piece.begin, memory + piece.place, piece.width,
                      piece.rows, piece.stride, piece.width});
  }
  return copies;
}

QuantisedMatrix QuantisedWindow::matrix_at(const std::byte* memory) const {
  QuantisedMatrix there = matrix_;
  for (const Piece& piece : pieces_) {
    there.*piece.table = memory + piece.place - piece.begin;
  }
  return there;
}

QuantisedWindow quantised_window(const QuantisedMatrix& matrix, const RowRuns& rows,
                                 std::uint64_t begin, std::uint64_t end) {
  std::uint64_t lo = rows.at(begin);
  std::uint64_t hi = rows.at(end - 1) + 1;
  LIB_CHECK(begin < end && hi <= matrix.outputs);
  if (by_input(matrix)) {
    lo = lo / kWordOutputs * kWordOutputs;
    hi = std::min(matrix.outputs, (hi + kWordOutputs - 1) / kWordOutputs * kWordOutputs);
  }
  return WindowBuilder(matrix, lo, hi).build();
}

std::uint64_t window_end(const QuantisedMatrix& matrix, const RowRuns& rows, std::uint64_t begin,
                         std::uint64_t end, std::uint64_t bytes_max) {
  while (true) {
    const std::uint64_t bytes = quantised_window(matrix, rows, begin, end).bytes();
    if (bytes <= bytes_max) {
      return end;
    }
    LIB_CHECK(end - begin > 1);
    // In proportion, and whole words where there are many.
    const std::uint64_t fitting = std::max<std::uint64_t>(1, (end - begin) * bytes_max / bytes);
    end = begin + (fitting > kWordOutputs ? fitting / kWordOutputs * kWordOutputs : fitting);
  }
}

}  // namespace librarian::gpu_exec
