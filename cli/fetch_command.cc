#include <algorithm>

#include "base/units.h"
#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/output.h"
#include "ingest/fetch_model.h"

namespace librarian::cli {
namespace {

using ingest::FetchedFile;

/// What the source offers to verify a file against.
const char* offer(const FetchedFile& file) {
  if (!file.offered_sha256.empty()) {
    return "sha256";
  }
  if (!file.offered_crc.empty()) {
    return "crc";
  }
  return file.validator_is_strong ? "strong ETag" : "nothing";
}

Json text_or_null(const std::string& text) { return text.empty() ? Json() : Json(text); }

void print_file_event(const FetchedFile& file) {
  print_event("fetch_file", {{"name", file.name},
                             {"bytes", file.bytes},
                             {"sha256", text_or_null(file.sha256)},
                             {"offers", offer(file)},
                             {"offered_sha256", text_or_null(file.offered_sha256)},
                             {"offered_crc", text_or_null(file.offered_crc)},
                             {"validator", text_or_null(file.validator)},
                             {"verified", ingest::verified_name(file.verified)},
                             {"fetched", file.fetched},
                             {"kept", file.kept}});
}

void print_file(const FetchedFile& file) {
  print(file.name + "\n");
  print(fact("size", format_count(file.bytes) + " bytes"));
  if (!file.sha256.empty()) {
    print(fact("sha256", file.sha256));
  }
  print(fact("offered", !file.offered_sha256.empty() ? "sha256 " + file.offered_sha256
                        : !file.offered_crc.empty()  ? file.offered_crc
                                                     : offer(file)));
  if (file.verified != FetchedFile::Verified::not_tried) {
    print(fact("verified", std::string(ingest::verified_name(file.verified)) +
                               (file.kept && !file.fetched ? " (was in the cache)"
                                : file.kept                ? " (kept in the cache)"
                                                           : "")));
  }
}

}  // namespace

Result<int> run_fetch(const Options& options, const std::stop_token& stop) {
  ingest::FetchModelOptions how;
  how.heads_only = options.verify_only;
  how.on_file = options.json ? print_file_event : print_file;
  LIB_TRY(const std::vector<FetchedFile> files,
          ingest::fetch_model(options.job, ingest::JobEnvironment::real(), how, stop));
  std::uint64_t bytes = 0;
  for (const FetchedFile& file : files) {
    bytes += file.bytes;
  }
  const auto count = [&](auto is) {
    return static_cast<std::uint64_t>(std::count_if(files.begin(), files.end(), is));
  };
  const std::uint64_t wrong =
      count([](const FetchedFile& file) { return file.verified == FetchedFile::Verified::no; });
  const std::uint64_t verified =
      count([](const FetchedFile& file) { return file.verified == FetchedFile::Verified::yes; });
  const std::uint64_t offered = count([](const FetchedFile& file) {
    return !file.offered_sha256.empty() || !file.offered_crc.empty();
  });
  if (options.json) {
    print_event("fetch", {{"files", files.size()},
                          {"bytes", bytes},
                          {"offered", offered},
                          {"verified", verified},
                          {"wrong", wrong}});
  } else {
    print(format_count(files.size()) + " files, " + format_bytes(bytes) +
          ": the source states digests of " + std::to_string(offered) +
          (options.verify_only ? ""
                               : ", " + std::to_string(verified) + " verified, " +
                                     std::to_string(wrong) + " wrong") +
          "\n");
  }
  return wrong == 0 ? kExitDone : kExitDamaged;
}

}  // namespace librarian::cli
