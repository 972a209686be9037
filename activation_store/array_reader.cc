#include "activation_store/array_reader.h"

#include <algorithm>
#include <atomic>
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

constexpr std::uint64_t kMapBytesMin = 64 << 10;  // Below, copying is cheaper.
constexpr std::uint64_t kMapBytesMax = 16 << 20;  // Asked for at a time.
// That a process keeps: the kernel's own limit is 65530 unless somebody changed it.
constexpr std::int64_t kMapsMax = 16384;

std::atomic<std::int64_t>& maps_kept() {
  static std::atomic<std::int64_t> count{0};
  return count;
}

/// What is known of a shard once it was looked at.
class Shard {
 public:
  Shard(std::vector<ChunkPlace> places, const File& file, std::uint64_t file_bytes)
      : places_(std::move(places)) {
    if (++maps_kept() <= kMapsMax && file_bytes >= kMapBytesMin) {
      map_ = file.map();
    }
  }
  ~Shard() { --maps_kept(); }
  Shard(const Shard&) = delete;
  Shard& operator=(const Shard&) = delete;

  const std::vector<ChunkPlace>& places() const { return places_; }
  /// Null: it is read.
  const FileMap* map() const { return map_.get(); }

 private:
  const std::vector<ChunkPlace> places_;
  std::shared_ptr<const FileMap> map_;
};

/// An array that has its zarr.json has its shards: absence is damage, not "not written yet".
Result<std::unique_ptr<File>> open_shard(FileSystem& files, const std::string& path) {
  auto file = files.open(path);
  return file || file.error().code() != ErrorCode::not_found
             ? std::move(file)
             : Error(ErrorCode::corrupt, path + ": the shard is missing");
}

/// The stored bytes of consecutive chunks of a shard: looked at where they lie, several at a time,
/// or copied.
class EncodedChunks {
 public:
  /// @param file  The shard, or null: opened when it is needed.
  /// @param last  The last chunk that will be asked for.
  EncodedChunks(FileSystem& files, const std::string& path, std::unique_ptr<File> file,
                const Shard& shard, std::uint64_t last, Workspace& work)
      : files_(files),
        path_(path),
        file_(std::move(file)),
        shard_(shard),
        last_(last),
        work_(work) {}

  /// Valid until the next call. Chunks are asked for in rising order.
  Result<std::span<const std::byte>> chunk(std::uint64_t number) {
    const ChunkPlace place = shard_.places()[number];
    if (place.offset + place.size > there_end_) {
      look_at(number);
    }
    if (there_) {
      return there_->subspan(place.offset - there_begin_, place.size);
    }
    if (!file_) {
      LIB_TRY(file_, open_shard(files_, path_));
    }
    work_.encoded.resize(place.size);
    LIB_TRY_VOID(read_exactly(*file_, "it", place.offset, work_.encoded));
    return std::span<const std::byte>(work_.encoded);
  }

 private:
  /// Chunk `number` and as many behind it as make sense.
  void look_at(std::uint64_t number) {
    there_begin_ = shard_.places()[number].offset;
    there_end_ = there_begin_ + shard_.places()[number].size;
    for (std::uint64_t i = number + 1; i <= last_; ++i) {
      const std::uint64_t end = shard_.places()[i].offset + shard_.places()[i].size;
      if (end - there_begin_ > kMapBytesMax) {
        break;
      }
      there_end_ = end;
    }
    there_.reset();
    if (shard_.map() != nullptr && there_end_ - there_begin_ >= kMapBytesMin) {
      there_ = shard_.map()->bytes(there_begin_, there_end_ - there_begin_);
    }
  }

  FileSystem& files_;
  const std::string& path_;
  std::unique_ptr<File> file_;
  const Shard& shard_;
  const std::uint64_t last_;
  Workspace& work_;
  std::optional<std::span<const std::byte>> there_;
  std::uint64_t there_begin_ = 0;
  std::uint64_t there_end_ = 0;  // Of the last look, also of one in vain.
};

}  // namespace

class ArrayReader::Impl {
 public:
  Impl(FileSystem& files, std::string directory, ArrayMetadata metadata)
      : files_(files), directory_(std::move(directory)), metadata_(std::move(metadata)) {}

  const ArrayMetadata& metadata() const { return metadata_; }
  Result<void> read_rows(std::uint64_t begin, std::uint64_t end, std::span<std::byte> into);

 private:
  std::shared_ptr<const Shard> known_shard(std::uint64_t shard);
  Result<std::shared_ptr<const Shard>> look_at_shard(std::uint64_t shard, const File& file);
  Result<void> read_shard(std::uint64_t shard, std::uint64_t begin, std::uint64_t end,
                          std::span<std::byte> into, Workspace& work);
  Result<void> decode_rows(std::span<const std::byte> encoded, std::uint64_t chunk,
                           std::uint64_t begin, std::uint64_t end, std::span<std::byte> into,
                           Workspace& work);

  FileSystem& files_;
  const std::string directory_;
  const ArrayMetadata metadata_;
  std::mutex mutex_;  // guards what follows
  std::map<std::uint64_t, std::shared_ptr<const Shard>> shards_;
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
  std::shared_ptr<const Shard> found = known_shard(shard);
  std::unique_ptr<File> file;
  if (found == nullptr) {
    LIB_TRY(file, open_shard(files_, path));
    auto looked = look_at_shard(shard, *file);
    if (!looked) {
      return looked.error().with_context(path);
    }
    found = *std::move(looked);
  }
  const std::uint64_t first_chunk = shard * (layout.shard_tokens / layout.chunk_tokens);
  EncodedChunks encoded(files_, path, std::move(file), *found,
                        (end - 1) / layout.chunk_tokens - first_chunk, work);
  while (begin < end) {
    const std::uint64_t chunk = begin / layout.chunk_tokens;
    const std::uint64_t stop = std::min(end, (chunk + 1) * layout.chunk_tokens);
    const std::uint64_t bytes = (stop - begin) * row_bytes(layout);
    auto read = [&]() -> Result<void> {
      const std::uint64_t size = found->places()[chunk - first_chunk].size;
      if (size > encoded_bytes_max(chunk_bytes(layout))) {
        return Error(ErrorCode::corrupt, std::to_string(size) + " bytes are too many");
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

std::shared_ptr<const Shard> ArrayReader::Impl::known_shard(std::uint64_t shard) {
  const std::lock_guard<std::mutex> guard(mutex_);
  const auto known = shards_.find(shard);
  return known == shards_.end() ? nullptr : known->second;
}

Result<std::shared_ptr<const Shard>> ArrayReader::Impl::look_at_shard(std::uint64_t shard,
                                                                      const File& file) {
  const ArrayLayout& layout = metadata_.layout;
  const std::uint64_t chunks = layout.shard_tokens / layout.chunk_tokens;
  const std::uint64_t present = std::min(chunks, chunk_count(layout) - shard * chunks);
  LIB_TRY(const std::uint64_t size, file.size());
  // The size of the file bounds the allocation, whatever zarr.json says.
  if (chunks > size / 16 || shard_index_bytes(chunks) > size) {
    return Error(ErrorCode::corrupt, std::to_string(size) + " bytes are too few for an index of " +
                                         std::to_string(chunks) + " chunks");
  }
  std::vector<std::byte> index(shard_index_bytes(chunks));
  LIB_TRY_VOID(read_exactly(file, "it", size - index.size(), index));
  LIB_TRY(std::vector<ChunkPlace> places, decode_shard_index(index, chunks, present, size));
  auto made = std::make_shared<const Shard>(std::move(places), file, size);
  const std::lock_guard<std::mutex> guard(mutex_);
  shards_[shard] = made;
  return made;
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
