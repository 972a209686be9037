#include "weightmap/remote/response_check.h"

#include <curl/curl.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <limits>

#include "base/text.h"

namespace librarian::weightmap::remote {
namespace {

constexpr std::string_view kDatePrefix = "last-modified:";
constexpr std::int64_t kRetryAfterSecondsMax = 365LL * 24 * 3600;

Error retry(const std::string& why) { return {ErrorCode::unavailable, why}; }

Error source_changed(const std::string& what) {
  return {ErrorCode::source_changed,
          what +
              ": the file was replaced while the job ran; start a new job, or put the old "
              "file back"};
}

std::string status_text(int status) { return "HTTP " + std::to_string(status); }

Error refused_status(int status, bool redirected) {
  const std::string text = status_text(status);
  if (redirected && (status == 400 || status == 401 || status == 403 || status == 410)) {
    // Most likely a signed URL that has expired; asking the origin again gives a new one.
    return retry(text + " from where the server redirects to");
  }
  switch (status) {
    case 401:
    case 403:
      return {ErrorCode::bad_input,
              text +
                  ": the server does not let us read this; check the URL, and whether it needs "
                  "a login or an accepted licence"};
    case 404:
    case 410:
      return {ErrorCode::not_found, text + ": the server has no such file; check the URL"};
    case 407:
      return proxy_wants_login();
    case 408:
    case 425:
    case 429:
      return retry(text);
    case 412:
      return source_changed(text);
    default:
      break;
  }
  const bool never_will = status == 501 || status == 505;  // What it is, not how it is just now.
  if ((status >= 500 && !never_will) || status < 300) {
    return retry(text);  // Also 2xx other than 200 and 206: not an answer to a range request.
  }
  return {ErrorCode::bad_input, text + ": the server refuses the request; check the URL"};
}

bool is_html(const ResponseHead& head) {
  const std::string type = lower_case(head.find("content-type").value_or(""));
  return type.rfind("text/html", 0) == 0 || type.rfind("application/xhtml", 0) == 0;
}

// Object stores report errors as XML, under 200 too; no file of a checkpoint is XML.
bool is_xml(const ResponseHead& head) {
  const std::string type = lower_case(head.find("content-type").value_or(""));
  return type.rfind("application/xml", 0) == 0 || type.rfind("text/xml", 0) == 0;
}

// Body codings would put other bytes in place than the object's.
std::optional<Error> check_codings(const ResponseHead& head) {
  const std::string coding = lower_case(head.find("content-encoding").value_or("identity"));
  if ((coding != "identity" && !coding.empty()) || head.contradicts_itself("content-encoding")) {
    return retry("the server compresses the body (Content-Encoding: " + coding +
                 ") although it was told not to");
  }
  const std::string transfer = lower_case(head.find("transfer-encoding").value_or("chunked"));
  if ((transfer != "chunked" && transfer != "identity") ||
      head.contradicts_itself("transfer-encoding")) {
    return retry("the server uses Transfer-Encoding: " + transfer);
  }
  if (lower_case(head.find("content-type").value_or("")).rfind("multipart/byteranges", 0) == 0) {
    return retry("the server sends multipart/byteranges for a single range");
  }
  return std::nullopt;
}

// What identifies the object; its size is filled in by the caller.
ObjectInfo validator_of(const ResponseHead& head) {
  ObjectInfo info;
  if (const auto tag = head.find("etag"); tag && !tag->empty()) {
    info.validator = *tag;
    // One quoted string: a quote inside would turn If-Match into a list.
    info.strong = tag->size() >= 2 && tag->front() == '"' && tag->find('"', 1) == tag->size() - 1;
  } else if (const auto date = head.find("last-modified"); date && !date->empty()) {
    info.validator = std::string(kDatePrefix) + *date;
  }
  return info;
}

std::optional<Error> check_identity(const ObjectInfo& info, const ObjectInfo& expected) {
  if (info.validator != expected.validator && !expected.validator.empty()) {
    const bool was_tag = expected.validator.rfind(kDatePrefix, 0) != 0;
    // Machines behind one name may differ in what they send: a date says nothing about a tag.
    if (info.validator.empty() || (info.validator.rfind(kDatePrefix, 0) != 0) != was_tag) {
      return retry(std::string("the server's answer lacks the ") +
                   (was_tag ? "ETag" : "Last-Modified") + " it gave before");
    }
    return source_changed("the ETag is now " + info.validator + ", it was " + expected.validator);
  }
  if (info.size != expected.size) {
    return source_changed("the size is now " + std::to_string(info.size) + " bytes, it was " +
                          std::to_string(expected.size));
  }
  return std::nullopt;
}

Error check_416(const ResponseHead& head, const ResponseExpectation& expectation) {
  const std::string range = head.find("content-range").value_or("");
  constexpr std::string_view kPrefix = "bytes */";
  std::optional<std::uint64_t> size;
  if (range.rfind(kPrefix, 0) == 0) {
    size = parse_u64(std::string_view(range).substr(kPrefix.size()));
  }
  if (expectation.expected && size && *size != expectation.expected->size) {
    return source_changed("the size is now " + std::to_string(*size) + " bytes, it was " +
                          std::to_string(expectation.expected->size));
  }
  if (!expectation.expected && expectation.range.begin == 0 && size == 0U) {
    return {ErrorCode::bad_input, "the file is empty; check the URL"};
  }
  // Never an end of file: the range lies inside the object.
  return retry("HTTP 416 for a range inside the file");
}

ResponseVerdict check_document(ResponseVerdict verdict, int status,
                               std::optional<std::uint64_t> length, const ByteRange& room) {
  if (status != 200) {
    verdict.error = retry(status_text(status) + " where no range was asked");
  } else if (length.value_or(0) > room.end) {
    verdict.error = Error(ErrorCode::bad_input,
                          "the answer has " + std::to_string(*length) + " bytes, more than the " +
                              std::to_string(room.end) + " that make sense here; check the URL");
  }
  verdict.length_known = length.has_value();
  verdict.wanted = {0, length.value_or(room.end)};
  verdict.info.size = verdict.wanted.end;
  return verdict;
}

}  // namespace

Error proxy_wants_login() {
  return {ErrorCode::bad_input,
          "HTTP 407: the proxy wants a login; check http_proxy and https_proxy"};
}

std::optional<std::pair<ByteRange, std::uint64_t>> parse_content_range(std::string_view text) {
  constexpr std::string_view kUnit = "bytes ";
  if (lower_case(text.substr(0, kUnit.size())) != kUnit) {
    return std::nullopt;
  }
  text.remove_prefix(kUnit.size());
  const std::size_t dash = text.find('-');
  const std::size_t slash = text.find('/');
  if (dash == std::string_view::npos || slash == std::string_view::npos || slash < dash) {
    return std::nullopt;
  }
  const auto first = parse_u64(text.substr(0, dash));
  const auto last = parse_u64(text.substr(dash + 1, slash - dash - 1));
  const auto total = parse_u64(text.substr(slash + 1));
  if (!first || !last || !total || *last < *first || *last >= *total) {
    return std::nullopt;
  }
  return std::pair{ByteRange{*first, *last + 1}, *total};
}

std::optional<Duration> parse_retry_after(const std::string& text, std::int64_t wall_now_s) {
  std::int64_t seconds = 0;
  const bool digits = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
  if (digits) {
    const auto value = parse_u64(text);
    seconds = value && *value < static_cast<std::uint64_t>(kRetryAfterSecondsMax)
                  ? static_cast<std::int64_t>(*value)
                  : kRetryAfterSecondsMax;
  } else if (text.find("GMT") != std::string::npos) {
    const std::int64_t date = curl_getdate(text.c_str(), nullptr);
    if (date < 0 || date < wall_now_s) {
      return std::nullopt;
    }
    seconds = std::min(date - wall_now_s, kRetryAfterSecondsMax);
  } else {
    return std::nullopt;
  }
  return std::chrono::seconds(seconds);
}

std::optional<Duration> parse_rate_limit(std::string_view text) {
  std::optional<std::uint64_t> left;
  std::optional<std::uint64_t> seconds;
  while (!text.empty()) {
    std::string_view part = text.substr(0, text.find(';'));
    text.remove_prefix(std::min(text.size(), part.size() + 1));
    while (part.starts_with(' ')) {
      part.remove_prefix(1);
    }
    if (part.starts_with("r=")) {
      left = parse_u64(part.substr(2));
    } else if (part.starts_with("t=")) {
      seconds = parse_u64(part.substr(2));
    }
  }
  if (left != 0U || !seconds || *seconds > static_cast<std::uint64_t>(kRetryAfterSecondsMax)) {
    return std::nullopt;
  }
  // It counts whole seconds: one more, or the request comes just before the window's end.
  return std::chrono::seconds(*seconds + 1);
}

std::string if_match_value(const std::optional<ObjectInfo>& expected) {
  return expected && expected->strong ? expected->validator : std::string();
}

ResponseVerdict check_response(const ResponseHead& head, const ResponseExpectation& expectation) {
  ResponseVerdict verdict;
  const auto refuse = [&](Error error) {
    verdict.error = std::move(error);
    return verdict;
  };
  const int status = head.status();
  if (const auto after = head.find("retry-after"); after && status >= 400) {
    verdict.retry_after = parse_retry_after(*after, expectation.wall_now_s);
  } else if (const auto limit = head.find("ratelimit"); limit && status >= 400) {
    verdict.retry_after = parse_rate_limit(*limit);
  }
  if (status == 301 || status == 302 || status == 303 || status == 307 || status == 308) {
    if (head.contradicts_itself("location") || head.find("location").value_or("").empty()) {
      return refuse(retry(status_text(status) + " without one place to go to"));
    }
    verdict.location = *head.find("location");
    return verdict;
  }
  if (status == 416) {
    return refuse(check_416(head, expectation));
  }
  if (status != 200 && status != 206) {
    return refuse(refused_status(status, expectation.redirected));
  }
  if (is_html(head)) {
    // A log-in page, or a portal between us and the server.
    return refuse(expectation.expected
                      ? retry("the server answers with a web page instead of the file")
                      : Error(ErrorCode::bad_input,
                              "the server answers with a web page instead of the file; check the "
                              "URL, and whether it needs a login or an accepted licence"));
  }
  if (is_xml(head) && !expectation.document) {
    return refuse(retry("the server answers with an XML error instead of the file"));
  }
  if (auto error = check_codings(head)) {
    return refuse(*std::move(error));
  }
  const auto length_text = head.find("content-length");
  const auto length = length_text ? parse_u64(*length_text) : std::nullopt;
  if (head.contradicts_itself("content-length") || (length_text && !length)) {
    return refuse(retry("the server gives contradicting or unreadable lengths"));
  }
  if (expectation.document) {
    return check_document(std::move(verdict), status, length, expectation.range);
  }
  verdict.info = validator_of(head);
  if (head.contradicts_itself("etag")) {
    return refuse(retry("the server gives two ETags"));
  }
  ByteRange body;
  if (status == 206) {
    const auto range = parse_content_range(head.find("content-range").value_or(""));
    if (!range || head.contradicts_itself("content-range")) {
      return refuse(retry("HTTP 206 without one readable Content-Range"));
    }
    body = range->first;
    verdict.info.size = range->second;
  } else {
    if (!length) {
      return refuse(Error(ErrorCode::bad_input,
                          "the server says neither the file's size nor does it serve ranges; use "
                          "a server that does (any of nginx, Apache, Caddy, S3)"));
    }
    body = {0, *length};
    verdict.info.size = *length;
  }
  if (expectation.expected) {
    if (auto error = check_identity(verdict.info, *expectation.expected)) {
      return refuse(*std::move(error));
    }
  }
  verdict.wanted = {std::min(expectation.range.begin, verdict.info.size),
                    std::min(expectation.range.end, verdict.info.size)};
  if (status == 206 && length && *length != body.size()) {
    return refuse(retry("the server announces " + std::to_string(*length) +
                        " bytes instead of the range's " + std::to_string(body.size())));
  }
  if (status == 206 && body != verdict.wanted) {
    return refuse(retry("the server sent bytes [" + std::to_string(body.begin) + ", " +
                        std::to_string(body.end) + ") instead of [" +
                        std::to_string(verdict.wanted.begin) + ", " +
                        std::to_string(verdict.wanted.end) + ")"));
  }
  verdict.body_begin = body.begin;
  verdict.whole = status == 200;
  return verdict;
}

}  // namespace librarian::weightmap::remote
