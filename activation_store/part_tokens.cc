// tokens/: the samples of a part as one-dimensional Zarr arrays, chunks of plain bytes and CRC32C.
#include <algorithm>
#include <cstring>

#include "activation_store/array_metadata.h"
#include "activation_store/little_endian.h"
#include "activation_store/published_file.h"
#include "activation_store/store_files.h"
#include "activation_store/store_names.h"

namespace librarian::activation_store {
namespace {

constexpr char kGroup[] = "tokens";
constexpr std::uint64_t kChecksumBytes = 4;

Error corrupt(const std::string& what, const std::string& reason) {
  return Error(ErrorCode::corrupt, what + ": " + reason);
}

std::uint64_t chunk_count(const TokenArrayLayout& layout) {
  return (layout.length + layout.chunk_length() - 1) / layout.chunk_length();
}

Result<FileRecord> write_chunk(FileSystem& files, const std::string& directory,
                               const std::string& path, std::span<const std::byte> values,
                               std::uint64_t chunk_bytes, const std::string& nonce) {
  const std::vector<std::byte> padding(chunk_bytes - values.size(), TokenArrayLayout::kFillByte);
  std::byte checksum[kChecksumBytes];
  store_le(checksum, crc32c(padding, crc32c(values)));
  return write_published(files, directory, path, {values, padding, checksum}, nonce);
}

Result<ArrayRecord> write_array(FileSystem& files, const std::string& directory,
                                const std::string& name, const TokenArrayLayout& layout,
                                std::span<const std::byte> values, const std::string& nonce) {
  ArrayRecord record;
  record.name = name;
  record.shape = {layout.length};
  record.dtype = layout.dtype;
  record.rows_xxh3 = xxh3_128(values);
  record.raw_bytes = values.size();
  const std::string chunks = directory + "/" + name + "/c";
  LIB_TRY_VOID(files.make_directory(directory + "/" + name));
  LIB_TRY_VOID(files.make_directory(chunks));
  const std::uint64_t chunk_bytes = layout.chunk_length() * layout.element_bytes();
  for (std::uint64_t chunk = 0; chunk < chunk_count(layout); ++chunk) {
    const std::uint64_t begin = chunk * chunk_bytes;
    LIB_TRY(FileRecord file,
            write_chunk(files, directory, name + "/c/" + std::to_string(chunk),
                        values.subspan(begin, std::min(chunk_bytes, values.size() - begin)),
                        chunk_bytes, nonce));
    record.files.push_back(std::move(file));
  }
  LIB_TRY_VOID(files.sync_directory(chunks));
  const std::string text = token_array_metadata_text(layout);
  LIB_TRY(FileRecord file, write_published(files, directory, name + "/zarr.json",
                                           {std::as_bytes(std::span(text))}, nonce));
  record.files.push_back(std::move(file));
  LIB_TRY_VOID(files.sync_directory(directory + "/" + name));
  for (const FileRecord& written : record.files) {
    record.stored_bytes += written.size;
  }
  return record;
}

template <typename T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

template <typename T>
std::vector<T> from_bytes(const std::vector<std::byte>& bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

}  // namespace

Result<void> check_offsets(const std::vector<std::int64_t>& offsets, std::uint64_t tokens,
                           const std::string& what) {
  if (offsets.size() < 2 || offsets.front() != 0 ||
      static_cast<std::uint64_t>(offsets.back()) != tokens) {
    return corrupt(what, "the offsets do not go from 0 to the number of tokens");
  }
  const auto bad = std::adjacent_find(offsets.begin(), offsets.end(), std::greater_equal<>());
  if (bad != offsets.end()) {
    return corrupt(
        what, "offset " + std::to_string(bad - offsets.begin()) + " is not below the one after it");
  }
  return {};
}

Result<void> check_rows(const std::vector<std::int64_t>& rows, std::uint64_t tokens,
                        const std::string& what) {
  const bool rising =
      std::adjacent_find(rows.begin(), rows.end(), std::greater_equal<>()) == rows.end();
  if (!rising ||
      (!rows.empty() && (rows.front() < 0 || static_cast<std::uint64_t>(rows.back()) >= tokens))) {
    return corrupt(what, "the rows do not rise within the part");
  }
  return {};
}

Result<std::vector<ArrayRecord>> write_part_tokens(FileSystem& files, const std::string& directory,
                                                   const PartTokens& tokens,
                                                   const std::string& nonce) {
  const std::uint64_t count = tokens.input_ids.size();
  auto offsets = check_offsets(tokens.offsets, count, "the part's tokens");
  if (!offsets) {
    return offsets.error().with_code(ErrorCode::invalid_argument);
  }
  if (count == 0 || tokens.sample_index.size() + 1 != tokens.offsets.size() ||
      (tokens.loss_mask && tokens.loss_mask->size() != count)) {
    return Error(ErrorCode::invalid_argument,
                 "the part's tokens: ids, offsets, mask and sample_index differ in length");
  }
  LIB_TRY_VOID(files.make_directory(directory + "/" + kGroup));
  struct Source {
    std::string name;
    const char* dtype;
    std::span<const std::byte> bytes;
  };
  std::vector<Source> sources = {{"tokens/input_ids", "int32", bytes_of(tokens.input_ids)},
                                 {"tokens/offsets", "int64", bytes_of(tokens.offsets)}};
  if (tokens.loss_mask) {
    sources.push_back({"tokens/loss_mask", "uint8", bytes_of(*tokens.loss_mask)});
  }
  sources.push_back({"tokens/sample_index", "int64", bytes_of(tokens.sample_index)});
  for (const auto& [name, rows] : tokens.rows) {
    auto checked = check_rows(rows, count, name);
    if (!checked || !is_rows_path("tokens/" + name)) {
      return Error(ErrorCode::invalid_argument,
                   "the part's tokens: " + name + " cannot be written");
    }
    sources.push_back({"tokens/" + name, "int64", bytes_of(rows)});
  }
  std::vector<ArrayRecord> records;
  for (const Source& source : sources) {
    TokenArrayLayout layout{source.dtype, 0};
    layout.length = source.bytes.size() / layout.element_bytes();
    LIB_TRY(ArrayRecord record,
            write_array(files, directory, source.name, layout, source.bytes, nonce));
    records.push_back(std::move(record));
  }
  const std::string text = group_metadata_text(Json::object());
  LIB_TRY(FileRecord group, write_published(files, directory, "tokens/zarr.json",
                                            {std::as_bytes(std::span(text))}, nonce));
  records.front().files.push_back(std::move(group));
  LIB_TRY_VOID(files.sync_directory(directory + "/" + kGroup));
  LIB_TRY_VOID(files.sync_directory(directory));
  return records;
}

Result<std::vector<std::byte>> read_token_array(FileSystem& files, const std::string& directory,
                                                const std::string& name, const std::string& dtype) {
  const std::string array = directory + "/tokens/" + name;
  const std::string metadata_path = array + "/zarr.json";
  LIB_TRY(const std::string text, read_sealed_text(files, metadata_path, kArrayMetadataBytesMax));
  LIB_TRY(const TokenArrayLayout layout, parse_token_array_metadata(text, metadata_path));
  if (layout.dtype != dtype) {
    return corrupt(metadata_path, "the data type is " + layout.dtype + ", not " + dtype);
  }
  const std::uint64_t chunk_bytes = layout.chunk_length() * layout.element_bytes();
  std::vector<std::byte> values;  // grows with files that are there, not with what shape says
  std::vector<std::byte> chunk(chunk_bytes + kChecksumBytes);
  for (std::uint64_t i = 0; i < chunk_count(layout); ++i) {
    const std::string path = array + "/c/" + std::to_string(i);
    auto file = files.open(path);
    if (!file) {
      return file.error().code() == ErrorCode::not_found ? corrupt(path, "the chunk is missing")
                                                         : file.error();
    }
    LIB_TRY(const std::uint64_t size, (*file)->size());
    if (size != chunk.size()) {
      return corrupt(path, std::to_string(size) + " bytes, not " + std::to_string(chunk.size()));
    }
    LIB_TRY_VOID(read_exactly(**file, path, 0, chunk));
    const std::span<const std::byte> body = std::span(chunk).first(chunk_bytes);
    if (load_le<std::uint32_t>(body.data() + body.size()) != crc32c(body)) {
      return corrupt(path, "its CRC32C does not fit");
    }
    const std::uint64_t valid =
        std::min(chunk_bytes, layout.length * layout.element_bytes() - values.size());
    const auto padding = body.subspan(valid);
    if (!std::all_of(padding.begin(), padding.end(),
                     [](std::byte b) { return b == TokenArrayLayout::kFillByte; })) {
      return corrupt(path, "values beyond the end of the array are not the fill value");
    }
    values.insert(values.end(), body.begin(), body.begin() + static_cast<std::ptrdiff_t>(valid));
  }
  return values;
}

Result<PartTokens> read_part_tokens(FileSystem& files, const std::string& part_directory) {
  const std::string group = part_directory + "/tokens";
  LIB_TRY(const std::string text, read_sealed_text(files, group + "/zarr.json"));
  LIB_TRY_VOID(parse_group_metadata(text, group + "/zarr.json"));
  PartTokens tokens;
  LIB_TRY(const auto ids, read_token_array(files, part_directory, "input_ids", "int32"));
  LIB_TRY(const auto offsets, read_token_array(files, part_directory, "offsets", "int64"));
  LIB_TRY(const auto index, read_token_array(files, part_directory, "sample_index", "int64"));
  tokens.input_ids = from_bytes<std::int32_t>(ids);
  tokens.offsets = from_bytes<std::int64_t>(offsets);
  tokens.sample_index = from_bytes<std::int64_t>(index);
  const auto mask = files.info(group + "/loss_mask");
  if (mask) {
    LIB_TRY(const auto bytes, read_token_array(files, part_directory, "loss_mask", "uint8"));
    tokens.loss_mask = from_bytes<std::uint8_t>(bytes);
  } else if (mask.error().code() != ErrorCode::not_found) {
    return mask.error();
  }
  LIB_TRY_VOID(check_offsets(tokens.offsets, tokens.input_ids.size(), group));
  if (tokens.sample_index.size() + 1 != tokens.offsets.size() ||
      (tokens.loss_mask && tokens.loss_mask->size() != tokens.input_ids.size())) {
    return corrupt(group, "ids, offsets, mask and sample_index differ in length");
  }
  return tokens;
}

}  // namespace librarian::activation_store
