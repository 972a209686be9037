#include "ingest/source_pin.h"

#include "base/json.h"
#include "weightmap/remote/hub_place.h"

namespace librarian::ingest {
namespace {

using weightmap::remote::HubPlace;
using weightmap::remote::parse_hub_place;

constexpr const char* kName = "/.source";
constexpr std::uint64_t kBytesMax = 4096;
constexpr std::uint64_t kReportBytesMax = 64U << 20U;

/// The commit that `report.json`'s first run on the same repository was at.
std::optional<std::string> reported_commit(FileSystem& files, const std::string& store_directory,
                                           const HubPlace& place) {
  const std::string path = store_directory + "/report.json";
  const auto text = read_small_file(files, path, kReportBytesMax);
  const auto report = text ? parse_json(*text, path) : Result<Json>(text.error());
  if (!report || !report->contains("runs") || !(*report)["runs"].is_array()) {
    return std::nullopt;
  }
  for (const Json& run : (*report)["runs"]) {
    const auto model = json_string(run, "model", path);
    const auto was = model ? parse_hub_place(*model) : Result<HubPlace>(model.error());
    if (was && was->repo == place.repo && was->pinned()) {
      return was->revision;
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::string> read_source_pin(FileSystem& files, const std::string& store_directory,
                                           const std::string& place) {
  const auto parsed = parse_hub_place(place);
  if (!parsed || parsed->pinned()) {
    return std::nullopt;
  }
  const std::string path = store_directory + kName;
  const auto text = read_small_file(files, path, kBytesMax);
  const auto json = text ? parse_json(*text, path) : Result<Json>(text.error());
  if (json) {
    const auto known = json_string(*json, "place", path);
    const auto commit = json_string(*json, "commit", path);
    if (known && commit && *known == place && weightmap::remote::is_commit(*commit)) {
      return *commit;
    }
  }
  return reported_commit(files, store_directory, *parsed);
}

Result<void> write_source_pin(FileSystem& files, const std::string& store_directory,
                              const std::string& place, const std::string& commit) {
  if (read_source_pin(files, store_directory, place)) {
    return {};
  }
  return replace_file(files, store_directory + kName,
                      Json{{"place", place}, {"commit", commit}}.dump() + "\n");
}

Result<void> remove_source_pin(FileSystem& files, const std::string& store_directory) {
  return files.remove_file(store_directory + kName);
}

}  // namespace librarian::ingest
