#include <algorithm>
#include <array>
#include <cstring>

#include "base/digest.h"
#include "ingest/residual_state.h"

namespace librarian::ingest {
namespace {

constexpr std::uint32_t kMagic = 0x3154534C;  // "LST1"
constexpr std::uint64_t kFooterBytes = 3 * 8 + 4 + 4;

std::uint64_t window_count(std::uint64_t rows, std::uint64_t window_rows) {
  return (rows + window_rows - 1) / window_rows;
}

std::span<const std::byte> bytes_of(const std::vector<std::uint32_t>& values) {
  return std::as_bytes(std::span(values));
}

/// The footer's three numbers, as bytes.
std::array<std::uint64_t, 3> shape_of(std::uint64_t rows, std::uint64_t row_bytes,
                                      std::uint64_t window_rows) {
  return {rows, row_bytes, window_rows};
}

std::uint32_t footer_crc(const std::vector<std::uint32_t>& crcs,
                         const std::array<std::uint64_t, 3>& shape) {
  return crc32c(std::as_bytes(std::span(shape)), crc32c(bytes_of(crcs)));
}

}  // namespace

std::uint64_t StateFileWriter::file_bytes(std::uint64_t rows, std::uint64_t row_bytes,
                                          std::uint64_t window_rows) {
  return rows * row_bytes + window_count(rows, window_rows) * 4 + kFooterBytes;
}

Result<StateFileWriter> StateFileWriter::create(FileSystem& files, const std::string& path,
                                                std::uint64_t rows, std::uint64_t row_bytes,
                                                std::uint64_t window_rows) {
  StateFileWriter writer;
  LIB_TRY(writer.file_, files.create_sparse(path));
  writer.path_ = path;
  writer.rows_ = rows;
  writer.row_bytes_ = row_bytes;
  writer.window_rows_ = window_rows;
  return writer;
}

Result<void> StateFileWriter::write_rows(std::uint64_t begin, std::span<const std::byte> bytes) {
  LIB_TRY_VOID(file_->write_at(begin * row_bytes_, bytes));
  in_order_ = in_order_ && begin == next_row_;
  if (!in_order_) {
    return {};
  }
  while (!bytes.empty()) {
    const std::uint64_t window_end = (next_row_ / window_rows_ + 1) * window_rows_;
    const std::uint64_t rows = std::min(window_end - next_row_, bytes.size() / row_bytes_);
    window_crc_ = crc32c(bytes.first(rows * row_bytes_), window_crc_);
    bytes = bytes.subspan(rows * row_bytes_);
    next_row_ += rows;
    if (next_row_ == window_end || next_row_ == rows_) {
      crcs_.push_back(window_crc_);
      window_crc_ = 0;
    }
  }
  return {};
}

Result<void> StateFileWriter::finish() {
  if (!in_order_) {
    crcs_.clear();
    std::vector<std::byte> window(std::min(window_rows_, rows_) * row_bytes_);
    for (std::uint64_t row = 0; row < rows_; row += window_rows_) {
      const std::span<std::byte> part =
          std::span(window).first(std::min(window_rows_, rows_ - row) * row_bytes_);
      LIB_TRY_VOID(read_exactly(*file_, path_, row * row_bytes_, part));
      crcs_.push_back(crc32c(part));
    }
  }
  LIB_CHECK(crcs_.size() == window_count(rows_, window_rows_));
  const std::array<std::uint64_t, 3> shape = shape_of(rows_, row_bytes_, window_rows_);
  const std::uint32_t crc = footer_crc(crcs_, shape);
  std::string tail(reinterpret_cast<const char*>(crcs_.data()), crcs_.size() * 4);
  tail.append(reinterpret_cast<const char*>(shape.data()), sizeof shape);
  tail.append(reinterpret_cast<const char*>(&crc), 4);
  tail.append(reinterpret_cast<const char*>(&kMagic), 4);
  LIB_TRY_VOID(file_->write_at(rows_ * row_bytes_, std::as_bytes(std::span(tail))));
  return file_->sync_data();
}

Result<StateFileReader> StateFileReader::open(FileSystem& files, const std::string& path,
                                              std::uint64_t rows, std::uint64_t row_bytes) {
  StateFileReader reader;
  reader.path_ = path;
  const auto damaged = [&](const std::string& reason) {
    return Error(ErrorCode::corrupt, path + ": damaged state file: " + reason +
                                         "; remove this part's directory to compute it again");
  };
  auto file = files.open(path);
  if (!file) {
    return file.error().code() == ErrorCode::not_found
               ? damaged("it is missing (had this job another --scratch?)")
               : file.error();
  }
  reader.file_ = *std::move(file);
  LIB_TRY(const std::uint64_t size, reader.file_->size());
  std::array<std::byte, kFooterBytes> footer{};
  if (size < kFooterBytes) {
    return damaged("only " + std::to_string(size) + " bytes long");
  }
  LIB_TRY_VOID(read_exactly(*reader.file_, path, size - kFooterBytes, footer));
  std::array<std::uint64_t, 3> shape{};
  std::uint32_t crc = 0;
  std::uint32_t magic = 0;
  std::memcpy(shape.data(), footer.data(), sizeof shape);
  std::memcpy(&crc, footer.data() + sizeof shape, 4);
  std::memcpy(&magic, footer.data() + sizeof shape + 4, 4);
  if (magic != kMagic || shape[0] != rows || shape[1] != row_bytes || shape[2] == 0 ||
      shape[2] > (1ULL << 40U) || size != StateFileWriter::file_bytes(rows, row_bytes, shape[2])) {
    return damaged("its footer or size is wrong");
  }
  reader.rows_ = rows;
  reader.row_bytes_ = row_bytes;
  reader.window_rows_ = shape[2];
  reader.crcs_.resize(window_count(rows, shape[2]));
  LIB_TRY_VOID(read_exactly(*reader.file_, path, rows * row_bytes,
                            std::as_writable_bytes(std::span(reader.crcs_))));
  if (footer_crc(reader.crcs_, shape) != crc) {
    return damaged("the checksum of its checksums does not fit");
  }
  reader.window_.resize(std::min(shape[2], rows) * row_bytes);
  return reader;
}

Result<void> StateFileReader::load_window(std::uint64_t index) {
  const std::uint64_t first = index * window_rows_;
  const std::uint64_t rows = std::min(window_rows_, rows_ - first);
  const std::span<std::byte> part = std::span(window_).first(rows * row_bytes_);
  loaded_.reset();
  LIB_TRY_VOID(read_exactly(*file_, path_, first * row_bytes_, part));
  if (crc32c(part) != crcs_[index]) {
    return Error(ErrorCode::corrupt, path_ + ": damaged state: the checksum of rows " +
                                         std::to_string(first) + " to " +
                                         std::to_string(first + rows) + " does not fit");
  }
  loaded_ = index;
  return {};
}

Result<void> StateFileReader::read_rows(std::uint64_t begin, std::span<std::byte> into) {
  std::uint64_t row = begin;
  while (!into.empty()) {
    const std::uint64_t index = row / window_rows_;
    if (loaded_ != index) {
      LIB_TRY_VOID(load_window(index));
    }
    const std::uint64_t offset = (row - index * window_rows_) * row_bytes_;
    const std::size_t bytes = std::min<std::size_t>(into.size(), window_.size() - offset);
    std::memcpy(into.data(), window_.data() + offset, bytes);
    into = into.subspan(bytes);
    row += bytes / row_bytes_;
  }
  return {};
}

}  // namespace librarian::ingest
