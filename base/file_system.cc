#include "base/file_system.h"

#include "base/random.h"

namespace librarian {

Result<std::string> read_small_file(FileSystem& files, const std::string& path,
                                    std::uint64_t bytes_max) {
  LIB_TRY(const std::unique_ptr<File> file, files.open(path));
  LIB_TRY(const std::uint64_t size, file->size());
  if (size > bytes_max) {
    return Error(ErrorCode::bad_input, path + ": " + std::to_string(size) +
                                           " bytes, more than the " + std::to_string(bytes_max) +
                                           " that are accepted");
  }
  std::string text(size, '\0');
  LIB_TRY(const std::size_t got, file->read_at(0, std::as_writable_bytes(std::span(text))));
  text.resize(got);
  return text;
}

Result<void> read_exactly(const File& file, const std::string& path, std::uint64_t offset,
                          std::span<std::byte> into) {
  LIB_TRY(const std::size_t got, file.read_at(offset, into));
  if (got != into.size()) {
    return Error(ErrorCode::corrupt, path + ": ends at byte " + std::to_string(offset + got) +
                                         ", where bytes " + std::to_string(offset) + " to " +
                                         std::to_string(offset + into.size()) + " are needed");
  }
  return {};
}

namespace {

using MakeDirectory = Result<void> (FileSystem::*)(const std::string& path);

Result<void> make_missing(FileSystem& files, const std::string& path, MakeDirectory make) {
  auto existing = files.info(path);
  if (existing && existing->kind == FileKind::directory) {
    return {};
  }
  const std::string parent = parent_path(path);
  if (parent != path) {
    LIB_TRY_VOID(make_missing(files, parent, make));
  }
  LIB_TRY_VOID((files.*make)(path));
  return files.sync_directory(parent);
}

}  // namespace

Result<void> make_directories(FileSystem& files, const std::string& path) {
  return make_missing(files, path, &FileSystem::make_directory);
}

Result<void> make_private_directories(FileSystem& files, const std::string& path) {
  return make_missing(files, path, &FileSystem::make_private_directory);
}

Result<void> replace_file(FileSystem& files, const std::string& path, std::string_view text) {
  const std::string temporary = path + ".partial-" + random_hex(8);
  {
    LIB_TRY(const std::unique_ptr<File> file, files.create(temporary));
    LIB_TRY_VOID(file->append(std::as_bytes(std::span(text))));
    LIB_TRY_VOID(file->sync_data());
  }
  LIB_TRY_VOID(files.rename(temporary, path));
  return files.sync_directory(parent_path(path));
}

bool is_temporary_name(const std::string& name) {
  static constexpr std::string_view kMark = ".partial-";
  const std::size_t at = name.rfind(kMark);
  if (at == std::string::npos) {
    return false;
  }
  const std::string_view nonce = std::string_view(name).substr(at + kMark.size());
  return !nonce.empty() && nonce.size() <= 32 &&
         nonce.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

Result<void> remove_temporaries(FileSystem& files, const std::string& path, int levels) {
  auto names = files.list(path);
  if (!names) {
    return names.error().code() == ErrorCode::not_found ? Result<void>() : names.error();
  }
  for (const std::string& name : *names) {
    const std::string below = path + "/" + name;
    if (is_temporary_name(name)) {
      LIB_TRY_VOID(files.remove_file(below));
    } else if (levels > 0) {
      LIB_TRY(const FileInfo info, files.info(below));
      if (info.kind == FileKind::directory) {
        LIB_TRY_VOID(remove_temporaries(files, below, levels - 1));
      }
    }
  }
  return {};
}

std::string parent_path(const std::string& path) {
  const std::size_t last = path.find_last_not_of('/');
  const std::size_t slash = last == std::string::npos ? std::string::npos : path.rfind('/', last);
  if (slash == std::string::npos) {
    return last == std::string::npos && !path.empty() ? "/" : ".";
  }
  const std::size_t end = path.find_last_not_of('/', slash);
  return end == std::string::npos ? "/" : path.substr(0, end + 1);
}

}  // namespace librarian
