#include "activation_store/published_file.h"

#include "activation_store/store_names.h"

namespace librarian::activation_store {

Result<FileRecord> write_published(FileSystem& files, const std::string& directory,
                                   const std::string& path, const Pieces& pieces,
                                   const std::string& nonce) {
  FileRecord record{path, 0, 0};
  const std::string target = directory + "/" + path;
  const std::string temporary = partial_path(target, nonce);
  LIB_TRY(const std::unique_ptr<File> file, files.create(temporary));
  for (const std::span<const std::byte> piece : pieces) {
    LIB_TRY_VOID(file->append(piece));
    record.size += piece.size();
    record.crc32c = crc32c(piece, record.crc32c);
  }
  LIB_TRY_VOID(file->sync_data());
  LIB_TRY_VOID(files.rename(temporary, target));
  return record;
}

Result<std::string> read_sealed_text(FileSystem& files, const std::string& path,
                                     std::uint64_t bytes_max) {
  auto text = read_small_file(files, path, bytes_max);
  if (!text && text.error().code() == ErrorCode::bad_input) {
    return text.error().with_code(ErrorCode::corrupt);
  }
  return text;
}

}  // namespace librarian::activation_store
