// Clean-up by grammar: looks at everything first, and touches nothing if anything is foreign.
#include "activation_store/array_writer.h"
#include "activation_store/store_names.h"

namespace librarian::activation_store {
namespace {

struct Findings {
  std::vector<std::string> files;        // full paths
  std::vector<std::string> directories;  // children before parents
};

Error foreign(const std::string& path) {
  return Error(ErrorCode::conflict,
               path + " is not a file that this program writes; move it away, then run again");
}

bool is_our_file(const std::string& entry, const char* name) {
  return entry == name || is_partial_name(entry, name);
}

Result<void> expect_kind(FileSystem& files, const std::string& path, FileKind kind) {
  LIB_TRY(const FileInfo info, files.info(path));
  if (info.kind != kind) {
    return foreign(path);
  }
  return {};
}

Result<void> scan_shard_directory(FileSystem& files, const std::string& path, Findings& found) {
  LIB_TRY_VOID(expect_kind(files, path, FileKind::directory));
  LIB_TRY(const auto entries, files.list(path));
  for (const std::string& entry : entries) {
    if (!is_our_file(entry, "0")) {
      return foreign(path + "/" + entry);
    }
    LIB_TRY_VOID(expect_kind(files, path + "/" + entry, FileKind::file));
    found.files.push_back(path + "/" + entry);
  }
  found.directories.push_back(path);
  return {};
}

/// What lies directly below c/: directories with a shard each, or the shards of a vector.
Result<void> scan_shard(FileSystem& files, const std::string& directory, const std::string& name,
                        Findings& found) {
  const std::string path = directory + "/" + name;
  const std::string number = name.substr(0, name.find('.'));
  if (!parse_decimal(number) || !is_our_file(name, number.c_str())) {
    return foreign(path);
  }
  LIB_TRY(const FileInfo info, files.info(path));
  if (info.kind == FileKind::file) {
    found.files.push_back(path);
    return {};
  }
  return name == number ? scan_shard_directory(files, path, found) : foreign(path);
}

Result<Findings> scan_array(FileSystem& files, const std::string& array) {
  Findings found;
  LIB_TRY(const auto entries, files.list(array));
  for (const std::string& entry : entries) {
    const std::string path = array + "/" + entry;
    if (is_our_file(entry, "zarr.json")) {
      LIB_TRY_VOID(expect_kind(files, path, FileKind::file));
      // In front: without its zarr.json an array is no array, whatever happens after.
      found.files.insert(found.files.begin(), path);
    } else if (entry == "c") {
      LIB_TRY_VOID(expect_kind(files, path, FileKind::directory));
      LIB_TRY(const auto shards, files.list(path));
      for (const std::string& shard : shards) {
        LIB_TRY_VOID(scan_shard(files, path, shard, found));
      }
      found.directories.push_back(path);
    } else {
      return foreign(path);
    }
  }
  found.directories.push_back(array);
  return found;
}

}  // namespace

Result<void> remove_array(FileSystem& files, const std::string& directory,
                          const std::string& name) {
  if (!is_array_name(name)) {
    return Error(ErrorCode::invalid_argument, "not the name of an array: '" + name + "'");
  }
  const std::string array = directory + "/" + name;
  const auto info = files.info(array);
  if (!info && info.error().code() == ErrorCode::not_found) {
    return {};
  }
  LIB_TRY_VOID(info);
  if (info->kind != FileKind::directory) {
    return foreign(array);
  }
  LIB_TRY(const Findings found, scan_array(files, array));
  for (const std::string& file : found.files) {
    LIB_TRY_VOID(files.remove_file(file));
    if (file == array + "/zarr.json") {
      LIB_TRY_VOID(files.sync_directory(array));
    }
  }
  for (const std::string& path : found.directories) {
    LIB_TRY_VOID(files.remove_directory(path));
  }
  return files.sync_directory(directory);
}

}  // namespace librarian::activation_store
