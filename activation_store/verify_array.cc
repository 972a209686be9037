#include "activation_store/verify_array.h"

#include <algorithm>
#include <cstring>

#include "activation_store/array_metadata.h"
#include "activation_store/blosc_chunk.h"
#include "activation_store/published_file.h"
#include "activation_store/shard_index.h"
#include "activation_store/store_names.h"

namespace librarian::activation_store {
namespace {

constexpr std::uint64_t kReadBytes = 4U << 20U;

bool is_finding(const Error& error) {
  return error.code() == ErrorCode::corrupt || error.code() == ErrorCode::not_found;
}

/// Turns wrong or missing data into a problem of `path`; other errors stay errors.
Result<bool> noted(PartCheck& check, const std::string& path, const Result<void>& result) {
  if (result) {
    return true;
  }
  if (!is_finding(result.error())) {
    return result.error();
  }
  check.problem(path, result.error().code() == ErrorCode::not_found ? "the file is missing"
                                                                    : result.error().message());
  return false;
}

Error wrong(std::string reason) { return Error(ErrorCode::corrupt, std::move(reason)); }

/// Reads `size` bytes that follow each other in a file and feeds them to its CRC32C.
class FileWalk {
 public:
  FileWalk(PartCheck& check, const File& file) : check_(check), file_(file) {}

  Result<void> read(std::span<std::byte> into) {
    while (!into.empty()) {
      const std::span<std::byte> some = into.first(std::min<std::size_t>(into.size(), kReadBytes));
      LIB_TRY_VOID(read_exactly(file_, "the file", offset_, some));
      crc_ = crc32c(some, crc_);
      offset_ += some.size();
      into = into.subspan(some.size());
      LIB_TRY_VOID(check_.advance(some.size()));
    }
    return {};
  }
  std::uint32_t crc() const { return crc_; }

 private:
  PartCheck& check_;
  const File& file_;
  std::uint64_t offset_ = 0;
  std::uint32_t crc_ = 0;
};

/// Opens a file and compares its size.
Result<std::unique_ptr<File>> open_sized(PartCheck& check, const FileRecord& record) {
  const std::string path = check.directory + "/" + record.path;
  LIB_TRY(const FileInfo info, check.files.info(path));
  if (info.kind != FileKind::file) {
    return wrong("not a regular file");
  }
  LIB_TRY(std::unique_ptr<File> file, check.files.open(path));
  LIB_TRY(const std::uint64_t size, file->size());
  if (size != record.size) {
    return wrong(std::to_string(size) + " bytes, where the manifest says " +
                 std::to_string(record.size));
  }
  return file;
}

Result<void> check_crc(std::uint32_t crc, const FileRecord& record) {
  if (crc != record.crc32c) {
    return wrong("its CRC32C is not the one in the manifest");
  }
  return {};
}

Result<void> check_content(PartCheck& check, const FileRecord& record) {
  LIB_TRY(const std::unique_ptr<File> file, open_sized(check, record));
  FileWalk walk(check, *file);
  std::vector<std::byte> buffer(std::min(kReadBytes, record.size));
  for (std::uint64_t left = record.size; left > 0;) {
    const std::uint64_t count = std::min<std::uint64_t>(left, buffer.size());
    LIB_TRY_VOID(walk.read(std::span(buffer).first(count)));
    left -= count;
  }
  return check_crc(walk.crc(), record);
}

/// Decodes the shards of an array in order while their files are read for the first time.
class CaptureCheck {
 public:
  CaptureCheck(PartCheck& check, const ArrayRecord& record, const ArrayLayout& layout)
      : check_(check), record_(record), layout_(layout), raw_(chunk_bytes(layout)) {}

  Result<void> run() {
    bool all_right = true;
    for (std::uint64_t shard = 0; shard < shard_count(layout_); ++shard) {
      const std::string path = record_.name + "/" + shard_path(layout_, shard);
      const auto found = check_.manifest.find(path);
      if (found == check_.manifest.end()) {
        check_.problem(path, "the manifest does not list this shard");
        all_right = false;
        continue;
      }
      LIB_TRY(const bool right, noted(check_, path, check_shard(shard, found->second)));
      all_right = all_right && right;
    }
    if (all_right) {  // otherwise the rows cannot be right, and the reason is known already
      LIB_TRY_VOID(noted(check_, record_.name, compare()));
    }
    return {};
  }

 private:
  Result<void> check_shard(std::uint64_t shard, const FileRecord& file_record) {
    LIB_TRY(const std::unique_ptr<File> file, open_sized(check_, file_record));
    const std::uint64_t chunks = layout_.shard_tokens / layout_.chunk_tokens;
    const std::uint64_t present = std::min(chunks, chunk_count(layout_) - shard * chunks);
    if (chunks > file_record.size / 16 || shard_index_bytes(chunks) > file_record.size) {
      return wrong("too short for its index");
    }
    std::vector<std::byte> index(shard_index_bytes(chunks));
    LIB_TRY_VOID(read_exactly(*file, "the file", file_record.size - index.size(), index));
    LIB_TRY(const auto places, decode_shard_index(index, chunks, present, file_record.size));
    FileWalk walk(check_, *file);
    for (std::uint64_t i = 0; i < present; ++i) {
      auto checked = check_chunk(walk, places[i], shard * chunks + i);
      if (!checked) {
        return checked.error().with_context("chunk " + std::to_string(i));
      }
    }
    // The walk reads the index again, so that the file's CRC32C is of one reading.
    LIB_TRY_VOID(walk.read(index));
    return check_crc(walk.crc(), file_record);
  }

  Result<void> check_chunk(FileWalk& walk, const ChunkPlace& place, std::uint64_t chunk) {
    if (place.size > encoded_bytes_max(raw_.size())) {
      return wrong(std::to_string(place.size) + " bytes are too many for it");
    }
    encoded_.resize(place.size);
    LIB_TRY_VOID(walk.read(encoded_));
    LIB_TRY_VOID(decoder_.decode(layout_, encoded_, raw_));
    const std::uint64_t first = chunk * layout_.chunk_tokens;
    const std::uint64_t rows = std::min(layout_.chunk_tokens, layout_.rows - first);
    const std::span<const std::byte> valid = std::span(raw_).first(rows * row_bytes(layout_));
    if (!is_filled(layout_.type, std::span(raw_).subspan(valid.size()))) {
      return wrong("rows beyond the end of the array are not the fill value");
    }
    digest_.update(valid);
    const NonFiniteCounts counts = count_non_finite(layout_.type, valid);
    counts_.nan += counts.nan;
    counts_.inf += counts.inf;
    return {};
  }

  Result<void> compare() const {
    if (digest_.digest() != record_.rows_xxh3) {
      return wrong(
          "XXH3-128 of its rows is not the one in the manifest, though each of its files is whole: "
          "files were exchanged or come from another run");
    }
    if (counts_.nan != record_.nan_count || counts_.inf != record_.inf_count) {
      return wrong("its NaNs or infinities are not as many as the manifest says");
    }
    return {};
  }

  PartCheck& check_;
  const ArrayRecord& record_;
  const ArrayLayout& layout_;
  ChunkDecoder decoder_;
  std::vector<std::byte> encoded_;
  std::vector<std::byte> raw_;
  StreamingXxh3 digest_;
  NonFiniteCounts counts_;
};

/// The manifest's files below an array, by path relative to the part.
std::vector<FileRecord> files_of(const PartCheck& check, const std::string& array) {
  std::vector<FileRecord> files;
  const std::string prefix = array + "/";
  for (auto at = check.manifest.lower_bound(prefix);
       at != check.manifest.end() && at->first.compare(0, prefix.size(), prefix) == 0; ++at) {
    files.push_back(at->second);
  }
  return files;
}

/// Size and CRC32C of every file of an array but zarr.json: all that can be said without it.
/// @return True if all are right.
Result<bool> check_chunk_files(PartCheck& check, const std::string& array) {
  bool all_right = true;
  for (const FileRecord& file : files_of(check, array)) {
    if (file.path != array + "/zarr.json") {
      LIB_TRY(const bool right, check_file(check, file));
      all_right = all_right && right;
    }
  }
  return all_right;
}

/// The sum of the sizes, and no more files than `chunk_files` and zarr.json.
void check_file_list(PartCheck& check, const ArrayRecord& record, std::uint64_t chunk_files) {
  const std::vector<FileRecord> files = files_of(check, record.name);
  std::uint64_t bytes = 0;
  for (const FileRecord& file : files) {
    bytes += file.size;
  }
  if (bytes != record.stored_bytes) {
    check.problem(record.name, "the sizes of its files do not add up to the manifest's sum");
  }
  if (files.size() != chunk_files + 1) {
    check.problem(record.name, "the manifest lists " + std::to_string(files.size()) +
                                   " files of it, not " + std::to_string(chunk_files + 1));
  }
}

/// Reads and checks an array's zarr.json. Empty: it is wrong, and the problem is noted.
template <typename Parse>
auto read_metadata(PartCheck& check, const ArrayRecord& record, Parse parse)
    -> Result<std::optional<typename decltype(parse("", ""))::value_type>> {
  using Value = typename decltype(parse("", ""))::value_type;
  const std::string path = record.name + "/zarr.json";
  const auto found = check.manifest.find(path);
  if (found == check.manifest.end()) {
    check.problem(path, "the manifest does not list it");
    return std::optional<Value>();
  }
  LIB_TRY(const bool right, check_file(check, found->second));
  if (!right) {
    return std::optional<Value>();
  }
  LIB_TRY(const std::string text,
          read_sealed_text(check.files, check.directory + "/" + path, kArrayMetadataBytesMax));
  auto parsed = parse(text, path);
  if (!parsed) {
    check.problem(path, parsed.error().message());
    return std::optional<Value>();
  }
  return std::optional<Value>(*std::move(parsed));
}

}  // namespace

void PartCheck::problem(const std::string& path, const std::string& message) {
  report.problems.push_back({name + "/" + path, message});
}

Result<void> PartCheck::advance(std::uint64_t bytes) {
  report.bytes_checked += bytes;
  if (progress) {
    progress(report.bytes_checked);
  }
  if (stop.stop_requested()) {
    return Error(ErrorCode::cancelled, "stopped before everything was verified");
  }
  return {};
}

Result<bool> check_file(PartCheck& check, const FileRecord& record) {
  ++check.report.files_checked;
  return noted(check, record.path, check_content(check, record));
}

namespace {

bool has_array(const PartFile& part, const std::string& name) {
  return std::any_of(part.arrays.begin(), part.arrays.end(),
                     [&](const ArrayRecord& array) { return array.name == name; });
}

/// What the digest cannot say of rows that other arrays keep.
Result<void> check_kept_rows(const std::vector<std::byte>& bytes, const PartFile& part) {
  std::vector<std::int64_t> rows(bytes.size() / sizeof(std::int64_t));
  std::memcpy(rows.data(), bytes.data(), rows.size() * sizeof(std::int64_t));
  return check_rows(rows, part.range.tokens, "it");
}

}  // namespace

Result<void> check_capture_array(PartCheck& check, const ArrayRecord& record) {
  LIB_TRY(const auto metadata, read_metadata(check, record, parse_array_metadata));
  if (!metadata) {
    LIB_TRY_VOID(check_chunk_files(check, record.name));
    return {};
  }
  const ArrayLayout& layout = metadata->layout;
  if (record.shape != layout.shape() || record.dtype != stored_type_name(layout.type) ||
      metadata->capture != record.name ||
      layout.rows != rows_of(check.part, metadata->attributes) ||
      record.raw_bytes != layout.rows * row_bytes(layout)) {
    check.problem(record.name + "/zarr.json", "not the array that the manifest lists");
    LIB_TRY_VOID(check_chunk_files(check, record.name));
    return {};
  }
  if (layout.type == StoredType::f8_e4m3 && !has_array(check.part, scales_name(record.name))) {
    check.problem(record.name, "the array of its scales is missing");
  }
  check_file_list(check, record, shard_count(layout));
  check.report.files_checked += shard_count(layout);
  return CaptureCheck(check, record, layout).run();
}

Result<void> check_token_array(PartCheck& check, const ArrayRecord& record) {
  LIB_TRY(const auto layout, read_metadata(check, record, parse_token_array_metadata));
  LIB_TRY(const bool all_right, check_chunk_files(check, record.name));
  if (!layout || !all_right) {
    return {};
  }
  if (record.shape != std::vector<std::uint64_t>{layout->length} || record.dtype != layout->dtype ||
      record.raw_bytes != layout->length * layout->element_bytes() ||
      record.name.rfind("tokens/", 0) != 0) {
    check.problem(record.name + "/zarr.json", "not the array that the manifest lists");
    return {};
  }
  check_file_list(check, record,
                  (layout->length + layout->chunk_length() - 1) / layout->chunk_length());
  const auto bytes = read_token_array(check.files, check.directory,
                                      record.name.substr(record.name.find('/') + 1), layout->dtype);
  if (!bytes) {
    LIB_TRY_VOID(noted(check, record.name, bytes.error()));
  } else if (xxh3_128(*bytes) != record.rows_xxh3) {
    check.problem(record.name, "XXH3-128 of its values is not the one in the manifest");
  } else if (is_rows_path(record.name)) {
    LIB_TRY_VOID(noted(check, record.name, check_kept_rows(*bytes, check.part)));
  }
  return {};
}

}  // namespace librarian::activation_store
