#include "activation_store/skeleton_file.h"

#include <algorithm>
#include <set>

#include "activation_store/published_file.h"
#include "activation_store/store_files.h"
#include "activation_store/store_names.h"

namespace librarian::activation_store {
namespace {

constexpr std::uint64_t kVersion = 1;
constexpr const char* kTensorsKey = "xxh3_of_tensors";
constexpr std::uint64_t kPieceBytes = 4U << 20U;

std::string directory_of(const std::string& store_directory) {
  return store_directory + "/" + kSkeletonDirectory;
}

Error corrupt(const std::string& what, const std::string& reason) {
  return Error(ErrorCode::corrupt, what + ": " + reason);
}

template <typename T>
Result<T> ours(Result<T> value) {
  return value ? std::move(value) : Result<T>(value.error().with_code(ErrorCode::corrupt));
}

Result<SkeletonEntry> parse_entry(const Json& object, const std::string& what) {
  SkeletonEntry entry;
  LIB_TRY(entry.name, ours(json_string(object, "path", what)));
  LIB_TRY(entry.size, ours(json_uint(object, "size", what)));
  LIB_TRY(const std::string digest, ours(json_string(object, "xxh3", what)));
  LIB_TRY(entry.xxh3, ours(Digest128::from_hex(digest)));
  if (!is_safe_relative_path(entry.name) || entry.name.find('/') != std::string::npos) {
    return corrupt(what, "'" + entry.name + "' is not the name of a file in its directory");
  }
  return entry;
}

/// @return What is wrong with the file; empty: nothing.
Result<std::string> check_bytes(FileSystem& files, const std::string& path,
                                const SkeletonEntry& entry, VerifyReport& report,
                                const std::stop_token& stop) {
  auto file = files.open(path);
  if (!file) {
    return file.error().code() == ErrorCode::not_found ? Result<std::string>("the file is missing")
                                                       : file.error();
  }
  ++report.files_checked;
  LIB_TRY(const std::uint64_t size, (*file)->size());
  if (size != entry.size) {
    return std::to_string(size) + " bytes where librarian.json says " + std::to_string(entry.size);
  }
  StreamingXxh3 digest;
  std::vector<std::byte> piece(std::min(kPieceBytes, size));
  for (std::uint64_t at = 0; at < size; at += piece.size()) {
    if (stop.stop_requested()) {
      return Error(ErrorCode::cancelled, "stopped while verifying");
    }
    piece.resize(std::min<std::uint64_t>(kPieceBytes, size - at));
    LIB_TRY_VOID(read_exactly(**file, path, at, piece));
    digest.update(piece);
    report.bytes_checked += piece.size();
  }
  return digest.digest() == entry.xxh3
             ? std::string()
             : std::string("its bytes are not those that librarian.json states");
}

}  // namespace

std::string skeleton_file_text(const SkeletonFile& skeleton) {
  Json document;
  document["librarian_skeleton"] = kVersion;
  document["identity_digest"] = skeleton.identity_digest;
  document["files"] = Json::array();
  for (const SkeletonEntry& entry : skeleton.entries) {
    document["files"].push_back(
        {{"path", entry.name}, {"size", entry.size}, {"xxh3", entry.xxh3.hex()}});
  }
  document[kTensorsKey] = Json::object();
  for (const auto& [name, xxh3] : skeleton.tensors) {
    document[kTensorsKey][name] = xxh3;
  }
  return seal_json(document);
}

Result<SkeletonFile> read_skeleton_file(FileSystem& files, const std::string& store_directory) {
  const std::string path = directory_of(store_directory) + "/" + kSkeletonFileName;
  LIB_TRY(const std::string text, read_sealed_text(files, path));
  LIB_TRY(const Json document, open_sealed_json(text, path));
  LIB_TRY(const std::uint64_t version, ours(json_uint(document, "librarian_skeleton", path)));
  if (version > kVersion) {
    return Error(ErrorCode::bad_input, path + ": written in version " + std::to_string(version) +
                                           " of the format; this program knows version 1");
  }
  SkeletonFile skeleton;
  LIB_TRY(skeleton.identity_digest, ours(json_string(document, "identity_digest", path)));
  if (!document.contains("files") || !document["files"].is_array()) {
    return corrupt(path, "'files' is missing or no list");
  }
  std::set<std::string> names;
  for (const Json& object : document["files"]) {
    LIB_TRY(SkeletonEntry entry, parse_entry(object, path));
    if (!names.insert(entry.name).second) {
      return corrupt(path, "'" + entry.name + "' stands twice in it");
    }
    skeleton.entries.push_back(std::move(entry));
  }
  if (!document.contains(kTensorsKey) || !document[kTensorsKey].is_object()) {
    return corrupt(path, std::string("'") + kTensorsKey + "' is missing or no object");
  }
  for (const auto& [name, xxh3] : document[kTensorsKey].items()) {
    if (!xxh3.is_string()) {
      return corrupt(path, "the digest of '" + name + "' is no text");
    }
    skeleton.tensors[name] = xxh3.get<std::string>();
  }
  return skeleton;
}

Result<void> check_skeleton_sizes(FileSystem& files, const std::string& store_directory,
                                  const SkeletonFile& skeleton,
                                  const std::string& identity_digest) {
  const std::string directory = directory_of(store_directory);
  const std::string advice = "; remove " + directory + " and it is written again";
  if (skeleton.identity_digest != identity_digest) {
    return corrupt(directory + "/" + kSkeletonFileName, "belongs to another job" + advice);
  }
  for (const SkeletonEntry& entry : skeleton.entries) {
    const std::string path = directory + "/" + entry.name;
    const auto info = files.info(path);
    if (!info && info.error().code() != ErrorCode::not_found) {
      return info.error();
    }
    if (!info || info->kind != FileKind::file || info->size != entry.size) {
      return corrupt(path, "missing, or not of the size that librarian.json states" + advice);
    }
  }
  return {};
}

Result<void> verify_skeleton(FileSystem& files, const std::string& store_directory,
                             const std::string& identity_digest, bool asked, VerifyReport& report,
                             const std::stop_token& stop) {
  const auto skeleton = read_skeleton_file(files, store_directory);
  if (!skeleton && skeleton.error().code() == ErrorCode::not_found) {
    report.skeleton = asked ? SkeletonState::missing : SkeletonState::not_asked_for;
    return {};
  }
  const std::string prefix = std::string(kSkeletonDirectory) + "/";
  const std::size_t before = report.problems.size();
  if (!skeleton) {
    if (skeleton.error().code() != ErrorCode::corrupt) {
      return skeleton.error();
    }
    report.problems.push_back({prefix + kSkeletonFileName, skeleton.error().message()});
  } else {
    if (!identity_digest.empty() && skeleton->identity_digest != identity_digest) {
      report.problems.push_back(
          {prefix + kSkeletonFileName, "of another job than job.json: the identities differ"});
    }
    for (const SkeletonEntry& entry : skeleton->entries) {
      LIB_TRY(const std::string wrong,
              check_bytes(files, directory_of(store_directory) + "/" + entry.name, entry, report,
                          stop));
      if (!wrong.empty()) {
        report.problems.push_back({prefix + entry.name, wrong});
      }
    }
  }
  report.skeleton =
      report.problems.size() == before ? SkeletonState::complete : SkeletonState::damaged;
  return {};
}

}  // namespace librarian::activation_store
