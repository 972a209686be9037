#pragma once
/// What an hf:// place names, and the hub's URLs for it. Pure functions.

#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote {

/// `hf://REPO@REVISION`, behind it `/PATH` once the revision is a commit, or `?QUERY` for what only
/// the hub's API knows.
struct HubPlace {
  std::string repo;      ///< "org/name", or "name" for the oldest models.
  std::string revision;  ///< Branch, tag, "refs/pr/N" or commit.
  std::string path;      ///< Of a file; empty: the repository.
  std::string query;
  bool pinned() const;  ///< The revision is a commit.
  std::string text() const;
};

/// @error invalid_argument  says what a place looks like.
Result<HubPlace> parse_hub_place(std::string_view text);

/// 40 lower-case hex digits.
bool is_commit(std::string_view text);

/// Percent-encodes all but unreserved characters and those in `kept`.
/// @source RFC 3986 2.3.
std::string percent_encode(std::string_view text, std::string_view kept);

/// When a signed URL stops being good, in seconds since the Unix epoch, as its query says.
std::optional<std::int64_t> signed_until(const Uri& url);

}  // namespace librarian::weightmap::remote
