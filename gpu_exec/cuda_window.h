#pragma once
/// Parts of quantised matrices on their way to the device: which bytes a run of outputs needs, and
/// how the matrix reads there. Pure arithmetic. Private to gpu_exec.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "gpu_exec/cuda_runtime.h"
#include "gpu_exec/quantised.h"

namespace librarian::gpu_exec {

/// All that outputs [begin, end) of QuantisedMatrix are made of, and as few others as can be.
class QuantisedWindow {
 public:
  /// Of the memory that it needs, a multiple of 256.
  std::uint64_t bytes() const { return bytes_; }
  /// What brings it to `memory`, aligned to 4.
  std::vector<CudaCopy> copies_to(std::byte* memory) const;
  /// The matrix there. Outputs and inputs keep their numbers: pointers are to where the first ones
  /// would be.
  QuantisedMatrix matrix_at(const std::byte* memory) const;

 private:
  friend class WindowBuilder;
  /// A rectangle of one of the matrix's tables.
  struct Piece {
    const std::byte* QuantisedMatrix::*table;
    std::uint64_t place;               ///< In the memory.
    std::uint64_t begin, width, rows;  ///< Bytes [begin, begin + width) of so many rows
    std::uint64_t stride;              ///< that are so many bytes apart.
  };
  QuantisedMatrix matrix_;
  std::vector<Piece> pieces_;
  std::uint64_t bytes_ = 0;
};

/// @param rows  Outputs [begin, end), begin < end, are these of the matrix.
QuantisedWindow quantised_window(const QuantisedMatrix& matrix, const RowRuns& rows,
                                 std::uint64_t begin, std::uint64_t end);

/// The last output, at most `end`, for which a window from `begin` on takes at most `bytes_max`.
/// Ends the program if there is not even room for one output.
std::uint64_t window_end(const QuantisedMatrix& matrix, const RowRuns& rows, std::uint64_t begin,
                         std::uint64_t end, std::uint64_t bytes_max);

}  // namespace librarian::gpu_exec
