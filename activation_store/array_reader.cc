#include "activation_store/array_reader.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
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

constexpr std::uint64_t kViewBytesMin = 64 << 10;  // Below, copying is cheaper than mapping.
constexpr std::uint64_t kViewBytesMax = 16 << 20;

/// The stored bytes of consecutive chunks of a shard: viewed where they lie, several at a time, or
/// copied where the file system has no views.
class EncodedChunks {
 public:
  /// @param last  The last chunk that will be asked for.
  EncodedChunks(const File& file, const std::vector<ChunkPlace>& places, std::uint64_t last,
                Workspace& work)
      : file_(file), places_(places), last_(last), work_(work) {}

  /// Valid until the next call. Chunks are asked for in rising order.
  Result<std::span<const std::byte>> chunk(std::uint64_t number) {
    const ChunkPlace place = places_[number];
    const std::uint64_t end = place.offset + place.size;
    if (end > view_end_) {
      std::uint64_t behind = end;
      for (std::uint64_t i = number + 1; i <= last_; ++i) {
        const std::uint64_t next = places_[i].offset + places_[i].size;
        if (next - place.offset > kViewBytesMax) {
          break;
        }
        behind = next;
      }
      view_.reset();  // First, so that its addresses are used again.
      if (behind - place.offset >= kViewBytesMin) {
        view_ = file_.view(place.offset, behind - place.offset);
      }
      view_begin_ = place.offset;
      view_end_ = behind;
    }
    if (view_) {
      return view_->bytes().subspan(place.offset - view_begin_, place.size);
    }
    work_.encoded.resize(place.size);
    LIB_TRY_VOID(read_exactly(file_, "it", place.offset, work_.encoded));
    return std::span<const std::byte>(work_.encoded);
  }

 private:
  const File& file_;
  const std::vector<ChunkPlace>& places_;
  const std::uint64_t last_;
  Workspace& work_;
  std::optional<FileView> view_;
  std::uint64_t view_begin_ = 0;
  std::uint64_t view_end_ = 0;  // Of the last try, also of one without a view.
};

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
  Result<void> decode_rows(std::span<const std::byte> encoded, std::uint64_t chunk,
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
  EncodedChunks encoded(**opened, *found, (end - 1) / layout.chunk_tokens - first_chunk, work);
  while (begin < end) {
    const std::uint64_t chunk = begin / layout.chunk_tokens;
    const std::uint64_t stop = std::min(end, (chunk + 1) * layout.chunk_tokens);
    const std::uint64_t bytes = (stop - begin) * row_bytes(layout);
    auto read = [&]() -> Result<void> {
      if ((*found)[chunk - first_chunk].size > encoded_bytes_max(chunk_bytes(layout))) {
        return Error(ErrorCode::corrupt,
                     std::to_string((*found)[chunk - first_chunk].size) + " bytes are too many");
      }
      LIB_TRY(const std::span<const std::byte> stored, encoded.chunk(chunk - first_chunk));
      return decode_rows(stored, chunk, begin, stop, into.first(bytes), work);
    }();
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

Result<void> ArrayReader::Impl::decode_rows(std::span<const std::byte> encoded, std::uint64_t chunk,
                                            std::uint64_t begin, std::uint64_t end,
                                            std::span<std::byte> into, Workspace& work) {
  const ArrayLayout& layout = metadata_.layout;
  const std::uint64_t row = row_bytes(layout);
  const std::uint64_t first = chunk * layout.chunk_tokens;
  const std::uint64_t valid = std::min(layout.chunk_tokens, layout.rows - first);
  if (valid == layout.chunk_tokens) {
    return work.decoder.decode_rows(layout, encoded, begin - first, end - first, into);
  }
  work.raw.resize(chunk_bytes(layout));
  LIB_TRY_VOID(work.decoder.decode(layout, encoded, work.raw));
  if (!is_filled(layout.type, std::span(work.raw).subspan(valid * row))) {
    return Error(ErrorCode::corrupt, "rows beyond the end of the array are not the fill value");
  }
  std::memcpy(into.data(), work.raw.data() + (begin - first) * row, into.size());
  return {};
}

}  // namespace librarian::activation_store
