#include "ingest/source_pin.h"

#include "base/json.h"
#include "weightmap/remote/hub_place.h"

namespace librarian::ingest {
namespace {

constexpr const char* kName = "/.source";
constexpr std::uint64_t kBytesMax = 4096;

}  // namespace

std::optional<std::string> read_source_pin(FileSystem& files, const std::string& store_directory,
                                           const std::string& place) {
  const std::string path = store_directory + kName;
  const auto text = read_small_file(files, path, kBytesMax);
  if (!text) {
    return std::nullopt;
  }
  const auto json = parse_json(*text, path);
  if (!json) {
    return std::nullopt;
  }
  const auto known = json_string(*json, "place", path);
  const auto commit = json_string(*json, "commit", path);
  return known && commit && *known == place && weightmap::remote::is_commit(*commit)
             ? std::optional(*commit)
             : std::nullopt;
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
