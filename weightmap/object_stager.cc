#include "weightmap/object_stager.h"

#include <algorithm>
#include <utility>

#include "base/digest.h"
#include "base/log.h"
#include "weightmap/remote/stated_digest.h"
#include "weightmap/safetensors_header.h"

namespace librarian::weightmap {

using remote::StagedObject;
using remote::StagingDirectory;
using remote::StagingHold;

Result<ObjectStager::Brought> ObjectStager::bring(const WeightFile& file, const std::string& key,
                                                  std::optional<std::uint64_t> checked_inode,
                                                  const std::set<std::string>& keep,
                                                  const std::stop_token& stop) {
  while (true) {
    LIB_TRY(StagingDirectory::Taken taken, directory_.take(key, file.info.size, keep, stop));
    if (!taken.hold) {
      return Brought{
          taken.state == StagingDirectory::State::busy ? Outcome::busy : Outcome::no_room,
          std::nullopt, nullptr, 0};
    }
    LIB_TRY(const FileInfo on_disk, files_.info(taken.hold->data_path()));
    if (taken.state == StagingDirectory::State::complete && checked_inode != on_disk.inode) {
      LIB_TRY(const StagedObject found, staging_.check(*taken.hold, stop));
      if (!found.matches || (!file.info.sha256.empty() && found.sha256 != file.info.sha256)) {
        log(LogLevel::warning, "staged_file_damaged", {{"path", taken.hold->data_path()}});
        LIB_TRY(const bool gone, directory_.remove(*std::move(taken.hold), stop));
        if (!gone) {
          // Others read it and must find out themselves.
          return Brought{Outcome::busy, std::nullopt, nullptr, 0};
        }
        continue;
      }
    } else if (taken.state == StagingDirectory::State::staging) {
      LIB_TRY_VOID(stage(file, *taken.hold, stop));
      LIB_TRY_VOID(directory_.completed(*taken.hold, stop));
    }
    LIB_TRY(std::unique_ptr<File> data, files_.open(taken.hold->data_path()));
    LIB_TRY_VOID(check_header(file, *data));
    return Brought{Outcome::ready, std::move(taken.hold), std::move(data), on_disk.inode};
  }
}

Result<void> ObjectStager::stage(const WeightFile& file, StagingHold& hold,
                                 const std::stop_token& stop) {
  LIB_TRY(const StagedObject staged, staging_.stage(file.object, file.info, hold, stop));
  if (staged.matches) {
    return {};
  }
  LIB_TRY_VOID(directory_.remove(std::move(hold), stop));
  return Error(ErrorCode::corrupt,
               uri_of(file) + ": the origin states " + remote::stated_digest_text(file.info) +
                   " and sent, twice, other bytes (SHA-256 " + staged.sha256 +
                   "); nothing was computed from them: try another mirror, or later");
}

/// The plan was made from a header that was fetched by itself.
Result<void> ObjectStager::check_header(const WeightFile& file, const File& data) const {
  constexpr std::uint64_t kStepBytes = 1U << 20U;
  const std::string where = uri_of(file);
  std::string bytes(kHeaderPrefixBytes, '\0');
  LIB_TRY_VOID(read_exactly(data, where, 0, std::as_writable_bytes(std::span(bytes))));
  LIB_TRY(const std::uint64_t json_bytes, header_json_bytes(bytes, file.info.size, where));
  StreamingSha256 sha256;
  for (std::uint64_t at = 0; at < json_bytes; at += kStepBytes) {
    bytes.resize(std::min(kStepBytes, json_bytes - at));
    const auto into = std::as_writable_bytes(std::span(bytes));
    LIB_TRY_VOID(read_exactly(data, where, kHeaderPrefixBytes + at, into));
    sha256.update(into);
  }
  if (sha256.finish() == file.header_sha256) {
    return {};
  }
  return Error(ErrorCode::corrupt,
               where + ": its header is not the one that this run began with; run it again");
}

}  // namespace librarian::weightmap
