#include "weightmap/remote/hub_place.h"

#include <curl/curl.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <map>

#include "base/text.h"

namespace librarian::weightmap::remote {
namespace {

constexpr std::string_view kScheme = "hf://";
constexpr std::size_t kCommitDigits = 40;
constexpr std::size_t kNameBytesMax = 96;  // What the hub allows.
constexpr std::size_t kRevisionBytesMax = 256;

Error not_a_place(const std::string& why) {
  return {ErrorCode::invalid_argument,
          "a hub model must look like hf://org/name or hf://org/name@revision: " + why};
}

bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= kNameBytesMax && text != "." && text != ".." &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
         });
}

bool is_revision(std::string_view text) {
  return !text.empty() && text.size() <= kRevisionBytesMax &&
         text.find("..") == std::string_view::npos &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 ||
                  std::string_view("-_./+").find(static_cast<char>(c)) != std::string_view::npos;
         });
}

std::optional<std::int64_t> number(const std::string& text) {
  std::int64_t value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  return code == std::errc() && end == text.data() + text.size() && value > 0 ? std::optional(value)
                                                                              : std::nullopt;
}

/// The URL's query parameters, names in lower case, values as they are.
std::map<std::string, std::string> parameters(const Uri& url) {
  std::map<std::string, std::string> found;
  const std::size_t mark = url.text.find('?');
  std::string_view rest =
      mark == std::string::npos ? std::string_view() : std::string_view(url.text).substr(mark + 1);
  while (!rest.empty()) {
    const std::string_view one = rest.substr(0, rest.find('&'));
    rest.remove_prefix(std::min(rest.size(), one.size() + 1));
    const std::size_t equals = one.find('=');
    if (equals != std::string_view::npos) {
      found.emplace(lower_case(one.substr(0, equals)), one.substr(equals + 1));
    }
  }
  return found;
}

}  // namespace

bool is_commit(std::string_view text) {
  return text.size() == kCommitDigits &&
         text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

bool HubPlace::pinned() const { return is_commit(revision); }

std::string HubPlace::text() const {
  return std::string(kScheme) + repo + "@" + revision + (path.empty() ? "" : "/" + path) +
         (query.empty() ? "" : "?" + query);
}

Result<HubPlace> parse_hub_place(std::string_view text) {
  if (!text.starts_with(kScheme)) {
    return not_a_place("it does not begin with hf://");
  }
  text.remove_prefix(kScheme.size());
  HubPlace place;
  if (const std::size_t mark = text.find('?'); mark != std::string_view::npos) {
    place.query = text.substr(mark + 1);
    text = text.substr(0, mark);
  }
  const std::size_t at = text.find('@');
  std::string_view repo = text.substr(0, at);
  if (repo.ends_with('/')) {
    repo.remove_suffix(1);
  }
  const std::size_t slash = repo.find('/');
  if (slash == std::string_view::npos
          ? !is_name(repo)
          : !is_name(repo.substr(0, slash)) || !is_name(repo.substr(slash + 1))) {
    return not_a_place("'" + std::string(repo) + "' is not the name of one");
  }
  place.repo = repo;
  place.revision = "main";
  if (at != std::string_view::npos) {
    std::string_view revision = text.substr(at + 1);
    // Only a commit may have a path behind it: branches contain slashes themselves.
    if (is_commit(revision.substr(0, kCommitDigits)) &&
        (revision.size() == kCommitDigits || revision[kCommitDigits] == '/')) {
      place.path = revision.substr(std::min(revision.size(), kCommitDigits + 1));
      revision = revision.substr(0, kCommitDigits);
    }
    if (!is_revision(revision)) {
      return not_a_place("'" + std::string(revision) + "' is not a revision");
    }
    place.revision = revision;
  }
  return place;
}

std::string percent_encode(std::string_view text, std::string_view kept) {
  constexpr std::string_view kHex = "0123456789ABCDEF";
  std::string encoded;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) != 0 || std::string_view("-._~").find(c) != std::string_view::npos ||
        kept.find(c) != std::string_view::npos) {
      encoded.push_back(c);
    } else {
      encoded += {'%', kHex[byte >> 4U], kHex[byte & 15U]};
    }
  }
  return encoded;
}

std::optional<std::int64_t> signed_until(const Uri& url) {
  const std::map<std::string, std::string> found = parameters(url);
  const auto value = [&](const char* name) -> std::optional<std::string> {
    const auto it = found.find(name);
    return it == found.end() ? std::nullopt : std::optional(it->second);
  };
  for (const char* name : {"expires", "exp", "se"}) {
    if (const auto text = value(name)) {
      if (const auto time = number(*text)) {
        return time;
      }
    }
  }
  for (const std::string prefix : {"x-amz-", "x-goog-"}) {
    const auto date = value((prefix + "date").c_str());
    const auto seconds = number(value((prefix + "expires").c_str()).value_or(""));
    // 20261128T190421Z
    if (!date || !seconds || date->size() != 16 || (*date)[8] != 'T') {
      continue;
    }
    const std::string readable = date->substr(0, 8) + " " + date->substr(9, 2) + ":" +
                                 date->substr(11, 2) + ":" + date->substr(13, 2) + " GMT";
    const std::int64_t begin = curl_getdate(readable.c_str(), nullptr);
    if (begin > 0) {
      return begin + *seconds;
    }
  }
  return std::nullopt;
}

}  // namespace librarian::weightmap::remote
