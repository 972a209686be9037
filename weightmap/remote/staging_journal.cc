// What the journal of a staged object holds: a header, the segments that are durable, the end.
#include <utility>

#include "base/journal.h"
#include "base/json.h"
#include "base/log.h"
#include "weightmap/remote/staging_directory.h"

namespace librarian::weightmap::remote {
namespace {

constexpr std::uint64_t kVersion = 1;

JsonLimits record_limits() {
  JsonLimits limits;
  limits.text_bytes_max = 64U << 20U;
  limits.values_max = 4U << 20U;
  return limits;
}

/// Adds what a record says. False: it is none of ours.
bool add_record(const Json& record, StagingJournal& journal) {
  const std::string what = "staging journal";
  if (record.contains("segments")) {
    if (!record["segments"].is_array()) {
      return false;
    }
    for (const Json& segment : record["segments"]) {
      if (!segment.is_array() || segment.size() != 2 || !segment[0].is_number_unsigned() ||
          !segment[1].is_number_unsigned() ||
          segment[0].get<std::uint64_t>() >= journal.segment_crcs.size() ||
          segment[1].get<std::uint64_t>() > 0xFFFFFFFFU) {
        return false;
      }
      journal.segment_crcs[segment[0].get<std::uint64_t>()] = segment[1].get<std::uint32_t>();
    }
    return true;
  }
  const auto sha256 = json_string(record, "sha256", what);
  if (!sha256) {
    return false;
  }
  journal.sha256 = *sha256;
  return true;
}

}  // namespace

std::string staging_header_record(std::uint64_t object_bytes, std::uint64_t segment_bytes) {
  return Json({{"librarian_staged", kVersion},
               {"bytes", object_bytes},
               {"segment_bytes", segment_bytes}})
      .dump();
}

std::string staging_segments_record(
    const std::vector<std::pair<std::uint64_t, std::uint32_t>>& segments) {
  Json list = Json::array();
  for (const auto& [segment, crc] : segments) {
    list.push_back(Json::array({segment, crc}));
  }
  return Json({{"segments", list}}).dump();
}

std::string staging_complete_record(const std::string& sha256) {
  return Json({{"sha256", sha256}}).dump();
}

Result<std::optional<StagingJournal>> read_staging_journal(FileSystem& files,
                                                           const std::string& path,
                                                           std::uint64_t object_bytes,
                                                           std::uint64_t segment_bytes) {
  const auto contents = read_journal(files, path);
  if (!contents) {
    const ErrorCode code = contents.error().code();
    if (code == ErrorCode::not_found) {
      return std::optional<StagingJournal>();
    }
    if (code != ErrorCode::corrupt && code != ErrorCode::bad_input) {
      return contents.error();
    }
    // What is staged can be fetched again: worth a word, not a stop.
    log(LogLevel::warning, "staging_journal_damaged", {{"path", path}});
    return std::optional<StagingJournal>();
  }
  StagingJournal journal;
  journal.segment_crcs.resize((object_bytes + segment_bytes - 1) / segment_bytes);
  for (std::size_t i = 0; i < contents->records.size(); ++i) {
    const auto record = parse_json(contents->records[i], path, record_limits());
    const bool usable = record && (i == 0 ? contents->records[0] ==
                                                staging_header_record(object_bytes, segment_bytes)
                                          : add_record(*record, journal));
    if (!usable) {
      return std::optional<StagingJournal>();
    }
  }
  return contents->records.empty() ? std::optional<StagingJournal>() : std::optional(journal);
}

}  // namespace librarian::weightmap::remote
