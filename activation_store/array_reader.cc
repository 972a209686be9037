#include "activation_store/array_reader.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "activation_store/array_metadata.h"
#include "activation_store/blosc_chunk.h"
#include "activation_store/published_file.h"
#include "activation_store/shard_index.h"
#include "activation_store/store_names.h"

namespace librarian::activation_store {
namespace {

/// What a thread needs to decode, whatever the number of arrays it reads.
struct Workspace {
  ChunkDecoder decoder;
  std::vector<std::byte> encoded;
  std::vector<std::byte> raw;
};

Workspace& workspace() {
  static thread_local Workspace work;
  return work;
}

using Places = std::shared_ptr<const std::vector<ChunkPlace>>;

}  // namespace

class ArrayReader::Impl {
 public:
  Impl(FileSystem& files, std::string directory, ArrayMetadata metadata)
      : files_(files), directory_(std::move(directory)), metadata_(std::move(metadata)) {}

  const ArrayMetadata& metadata() const { return metadata_; }
  Result<void> read_rows(std::uint64_t begin, std::uint64_t end, std::span<std::byte> into);

 private:
  Result<Places> places(std::uint64_t shard, const std::string& path, const File& file);
  Result<void> read_shard(std::uint64_t shard, std::uint64_t begin, std::uint64_t end,
                          std::span<std::byte> into, Workspace& work);
  Result<void> read_chunk(const File& file, ChunkPlace place, std::uint64_t chunk,
                          std::uint64_t begin, std::uint64_t end, std::span<std::byte> into,
                          Workspace& work);

  FileSystem& files_;
  const std::string directory_;
  const ArrayMetadata metadata_;
  std::mutex mutex_;  // guards what follows
  std::map<std::uint64_t, Places> places_;
};

ArrayReader::ArrayReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ArrayReader::ArrayReader(ArrayReader&&) noexcept = default;
ArrayReader& ArrayReader::operator=(ArrayReader&&) noexcept = default;
ArrayReader::~ArrayReader() = default;

Result<ArrayReader> ArrayReader::open(FileSystem& files, const std::string& array_directory) {
  const std::string path = array_directory + "/zarr.json";
  LIB_TRY(const std::string text, read_sealed_text(files, path, kArrayMetadataBytesMax));
  LIB_TRY(ArrayMetadata metadata, parse_array_metadata(text, path));
  return ArrayReader(std::make_unique<Impl>(files, array_directory, std::move(metadata)));
}

const ArrayLayout& ArrayReader::layout() const { return impl_->metadata().layout; }
const std::string& ArrayReader::capture() const { return impl_->metadata().capture; }
const ArrayAttributes& ArrayReader::attributes() const { return impl_->metadata().attributes; }

Result<void> ArrayReader::read_rows(std::uint64_t begin, std::uint64_t end,
                                    std::span<std::byte> into) const {
  return impl_->read_rows(begin, end, into);
}

Result<void> ArrayReader::Impl::read_rows(std::uint64_t begin, std::uint64_t end,
                                          std::span<std::byte> into) {
  const ArrayLayout& layout = metadata_.layout;
  const std::uint64_t row = row_bytes(layout);
  if (begin > end || end > layout.rows || into.size() != (end - begin) * row) {
    return Error(ErrorCode::invalid_argument, directory_ + ": rows " + std::to_string(begin) +
                                                  " to " + std::to_string(end) + " were asked of " +
                                                  std::to_string(layout.rows) + ", into " +
                                                  std::to_string(into.size()) + " bytes");
  }
  Result<void> result;
  while (begin < end && result) {
    const std::uint64_t shard = begin / layout.shard_tokens;
    const std::uint64_t stop = std::min(end, (shard + 1) * layout.shard_tokens);
    result = read_shard(shard, begin, stop, into.first((stop - begin) * row), workspace());
    into = into.subspan((stop - begin) * row);
    begin = stop;
  }
  return result;
}

Result<void> ArrayReader::Impl::read_shard(std::uint64_t shard, std::uint64_t begin,
                                           std::uint64_t end, std::span<std::byte> into,
                                           Workspace& work) {
  const ArrayLayout& layout = metadata_.layout;
  const std::string path = directory_ + "/" + shard_path(layout, shard);
  auto opened = files_.open(path);
  if (!opened) {
    // An array that has its zarr.json has its shards: absence is damage, not "not written yet".
    return opened.error().code() == ErrorCode::not_found
               ? Error(ErrorCode::corrupt, path + ": the shard is missing")
               : opened.error();
  }
  LIB_TRY(const Places found, places(shard, path, **opened));
  const std::uint64_t first_chunk = shard * (layout.shard_tokens / layout.chunk_tokens);
  while (begin < end) {
    const std::uint64_t chunk = begin / layout.chunk_tokens;
    const std::uint64_t stop = std::min(end, (chunk + 1) * layout.chunk_tokens);
    const std::uint64_t bytes = (stop - begin) * row_bytes(layout);
    auto read = read_chunk(**opened, (*found)[chunk - first_chunk], chunk, begin, stop,
                           into.first(bytes), work);
    if (!read) {
      return read.error().with_context(path + ", chunk " + std::to_string(chunk - first_chunk));
    }
    into = into.subspan(bytes);
    begin = stop;
  }
  return {};
}

Result<Places> ArrayReader::Impl::places(std::uint64_t shard, const std::string& path,
                                         const File& file) {
  {
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto known = places_.find(shard);
    if (known != places_.end()) {
      return known->second;
    }
  }
  const ArrayLayout& layout = metadata_.layout;
  const std::uint64_t chunks = layout.shard_tokens / layout.chunk_tokens;
  const std::uint64_t present = std::min(chunks, chunk_count(layout) - shard * chunks);
  LIB_TRY(const std::uint64_t size, file.size());
  // The size of the file bounds the allocation, whatever zarr.json says.
  if (chunks > size / 16 || shard_index_bytes(chunks) > size) {
    return Error(ErrorCode::corrupt, path + ": " + std::to_string(size) +
                                         " bytes are too few for an index of " +
                                         std::to_string(chunks) + " chunks");
  }
  std::vector<std::byte> index(shard_index_bytes(chunks));
  LIB_TRY_VOID(read_exactly(file, path, size - index.size(), index));
  auto decoded = decode_shard_index(index, chunks, present, size);
  if (!decoded) {
    return decoded.error().with_context(path);
  }
  auto result = std::make_shared<const std::vector<ChunkPlace>>(*std::move(decoded));
  const std::lock_guard<std::mutex> guard(mutex_);
  places_[shard] = result;
  return result;
}

Result<void> ArrayReader::Impl::read_chunk(const File& file, ChunkPlace place, std::uint64_t chunk,
                                           std::uint64_t begin, std::uint64_t end,
                                           std::span<std::byte> into, Workspace& work) {
  const ArrayLayout& layout = metadata_.layout;
  const std::uint64_t row = row_bytes(layout);
  const std::uint64_t raw_bytes = chunk_bytes(layout);
  if (place.size > encoded_bytes_max(raw_bytes)) {
    return Error(ErrorCode::corrupt, std::to_string(place.size) + " bytes are too many for it");
  }
  work.encoded.resize(place.size);
  LIB_TRY_VOID(read_exactly(file, "it", place.offset, work.encoded));
  const std::uint64_t first = chunk * layout.chunk_tokens;
  const std::uint64_t valid = std::min(layout.chunk_tokens, layout.rows - first);
  if (valid == layout.chunk_tokens) {
    return work.decoder.decode_rows(layout, work.encoded, begin - first, end - first, into);
  }
  work.raw.resize(raw_bytes);
  LIB_TRY_VOID(work.decoder.decode(layout, work.encoded, work.raw));
  if (!is_filled(layout.type, std::span(work.raw).subspan(valid * row))) {
    return Error(ErrorCode::corrupt, "rows beyond the end of the array are not the fill value");
  }
  std::memcpy(into.data(), work.raw.data() + (begin - first) * row, into.size());
  return {};
}

}  // namespace librarian::activation_store
