// Statuses and what comes with them: 416, validators, refusals, Retry-After.

#include <ctime>

#include "fault_kinds.h"

namespace librarian::weightmap::remote::testing {
namespace {

using End = HttpAnswer::End;
using Target = FaultTarget;
constexpr auto kRight = FaultOutcome::right_bytes;
constexpr auto kError = FaultOutcome::clear_error;
constexpr const char* kAsksAgain = "drops it unread, asks again";
constexpr const char* kGivesUp = "takes nothing, gives up after some failures in a row";
constexpr const char* kEnds = "ends at once: asking again would not help";
constexpr const char* kRetryAfterCut = "waits no longer than the longest wait, asks again";

constexpr const char* kS3Error =
    R"(<?xml version="1.0" encoding="UTF-8"?><Error><Code>InternalError</Code></Error>)";

HttpAnswer s3_error(const Blow&) {
  return {head("200 OK", {"Content-Type: application/xml",
                          "Content-Length: " + std::to_string(std::string(kS3Error).size())}) +
          kS3Error};
}

HttpAnswer expired_token(const Blow& blow) {
  if (blow.request.target.rfind("/signed-", 0) != 0) {
    return redirect("/signed-" + std::to_string(blow.attempt));
  }
  return blow.request.target == "/signed-0" ? refusal("400 ExpiredToken")
                                            : honest(blow.object, blow.request);
}

std::function<HttpAnswer(const Blow&)> refuses(const std::string& status,
                                               const std::string& field = "") {
  return [=](const Blow&) { return field.empty() ? refusal(status) : refusal(status, {field}); };
}

HttpAnswer retry_after_a_date(const Blow&) {
  const std::time_t later = std::time(nullptr) + 3600;
  std::tm parts{};
  char text[64];
  std::strftime(&text[0], sizeof text, "Retry-After: %a, %d %b %Y %H:%M:%S GMT",
                ::gmtime_r(&later, &parts));
  return refusal("503 Service Unavailable", {&text[0]});
}

HttpAnswer weak_tag(const Blow& blow) {
  return blow.request.headers.count("if-match") != 0
             ? refusal("412 Precondition Failed")
             : with_head(blow, "ETag: \"v1\"", "ETag: W/\"v1\"");
}

std::vector<FaultKind> range_and_validator_faults() {
  const std::string size = std::to_string(3'000'001);
  return {
      {"NotSatisfiableMidFile",
       "416 for a range inside the file, once",
       "asks again: never an end of file",
       Target::part,
       1,
       kRight,
       {},
       refuses("416 Range Not Satisfiable", "Content-Range: bytes */" + size)},
      {"NotSatisfiableAlways", "416 for a range inside the file, always",
       "never an end of file: gives up after some failures in a row", Target::part, kAlways, kError,
       ErrorCode::unavailable,
       refuses("416 Range Not Satisfiable", "Content-Range: bytes */" + size)},
      {"NotSatisfiableAtTheEnd",
       "416 for the range that ends with the file, once",
       "asks again: never an end of file",
       Target::last_part,
       1,
       kRight,
       {},
       refuses("416 Range Not Satisfiable", "Content-Range: bytes */" + size)},
      {"NotSatisfiableOfAnotherSize", "416 that names another size", "ends the job", Target::part,
       kAlways, kError, ErrorCode::source_changed,
       refuses("416 Range Not Satisfiable", "Content-Range: bytes */150")},
      {"UnknownTotal",
       "206 with * for the total, once",
       kAsksAgain,
       Target::part,
       1,
       kRight,
       {},
       [=](const Blow& blow) { return with_head(blow, "/" + size, "/*"); }},
      {"UnknownTotalWhenOpening", "206 with * for the total, always", kGivesUp, Target::everything,
       kAlways, kError, ErrorCode::unavailable,
       [=](const Blow& blow) { return with_head(blow, "/" + size, "/*"); }},
      {"MultipartRanges",
       "multipart/byteranges for one range",
       kAsksAgain,
       Target::part,
       1,
       kRight,
       {},
       [](const Blow& blow) -> HttpAnswer {
         const std::string body = "--x\r\nContent-Type: application/octet-stream\r\n" +
                                  content_range(*blow.request.range, blow.object.size()) +
                                  "\r\n\r\n" + body_of(blow) + "\r\n--x--\r\n";
         return {head("206 x", {"Content-Type: multipart/byteranges; boundary=x", "ETag: \"v1\"",
                                "Content-Length: " + std::to_string(body.size())}) +
                 body};
       }},
      {"WeakTag",
       "weak ETags; If-Match with one is answered 412",
       "compares it itself, never sends it in If-Match",
       Target::everything,
       kAlways,
       kRight,
       {},
       weak_tag},
      {"TagMissing",
       "no ETag on a later part, once",
       kAsksAgain,
       Target::part,
       1,
       kRight,
       {},
       [](const Blow& blow) { return with_head(blow, "\r\nETag: \"v1\"", ""); }},
      {"TagMissingAlways", "no ETag on a later part, always", kGivesUp, Target::part, kAlways,
       kError, ErrorCode::unavailable,
       [](const Blow& blow) { return with_head(blow, "\r\nETag: \"v1\"", ""); }},
      {"DateInPlaceOfATag",
       "Last-Modified but no ETag on a later part, once",
       kAsksAgain,
       Target::part,
       1,
       kRight,
       {},
       [](const Blow& blow) {
         return with_head(blow, "ETag: \"v1\"", "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT");
       }},
      {"TwoTags",
       "two ETags that disagree, once",
       kAsksAgain,
       Target::part,
       1,
       kRight,
       {},
       [](const Blow& blow) { return with_fields(blow, "ETag: \"v2\"\r\n"); }},
      {"PreconditionFailed", "412 to If-Match", "ends the job", Target::part, kAlways, kError,
       ErrorCode::source_changed, refuses("412 Precondition Failed")},
      {"OtherTotal", "the same ETag, but the object is one byte shorter", "ends the job",
       Target::part, kAlways, kError, ErrorCode::source_changed,
       [=](const Blow& blow) { return with_head(blow, "/" + size, "/3000000"); }},
  };
}

std::vector<FaultKind> refusals() {
  return {
      {"GoneMidJob", "404 in the middle of a job", kEnds, Target::part, kAlways, kError,
       ErrorCode::bad_input, refuses("404 Not Found")},
      {"GoneForGood", "410 in the middle of a job", kEnds, Target::part, kAlways, kError,
       ErrorCode::bad_input, refuses("410 Gone")},
      {"LoginMidJob", "401 at the origin in the middle of a job", kEnds, Target::part, kAlways,
       kError, ErrorCode::bad_input, refuses("401 Unauthorized")},
      {"NoSuchFile", "404 at the start", kEnds, Target::opening, kAlways, kError,
       ErrorCode::not_found, refuses("404 Not Found")},
      {"Forbidden", "403 at the start", kEnds, Target::opening, kAlways, kError,
       ErrorCode::bad_input, refuses("403 Forbidden")},
      {"PortalAtTheStart", "200 with a web page at the start, always", kEnds, Target::opening,
       kAlways, kError, ErrorCode::bad_input,
       [](const Blow&) -> HttpAnswer {
         return {head("200 OK", {"Content-Type: text/html", "Content-Length: 13"}) +
                 "<html></html>"};
       }},
      {"ExpiredToken",
       "400 ExpiredToken from where a redirect led to",
       "asks the origin for a new one",
       Target::everything,
       kAlways,
       kRight,
       {},
       expired_token},
      {"ErrorBodyUnder200",
       "S3: 200 with an XML error as its body, once",
       kAsksAgain,
       Target::part,
       1,
       kRight,
       {},
       s3_error},
      {"ErrorBodyAtTheStart",
       "S3: 200 with an XML error as its body, at the start, once",
       kAsksAgain,
       Target::opening,
       1,
       kRight,
       {},
       s3_error},
      {"NoContent",
       "204 for a range, once",
       kAsksAgain,
       Target::part,
       1,
       kRight,
       {},
       [](const Blow&) -> HttpAnswer { return {head("204 No Content", {})}; }},
      {"NotModified", "304 for a range", kEnds, Target::part, kAlways, kError, ErrorCode::bad_input,
       [](const Blow&) -> HttpAnswer { return {head("304 Not Modified", {})}; }},
      {"SlowDownStorm",
       "503 SlowDown to every part, three times",
       "waits with jitter, asks again",
       Target::all_parts,
       3,
       kRight,
       {},
       refuses("503 Slow Down", "Retry-After: 0")},
      {"RetryAfterDate",
       "Retry-After: a date in an hour",
       kRetryAfterCut,
       Target::part,
       1,
       kRight,
       {},
       retry_after_a_date,
       {.waits_at_least_ms = 300}},
      {"RetryAfterNegative",
       "Retry-After: -5",
       "takes no notice of it, asks again",
       Target::part,
       1,
       kRight,
       {},
       refuses("503 Service Unavailable", "Retry-After: -5")},
      {"RetryAfterBillion",
       "Retry-After: 1000000000",
       kRetryAfterCut,
       Target::part,
       1,
       kRight,
       {},
       refuses("503 Service Unavailable", "Retry-After: 1000000000"),
       {.waits_at_least_ms = 300}},
      {"RetryAfterNonsense",
       "Retry-After: soon",
       "takes no notice of it, asks again",
       Target::part,
       1,
       kRight,
       {},
       refuses("503 Service Unavailable", "Retry-After: soon")},
  };
}

}  // namespace

std::vector<FaultKind> status_faults() {
  std::vector<FaultKind> all = range_and_validator_faults();
  for (FaultKind& kind : refusals()) {
    all.push_back(std::move(kind));
  }
  return all;
}

}  // namespace librarian::weightmap::remote::testing
