#include "activation_store/array_writer.h"

#include <algorithm>
#include <cstring>

#include "activation_store/array_metadata.h"
#include "activation_store/encode_pool_impl.h"
#include "activation_store/store_names.h"

namespace librarian::activation_store {

class ArrayWriter::Impl {
 public:
  Impl(std::shared_ptr<EncodePool::Impl> pool, std::shared_ptr<ArrayStream> array,
       std::string part_directory)
      : pool_(std::move(pool)),
        array_(std::move(array)),
        part_directory_(std::move(part_directory)) {}
  ~Impl() {
    pool_->abandon(*array_);
    if (slot_ != nullptr) {
      pool_->give_back(slot_);
    }
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  Result<void> append(std::span<const std::byte> rows, const std::stop_token& stop);
  Result<ArrayRecord> finish(const std::stop_token& stop);
  Result<void> publish();

 private:
  void submit_slot();
  Result<FileRecord> write_metadata();
  ArrayRecord record() const;

  const std::shared_ptr<EncodePool::Impl> pool_;
  const std::shared_ptr<ArrayStream> array_;
  const std::string part_directory_;
  ChunkSlot* slot_ = nullptr;  // being filled
  std::uint64_t rows_appended_ = 0;
  bool failed_ = false;  // an append() stopped between two rows
  bool finished_ = false;
};

ArrayWriter::ArrayWriter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ArrayWriter::ArrayWriter(ArrayWriter&&) noexcept = default;
ArrayWriter& ArrayWriter::operator=(ArrayWriter&&) noexcept = default;
ArrayWriter::~ArrayWriter() = default;

std::uint64_t ArrayWriter::memory_bytes(const ArrayLayout& layout) {
  const std::uint64_t chunks = layout.shard_tokens / layout.chunk_tokens;
  constexpr std::uint64_t kBookkeeping = 8U << 10U;  // stream, digest state, names, metadata text
  constexpr std::uint64_t kRecord = 256;             // path and sizes of a finished shard
  // Twice the places, because the list doubles while it grows; once more for the encoded index.
  return kBookkeeping + 3 * shard_index_bytes(chunks) + shard_count(layout) * kRecord;
}

Result<ArrayWriter> ArrayWriter::create(FileSystem& files, EncodePool& pool,
                                        const std::string& directory, const std::string& name,
                                        const ArrayLayout& layout, const std::string& nonce,
                                        const ArrayAttributes& attributes) {
  if (!is_array_name(name)) {
    return Error(ErrorCode::invalid_argument, "not the name of an array: '" + name + "'");
  }
  if (!is_partial_name(partial_path("", nonce), "")) {
    return Error(ErrorCode::invalid_argument, "not a nonce of hex digits: '" + nonce + "'");
  }
  LIB_TRY_VOID(check_layout(layout));
  LIB_TRY_VOID(check_attributes(layout, attributes));
  if (chunk_bytes(layout) > pool.impl()->chunk_bytes_max()) {
    return Error(ErrorCode::invalid_argument,
                 name + ": chunks of " + std::to_string(chunk_bytes(layout)) +
                     " bytes, more than the " + std::to_string(pool.impl()->chunk_bytes_max()) +
                     " of the encode pool");
  }
  auto array = std::make_shared<ArrayStream>();
  array->files = &files;
  array->directory = directory + "/" + name;
  array->name = name;
  array->layout = layout;
  array->attributes = attributes;
  array->nonce = nonce;
  LIB_TRY_VOID(files.make_directory(array->directory));
  LIB_TRY(const std::vector<std::string> left_over, files.list(array->directory));
  if (!left_over.empty()) {
    return Error(ErrorCode::already_exists,
                 array->directory + " holds files of an earlier try ('" + left_over.front() +
                     "'); they have to be removed before it is written again");
  }
  LIB_TRY_VOID(files.make_directory(array->directory + "/c"));
  return ArrayWriter(std::make_unique<Impl>(pool.impl(), std::move(array), directory));
}

Result<void> ArrayWriter::append(std::span<const std::byte> rows, const std::stop_token& stop) {
  return impl_->append(rows, stop);
}
Result<ArrayRecord> ArrayWriter::finish(const std::stop_token& stop) { return impl_->finish(stop); }
Result<void> ArrayWriter::publish() { return impl_->publish(); }

Result<void> ArrayWriter::Impl::append(std::span<const std::byte> rows,
                                       const std::stop_token& stop) {
  const ArrayLayout& layout = array_->layout;
  const std::uint64_t row = row_bytes(layout);
  LIB_TRY_VOID(pool_->status(*array_));
  if (failed_ || finished_) {
    return Error(ErrorCode::cancelled, array_->name + ": nothing more can be appended");
  }
  if (rows.size() % row != 0 || rows.size() / row > layout.rows - rows_appended_) {
    return Error(ErrorCode::invalid_argument,
                 array_->name + ": " + std::to_string(rows.size()) +
                     " bytes are not whole rows, or more than are left of " +
                     std::to_string(layout.rows) + " rows of " + std::to_string(row) + " bytes");
  }
  while (!rows.empty()) {
    if (slot_ == nullptr) {
      auto taken = pool_->take_slot(array_, stop);
      if (!taken) {
        failed_ = true;  // some rows may be in: they cannot be appended again
        return std::move(taken).error();
      }
      slot_ = *taken;
      slot_->chunk = rows_appended_ / layout.chunk_tokens;
    }
    const std::uint64_t count =
        std::min<std::uint64_t>(layout.chunk_tokens - slot_->rows, rows.size() / row);
    std::memcpy(slot_->raw.get() + slot_->rows * row, rows.data(), count * row);
    slot_->rows += count;
    rows_appended_ += count;
    rows = rows.subspan(count * row);
    if (slot_->rows == layout.chunk_tokens || rows_appended_ == layout.rows) {
      submit_slot();
    }
  }
  return {};
}

void ArrayWriter::Impl::submit_slot() {
  const ArrayLayout& layout = array_->layout;
  const std::uint64_t filled = slot_->rows * row_bytes(layout);
  fill_rows(layout.type, {slot_->raw.get() + filled, chunk_bytes(layout) - filled});
  pool_->submit(std::exchange(slot_, nullptr));
}

Result<ArrayRecord> ArrayWriter::Impl::finish(const std::stop_token& stop) {
  LIB_CHECK(!finished_);
  LIB_TRY_VOID(pool_->status(*array_));
  if (failed_ || rows_appended_ != array_->layout.rows) {
    return Error(ErrorCode::invalid_argument, array_->name + ": " + std::to_string(rows_appended_) +
                                                  " rows were appended, not " +
                                                  std::to_string(array_->layout.rows));
  }
  LIB_TRY_VOID(pool_->wait_written(*array_, stop));
  LIB_TRY(FileRecord metadata, write_metadata());
  array_->records.push_back(std::move(metadata));
  finished_ = true;
  return record();
}

Result<FileRecord> ArrayWriter::Impl::write_metadata() {
  const std::string text = array_metadata_text(array_->name, array_->layout, array_->attributes);
  const std::span<const std::byte> bytes = std::as_bytes(std::span(text));
  LIB_TRY(const std::unique_ptr<File> file,
          array_->files->create(partial_path(array_->directory + "/zarr.json", array_->nonce)));
  LIB_TRY_VOID(file->append(bytes));
  LIB_TRY_VOID(file->sync_data());
  return FileRecord{array_->name + "/zarr.json", bytes.size(), crc32c(bytes)};
}

ArrayRecord ArrayWriter::Impl::record() const {
  const ArrayLayout& layout = array_->layout;
  ArrayRecord record;
  record.name = array_->name;
  record.shape = layout.shape();
  record.dtype = stored_type_name(layout.type);
  record.rows_xxh3 = array_->rows_xxh3.digest();
  record.nan_count = array_->non_finite.nan;
  record.inf_count = array_->non_finite.inf;
  record.raw_bytes = layout.rows * row_bytes(layout);
  record.files = array_->records;
  for (const FileRecord& file : record.files) {
    record.stored_bytes += file.size;
  }
  return record;
}

Result<void> ArrayWriter::Impl::publish() {
  LIB_CHECK(finished_);
  FileSystem& files = *array_->files;
  const auto rename = [&](const std::string& path) {
    return files.rename(partial_path(path, array_->nonce), path);
  };
  for (std::uint64_t shard = 0; shard < shard_count(array_->layout); ++shard) {
    const std::string path = array_->directory + "/" + shard_path(array_->layout, shard);
    LIB_TRY_VOID(rename(path));
    if (!array_->layout.is_vector) {
      LIB_TRY_VOID(files.sync_directory(parent_path(path)));
    }
  }
  LIB_TRY_VOID(files.sync_directory(array_->directory + "/c"));
  // The shards are durable under their names before the array exists at all.
  LIB_TRY_VOID(rename(array_->directory + "/zarr.json"));
  LIB_TRY_VOID(files.sync_directory(array_->directory));
  return files.sync_directory(part_directory_);
}

}  // namespace librarian::activation_store
