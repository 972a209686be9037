#include "ingest/capture_sink.h"

#include <algorithm>

#include "activation_store/lossy.h"
#include "gpu_exec/layer_executor.h"
#include "ingest/stored_type.h"

namespace librarian::ingest {
namespace {

using activation_store::ArrayRecord;
using activation_store::ArrayWriter;
using activation_store::StoredType;

// In the second-level cache together with what they are made of.
constexpr std::uint64_t kTileBytes = 256U << 10U;

std::uint64_t tile_rows(std::uint64_t row_bytes) {
  return std::max<std::uint64_t>(1, kTileBytes / row_bytes);
}

}  // namespace

std::uint64_t CaptureSink::memory_bytes(const PlannedArray& array, gpu_exec::DType dtype) {
  const std::uint64_t width = array.layout.width;
  const std::uint64_t rows = tile_rows(width * gpu_exec::dtype_bytes(dtype));
  if (array.layout.type == StoredType::f8_e4m3) {
    return rows * (width * (1 + sizeof(float)) + sizeof(float));
  }
  return array.attributes.keep_mantissa_bits != 0 ? rows * width * gpu_exec::dtype_bytes(dtype) : 0;
}

CaptureSink::CaptureSink(const PlannedArray& array, gpu_exec::DType dtype, ArrayWriter writer,
                         std::optional<ArrayWriter> scales, const std::vector<std::int64_t>* kept)
    : name_(array.name),
      dtype_(dtype),
      width_(array.layout.width),
      row_bytes_(width_ * gpu_exec::dtype_bytes(dtype)),
      tile_rows_(tile_rows(row_bytes_)),
      keep_mantissa_bits_(array.attributes.keep_mantissa_bits),
      writer_(std::move(writer)),
      scales_writer_(std::move(scales)),
      kept_(kept) {
  if (scales_writer_) {
    tile_.resize(tile_rows_ * width_);
    wide_.resize(tile_rows_ * width_);
    scales_.resize(tile_rows_);
  } else if (keep_mantissa_bits_ != 0) {
    tile_.resize(tile_rows_ * row_bytes_);
  }
}

Result<void> CaptureSink::append(std::span<const std::byte> rows, std::uint64_t row_begin,
                                 const std::stop_token& stop) {
  if (kept_ == nullptr) {
    return append_kept(rows, stop);
  }
  const std::uint64_t row_end = row_begin + rows.size() / row_bytes_;
  const auto kept = [&](std::size_t i) { return static_cast<std::uint64_t>((*kept_)[i]); };
  while (next_kept_ < kept_->size() && kept(next_kept_) < row_end) {
    // Rows that follow each other go together: masks keep whole turns of a conversation.
    const std::uint64_t first = kept(next_kept_);
    LIB_CHECK(first >= row_begin);
    std::uint64_t count = 0;
    while (next_kept_ < kept_->size() && kept(next_kept_) == first + count &&
           first + count < row_end) {
      ++next_kept_;
      ++count;
    }
    LIB_TRY_VOID(
        append_kept(rows.subspan((first - row_begin) * row_bytes_, count * row_bytes_), stop));
  }
  return {};
}

Result<void> CaptureSink::append_kept(std::span<const std::byte> rows,
                                      const std::stop_token& stop) {
  if (!scales_writer_ && keep_mantissa_bits_ == 0) {
    return writer_.append(rows, stop);
  }
  while (!rows.empty()) {
    const auto some = rows.first(std::min<std::uint64_t>(rows.size(), tile_rows_ * row_bytes_));
    LIB_TRY_VOID(scales_writer_ ? append_fp8(some, stop) : append_rounded(some, stop));
    rows = rows.subspan(some.size());
  }
  return {};
}

Result<void> CaptureSink::append_rounded(std::span<const std::byte> rows,
                                         const std::stop_token& stop) {
  const std::span<std::byte> tile = std::span(tile_).first(rows.size());
  std::copy(rows.begin(), rows.end(), tile.begin());
  activation_store::round_mantissas(stored_type(dtype_), keep_mantissa_bits_, tile);
  return writer_.append(tile, stop);
}

Result<void> CaptureSink::append_fp8(std::span<const std::byte> rows, const std::stop_token& stop) {
  const std::uint64_t count = rows.size() / row_bytes_;
  const std::span<float> wide = std::span(wide_).first(count * width_);
  const std::span<std::byte> codes = std::span(tile_).first(count * width_);
  const std::span<float> scales = std::span(scales_).first(count);
  gpu_exec::convert_elements(dtype_, rows, gpu_exec::DType::f32, std::as_writable_bytes(wide));
  activation_store::encode_fp8_rows(wide, width_, codes, scales);
  LIB_TRY_VOID(writer_.append(codes, stop));
  return scales_writer_->append(std::as_bytes(scales), stop);
}

Result<std::vector<ArrayRecord>> CaptureSink::finish(const std::stop_token& stop) {
  std::vector<ArrayRecord> records;
  LIB_TRY(ArrayRecord record, writer_.finish(stop));
  records.push_back(std::move(record));
  if (scales_writer_) {
    LIB_TRY(ArrayRecord scales, scales_writer_->finish(stop));
    records.push_back(std::move(scales));
  }
  return records;
}

Result<void> CaptureSink::publish() {
  LIB_TRY_VOID(writer_.publish());
  return scales_writer_ ? scales_writer_->publish() : Result<void>();
}

}  // namespace librarian::ingest
