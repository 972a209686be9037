#pragma once
/// From a tensor's rows, block by block, to its array: the rows that are kept, and their values as
/// they are kept.

#include <cstdint>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "activation_store/array_writer.h"
#include "base/error.h"
#include "gpu_exec/model_spec.h"
#include "ingest/array_plan.h"

namespace librarian::ingest {

/// One capture of a layer that runs. Not thread-safe. The order of calls is that of ArrayWriter.
class CaptureSink {
 public:
  /// Bytes a sink allocates beside its writers.
  static std::uint64_t memory_bytes(const PlannedArray& array, gpu_exec::DType dtype);

  /// @param array   Its layout states the rows of this part.
  /// @param scales  Where `array` is fp8, the writer of its scales.
  /// @param kept    Rows of the part that are kept; null: all. Outlives the sink.
  CaptureSink(const PlannedArray& array, gpu_exec::DType dtype,
              activation_store::ArrayWriter writer,
              std::optional<activation_store::ArrayWriter> scales,
              const std::vector<std::int64_t>* kept);

  const std::string& name() const { return name_; }

  /// @param rows       [n, width] of the compute type; unchanged.
  /// @param row_begin  Row of the part that they begin with: where the call before ended.
  /// @error as ArrayWriter::append()
  Result<void> append(std::span<const std::byte> rows, std::uint64_t row_begin,
                      const std::stop_token& stop);
  /// Rows that are chosen already, as they are stored. Not of a lossy array.
  /// @error as ArrayWriter::append()
  Result<void> append_stored(std::span<const std::byte> rows, const std::stop_token& stop) {
    return writer_.append(rows, stop);
  }
  /// Records of the arrays, the scales' behind. @error as ArrayWriter::finish()
  Result<std::vector<activation_store::ArrayRecord>> finish(const std::stop_token& stop);
  /// @error as ArrayWriter::publish()
  Result<void> publish();

 private:
  Result<void> append_kept(std::span<const std::byte> rows, const std::stop_token& stop);
  Result<void> append_rounded(std::span<const std::byte> rows, const std::stop_token& stop);
  Result<void> append_fp8(std::span<const std::byte> rows, const std::stop_token& stop);

  std::string name_;
  gpu_exec::DType dtype_;
  std::uint64_t width_;
  std::uint64_t row_bytes_;  // Of the compute type.
  std::uint64_t tile_rows_;  // As many are converted at a time.
  std::uint32_t keep_mantissa_bits_;
  activation_store::ArrayWriter writer_;
  std::optional<activation_store::ArrayWriter> scales_writer_;
  const std::vector<std::int64_t>* kept_;
  std::size_t next_kept_ = 0;
  std::vector<std::byte> tile_;  // Rounded rows, or codes.
  std::vector<float> wide_;
  std::vector<float> scales_;
};

}  // namespace librarian::ingest
