// The 28 faults that five download tools were compared with, in the reference's order.

#include "fault_kinds.h"

namespace librarian::weightmap::remote::testing {
namespace {

using End = HttpAnswer::End;
using Target = FaultTarget;
constexpr auto kRight = FaultOutcome::right_bytes;
constexpr auto kError = FaultOutcome::clear_error;
constexpr auto kUnseen = FaultOutcome::undetectable;
constexpr const char* kGoesOn = "goes on from the first missing byte";
constexpr const char* kNoDigest = "needs a digest to tell";

HttpAnswer whole(const Blow& blow) {
  return {
      head("200 OK", {"ETag: \"v1\"", "Content-Length: " + std::to_string(blow.object.size())}) +
      blow.object};
}

// The right head over bytes from 4 further on.
HttpAnswer shifted(const Blow& blow) {
  HttpAnswer answer = honest(blow.object, blow.request);
  const ByteRange range = *blow.request.range;
  const std::size_t begin = answer.bytes.size() - range.size();
  answer.bytes.replace(begin, range.size(), blow.object.substr(range.begin + 4, range.size()));
  return answer;
}

// As a signing storage: every file redirects to a signed URL, the first of which has expired.
HttpAnswer expired_signature(const Blow& blow) {
  if (blow.request.target.rfind("/signed-", 0) != 0) {
    return redirect("/signed-" + std::to_string(blow.attempt) + "?signature=" + "anew");
  }
  return blow.request.target.rfind("/signed-0", 0) == 0 ? refusal("403 Forbidden")
                                                        : honest(blow.object, blow.request);
}

HttpAnswer portal_of_right_length(const Blow& blow) {
  HttpAnswer answer = with_head(blow, "\r\nETag: \"v1\"", "");
  // The opening is honest, but without anything that tells one object from another.
  if (blow.request.range->begin >= 100'000) {
    std::fill(answer.bytes.end() - static_cast<std::ptrdiff_t>(blow.request.range->size()),
              answer.bytes.end(), ' ');
  }
  return answer;
}

std::vector<FaultKind> first_half() {
  return {
      {"ResetInBody",
       "RST in the middle of a body, once",
       kGoesOn,
       Target::part,
       1,
       kRight,
       {},
       [](const Blow& blow) { return cut(blow, 150'000, End::reset); }},
      {"ResetEightTimes",
       "RST eight times, each with some progress",
       "goes on each time: progress resets the count of failures",
       Target::part,
       8,
       kRight,
       {},
       [](const Blow& blow) { return first_bytes(blow, 34'000, End::reset); }},
      {"EarlyFin",
       "FIN before Content-Length is reached, once",
       kGoesOn,
       Target::part,
       1,
       kRight,
       {},
       [](const Blow& blow) { return cut(blow, 150'000, End::close); }},
      {"ChunkedCut",
       "chunked body cut before its last chunk",
       kGoesOn,
       Target::part,
       1,
       kRight,
       {},
       [](const Blow& blow) -> HttpAnswer {
         return {head("206 x", {content_range(*blow.request.range, blow.object.size()),
                                "Transfer-Encoding: chunked", "ETag: \"v1\""}) +
                     chunked(body_of(blow).substr(0, 123'456)),
                 End::close};
       }},
      {"ChunkedShort",
       "chunked body that ends well, but short",
       kGoesOn,
       Target::part,
       1,
       kRight,
       {},
       [](const Blow& blow) -> HttpAnswer {
         return {head("206 x", {content_range(*blow.request.range, blow.object.size()),
                                "Transfer-Encoding: chunked", "ETag: \"v1\""}) +
                 chunked(body_of(blow).substr(0, 123'456)) + "0\r\n\r\n"};
       }},
      {"CloseDelimitedShort",
       "no length, the body's end is the FIN, and it comes early",
       kGoesOn,
       Target::part,
       1,
       kRight,
       {},
       [](const Blow& blow) -> HttpAnswer {
         return {head("206 x", {content_range(*blow.request.range, blow.object.size()),
                                "Connection: close", "ETag: \"v1\""}) +
                     body_of(blow).substr(0, 123'456),
                 End::close};
       }},
      {"ResetThenWholeFile",
       "RST, then 200 with the whole file",
       "takes the missing bytes out of it, drops the rest",
       Target::part,
       2,
       kRight,
       {},
       [](const Blow& blow) {
         return blow.attempt == 0 ? cut(blow, 150'000, End::reset) : whole(blow);
       }},
      {"AlwaysWholeFile",
       "Range is ignored: always 200 with the whole file",
       "takes the wanted bytes, then ends the connection",
       Target::everything,
       kAlways,
       kRight,
       {},
       [](const Blow& blow) { return whole(blow); }},
      {"ResetThenOtherRange",
       "RST, then 206 with another Content-Range",
       "drops it unread, asks again",
       Target::part,
       2,
       kRight,
       {},
       [](const Blow& blow) {
         if (blow.attempt == 0) {
           return cut(blow, 150'000, End::reset);
         }
         HttpRequest other = blow.request;
         other.range->begin += 4;
         return honest(blow.object, other);
       }},
      {"ResetThenShiftedBytes",
       "RST, then 206 with the right head over bytes shifted by 4",
       kNoDigest,
       Target::part,
       2,
       kUnseen,
       {},
       [](const Blow& blow) {
         return blow.attempt == 0 ? cut(blow, 150'000, End::reset) : shifted(blow);
       }},
      {"ReplacedObject", "the object is replaced: new bytes under a new ETag",
       "ends the job, nothing lands", Target::part, kAlways, kError, ErrorCode::source_changed,
       [](const Blow& blow) {
         HttpAnswer answer = with_head(blow, "\"v1\"", "\"v2\"");
         answer.bytes.back() = '?';
         return answer;
       }},
      {"BusyTwice",
       "503 twice",
       "waits with jitter, asks again",
       Target::part,
       2,
       kRight,
       {},
       [](const Blow&) { return refusal("503 Service Unavailable"); }},
      {"TooManyRequests",
       "429 with Retry-After: 1",
       "no request goes to the host before that time, cut to the longest wait",
       Target::part,
       1,
       kRight,
       {},
       [](const Blow&) { return refusal("429 Too Many Requests", {"Retry-After: 1"}); },
       {.waits_at_least_ms = 300}},
      {"AlwaysBroken", "500 always", "gives up after some failures in a row", Target::part, kAlways,
       kError, ErrorCode::unavailable,
       [](const Blow&) { return refusal("500 Internal Server Error"); }},
  };
}

std::vector<FaultKind> second_half() {
  return {
      {"ExpiredSignature",
       "403 from a signed URL that a redirect led to",
       "asks the origin for a new one",
       Target::everything,
       kAlways,
       kRight,
       {},
       expired_signature},
      {"StallInBody",
       "no byte any more in the middle of a body",
       "leaves after the stall time, goes on elsewhere",
       Target::part,
       1,
       kRight,
       {},
       [](const Blow& blow) { return cut(blow, 150'000, End::hang); }},
      {"Drip",
       "a byte now and then, once",
       "leaves what is slower than the floor",
       Target::part,
       1,
       kRight,
       {},
       [](const Blow& blow) {
         HttpAnswer answer = honest(blow.object, blow.request);
         answer.at_once = 500;
         answer.pause = std::chrono::milliseconds(50);
         return answer;
       }},
      {"GzipOnARange",
       "Content-Encoding: gzip on a range, though identity was asked",
       "drops it unread, asks again",
       Target::part,
       1,
       kRight,
       {},
       [](const Blow& blow) { return with_fields(blow, "Content-Encoding: gzip\r\n"); }},
      {"BitFlip",
       "one bit of a body is flipped",
       kNoDigest,
       Target::part,
       1,
       kUnseen,
       {},
       [](const Blow& blow) {
         HttpAnswer answer = honest(blow.object, blow.request);
         answer.bytes.back() = static_cast<char>(answer.bytes.back() ^ 1);
         return answer;
       }},
      {"ShortPortal",
       "200 with a short web page (captive portal)",
       "drops it unread, asks again",
       Target::part,
       1,
       kRight,
       {},
       [](const Blow&) -> HttpAnswer {
         return {head("200 OK", {"Content-Type: text/html", "Content-Length: 13"}) +
                 "<html></html>"};
       }},
      {"PortalOfTheRightLength",
       "other bytes of the right length, from a server without validators",
       kNoDigest,
       Target::everything,
       kAlways,
       kUnseen,
       {},
       portal_of_right_length},
      {"GarbageStatusLine", "garbage instead of a status line, always",
       "gives up after some failures in a row", Target::part, kAlways, kError,
       ErrorCode::unavailable,
       [](const Blow&) -> HttpAnswer {
         return {"\x16\x03garbage\r\n\r\n", End::close};
       }},
      {"HugeHead", "a head of 20 MB", "reads 64 KiB of it at most", Target::part, kAlways, kError,
       ErrorCode::unavailable,
       [](const Blow&) -> HttpAnswer {
         HttpAnswer answer{"HTTP/1.1 206 x\r\n", End::close};
         answer.endless = "X-Filler: " + std::string(988, 'x') + "\r\n";
         answer.endless_times = 20'000;
         return answer;
       }},
      {"RedirectToAnotherPort",
       "redirect to another port",
       "follows; no secret goes along",
       Target::part,
       kAlways,
       kRight,
       {},
       [](const Blow& blow) { return redirect(blow.elsewhere); }},
      {"RedirectLoop", "redirects in a loop", "follows five", Target::part, kAlways, kError,
       ErrorCode::bad_input, [](const Blow&) { return redirect("/model"); }},
      {"RedirectToAFile", "redirect to file:///etc/passwd", "refuses: http and https only",
       Target::part, kAlways, kError, ErrorCode::bad_input,
       [](const Blow&) { return redirect("file:///etc/passwd"); }},
      {"MoreThanTheLength",
       "more bytes than Content-Length",
       "ends the connection; takes what was announced",
       Target::part,
       1,
       kRight,
       {},
       [](const Blow& blow) {
         HttpAnswer answer = honest(blow.object, blow.request);
         answer.bytes += std::string(100'000, 'x');
         return answer;
       }},
      {"TwoLengths", "two Content-Lengths that disagree, always",
       "takes nothing, gives up after some failures in a row", Target::part, kAlways, kError,
       ErrorCode::unavailable,
       [](const Blow& blow) { return with_fields(blow, "Content-Length: 77\r\n"); }},
  };
}

}  // namespace

std::vector<FaultKind> compared_faults() {
  std::vector<FaultKind> all = first_half();
  for (FaultKind& kind : second_half()) {
    all.push_back(std::move(kind));
  }
  return all;
}

}  // namespace librarian::weightmap::remote::testing
