#pragma once
/// Decides from an HTTP response's head alone what its body may be used for, before a byte of it
/// lands. Everything here is hostile input. Pure functions: no I/O, no clock, no curl handles.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote {

/// The lines of one response's head as they arrive. Interim (1xx) heads are forgotten when the
/// next one begins; the caps count all of them.
class ResponseHead {
 public:
  /// Takes one line, with or without its line end. An empty line completes the head.
  /// @error unavailable  above the caps, or not HTTP.
  Result<void> add_line(std::string_view line);

  bool complete() const { return complete_; }
  int status() const { return status_; }
  /// The field's value, trimmed; `name` in lower case. The first one, if there are several.
  std::optional<std::string> find(std::string_view name) const;
  /// The fields of this name do not all have the same value.
  bool contradicts_itself(std::string_view name) const;

 private:
  int status_ = 0;
  bool complete_ = false;
  std::uint64_t bytes_ = 0;
  std::vector<std::pair<std::string, std::string>> fields_;  // Name in lower case.
};

/// What was asked, and what the answer must fit.
struct ResponseExpectation {
  ByteRange range;                     ///< As asked; may reach past the end while opening.
  std::optional<ObjectInfo> expected;  ///< None while opening.
  bool redirected = false;             ///< The answer comes from where a redirect led.
  bool document = false;               ///< As in TransferRequest.
  std::int64_t wall_now_s = 0;         ///< Unix time, to read a Retry-After date.
};

struct ResponseVerdict {
  /// Set: the body is not what was asked; as in TransferResult.
  std::optional<Error> error;
  std::optional<Duration> retry_after;
  std::string location;          ///< Not empty: ask there instead; nothing else is set.
  ObjectInfo info;               ///< What the answer says the object is.
  ByteRange wanted;              ///< The asked range up to the object's end.
  bool whole = false;            ///< The body is the whole object (200), range or not.
  bool length_known = true;      ///< False: a document that is as long as its body.
  std::uint64_t body_begin = 0;  ///< Offset in the object of the body's first byte.
};

ResponseVerdict check_response(const ResponseHead& head, const ResponseExpectation& expectation);

/// What a 407 means, from a server or while a tunnel is opened.
Error proxy_wants_login();

/// "bytes 0-99/1000" as {0, 100} and 1000. None if it is anything else, "*" included.
/// @source RFC 9110 14.4; the last byte is counted inclusively there.
std::optional<std::pair<ByteRange, std::uint64_t>> parse_content_range(std::string_view text);

/// Seconds or an HTTP date, as a time from now; none if negative, past or unreadable. At most a
/// year.
std::optional<Duration> parse_retry_after(const std::string& text, std::int64_t wall_now_s);

/// How long a `RateLimit` field says that no request is left, as in `"resolvers";r=0;t=55`; none if
/// some are left or it is unreadable.
/// @source draft-ietf-httpapi-ratelimit-headers; the hub's documentation of its rate limits.
std::optional<Duration> parse_rate_limit(std::string_view text);

/// A strong validator as If-Match sends it; empty if there is none.
/// @source RFC 9110 13.1.1: If-Match uses the strong comparison.
std::string if_match_value(const std::optional<ObjectInfo>& expected);

}  // namespace librarian::weightmap::remote
