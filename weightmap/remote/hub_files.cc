#include "weightmap/remote/hub_files.h"

#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <iterator>
#include <set>

#include "base/json.h"

namespace librarian::weightmap::remote {
namespace {

constexpr std::streamsize kSmallFileBytesMax = 4096;
constexpr std::size_t kIndexBytesMax = 256U << 20U;

std::string value(const Environment& environment, const char* name) {
  return environment(name).value_or("");
}

std::string hub_home(const Environment& environment) {
  if (std::string home = value(environment, "HF_HOME"); !home.empty()) {
    return home;
  }
  if (std::string cache = value(environment, "XDG_CACHE_HOME"); !cache.empty()) {
    return cache + "/huggingface";
  }
  return value(environment, "HOME") + "/.cache/huggingface";
}

std::string trimmed(std::string text) {
  const auto is_space = [](unsigned char c) { return std::isspace(c) != 0; };
  text.erase(text.begin(), std::find_if_not(text.begin(), text.end(), is_space));
  text.erase(std::find_if_not(text.rbegin(), text.rend(), is_space).base(), text.end());
  return text;
}

std::optional<std::string> read_line(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kSmallFileBytesMax, '\0');
  file.read(text.data(), kSmallFileBytesMax);
  if (file.bad() || file.gcount() == 0) {
    return std::nullopt;
  }
  text.resize(static_cast<std::size_t>(file.gcount()));
  return trimmed(std::move(text));
}

std::string repository_directory(const Environment& environment, const HubPlace& place) {
  std::string cache = value(environment, "HF_HUB_CACHE");
  if (cache.empty()) {
    cache = hub_home(environment) + "/hub";
  }
  std::string name = place.repo;
  if (const std::size_t slash = name.find('/'); slash != std::string::npos) {
    name.replace(slash, 1, "--");
  }
  return cache + "/models--" + name;
}

/// Follows the links that the cache is made of.
bool is_there(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
}

/// The weight files that a snapshot must have. What is wrong with an index is found when the model
/// is read.
std::set<std::string> weight_file_names(const std::string& directory) {
  const std::string index = directory + "/model.safetensors.index.json";
  std::ifstream file(index, std::ios::binary);
  if (!file) {
    return {"model.safetensors"};
  }
  std::string text{std::istreambuf_iterator<char>(file), {}};
  JsonLimits limits;
  limits.text_bytes_max = kIndexBytesMax;
  limits.values_max = kIndexBytesMax;
  const auto json = parse_json(text, index, limits);
  std::set<std::string> names;
  if (json && json->contains("weight_map") && (*json)["weight_map"].is_object()) {
    for (const auto& [tensor, name] : (*json)["weight_map"].items()) {
      if (name.is_string()) {
        names.insert(name.get<std::string>());
      }
    }
  }
  return names;
}

}  // namespace

Result<std::string> find_hub_token(const Environment& environment) {
  std::string where = "HF_TOKEN";
  std::string token = trimmed(value(environment, "HF_TOKEN"));
  if (token.empty()) {
    where = value(environment, "HF_TOKEN_PATH");
    if (where.empty()) {
      where = hub_home(environment) + "/token";
    }
    token = read_line(where).value_or("");
  }
  const bool sendable =
      std::all_of(token.begin(), token.end(), [](unsigned char c) { return std::isgraph(c) != 0; });
  if (!sendable) {
    return Error(ErrorCode::invalid_argument,
                 where + ": holds something else than one token; log in again");
  }
  return token;
}

std::optional<std::string> cached_commit(const Environment& environment, const HubPlace& place) {
  if (place.pinned()) {
    return place.revision;
  }
  const auto commit =
      read_line(repository_directory(environment, place) + "/refs/" + place.revision);
  return commit && is_commit(*commit) ? commit : std::nullopt;
}

std::optional<std::string> cached_snapshot(const Environment& environment, const HubPlace& place) {
  std::string directory = repository_directory(environment, place) + "/snapshots/" + place.revision;
  if (!is_there(directory + "/config.json")) {
    return std::nullopt;
  }
  const auto names = weight_file_names(directory);
  const bool whole = std::all_of(names.begin(), names.end(), [&](const std::string& name) {
    return is_there(directory + "/" + name);
  });
  return whole ? std::optional(std::move(directory)) : std::nullopt;
}

}  // namespace librarian::weightmap::remote
