// Heads that are malformed, too large, contradictory, or not of HTTP/1.1.

#include "fault_kinds.h"

namespace librarian::weightmap::remote::testing {
namespace {

using End = HttpAnswer::End;
using Target = FaultTarget;
constexpr auto kRight = FaultOutcome::right_bytes;
constexpr auto kError = FaultOutcome::clear_error;
constexpr const char* kAsksAgain = "drops it unread, asks again";
constexpr const char* kCapped = "reads 64 KiB of it at most";

FaultKind once(const std::string& name, const std::string& fault,
               std::function<HttpAnswer(const Blow&)> strike,
               const std::string& defence = kAsksAgain) {
  return {name, fault, defence, Target::part, 1, kRight, {}, std::move(strike)};
}

FaultKind always(const std::string& name, const std::string& fault,
                 std::function<HttpAnswer(const Blow&)> strike,
                 const std::string& says = "head is larger than 64 KiB") {
  FaultKind kind{name,
                 fault,
                 kCapped,
                 Target::part,
                 kAlways,
                 kError,
                 ErrorCode::unavailable,
                 std::move(strike)};
  kind.setup.says = says;
  return kind;
}

// The answer with another text for its length.
std::function<HttpAnswer(const Blow&)> length_of(const std::string& text) {
  return [=](const Blow& blow) {
    return with_head(blow, "Content-Length: " + std::to_string(blow.request.range->size()),
                     "Content-Length: " + text);
  };
}

std::function<HttpAnswer(const Blow&)> range_of(const std::string& text) {
  return [=](const Blow& blow) {
    return with_head(blow, content_range(*blow.request.range, blow.object.size()),
                     "Content-Range: " + text);
  };
}

// What an HTTP/2 server says first: an empty SETTINGS frame, then GOAWAY.
std::string http2_frames() {
  return std::string("\0\0\0\4\0\0\0\0\0", 9) +
         std::string("\0\0\x08\7\0\0\0\0\0\0\0\0\0\0\0\0\1", 17);
}

HttpAnswer line_feeds_only(const Blow& blow) {
  HttpAnswer answer = honest(blow.object, blow.request);
  const std::size_t end = answer.bytes.find("\r\n\r\n") + 4;
  std::string lines = answer.bytes.substr(0, end);
  for (std::size_t at = lines.find('\r'); at != std::string::npos; at = lines.find('\r')) {
    lines.erase(at, 1);
  }
  answer.bytes.replace(0, end, lines);
  return answer;
}

HttpAnswer after_interim(const Blow& blow, const std::string& interim) {
  HttpAnswer answer = honest(blow.object, blow.request);
  answer.bytes.insert(0, interim);
  return answer;
}

std::vector<FaultKind> sizes() {
  return {
      always("EndlessHead", "header fields without end",
             [](const Blow&) -> HttpAnswer {
               HttpAnswer answer{"HTTP/1.1 206 x\r\n"};
               answer.endless = "X-Filler: " + std::string(1000, 'x') + "\r\n";
               return answer;
             }),
      always(
          "EndlessHeaderField", "one header field without end",
          [](const Blow&) -> HttpAnswer {
            HttpAnswer answer{"HTTP/1.1 206 x\r\nX-Filler: "};
            answer.endless = std::string(4096, 'x');
            return answer;
          },
          "header field larger"),
      once("ManyHeaderFields", "10,000 header fields",
           [](const Blow& blow) {
             std::string fields;
             for (int i = 0; i < 10'000; ++i) {
               fields += "a: b\r\n";
             }
             return with_fields(blow, fields);
           }),
      always("InterimFlood", "interim (100) answers without end",
             [](const Blow&) -> HttpAnswer {
               HttpAnswer answer{};
               answer.endless = "HTTP/1.1 100 Continue\r\n\r\n";
               return answer;
             }),
      once(
          "SlowHead", "a head that comes a byte now and then",
          [](const Blow& blow) {
            HttpAnswer answer = honest(blow.object, blow.request);
            answer.at_once = 20;
            answer.pause = std::chrono::milliseconds(50);
            return answer;
          },
          "leaves what is slower than the floor"),
      once(
          "EndlessSlowHead", "a short header field now and then, without end",
          [](const Blow&) -> HttpAnswer {
            HttpAnswer answer{"HTTP/1.1 206 x\r\n"};
            answer.endless = "a: b\r\n";
            answer.pause = std::chrono::milliseconds(100);
            return answer;
          },
          "leaves what is slower than the floor"),
      once(
          "NoHead", "nothing at all: the request is never answered",
          [](const Blow&) -> HttpAnswer {
            return {"", End::hang};
          },
          "leaves after the stall time, asks elsewhere"),
      once(
          "EmptyAnswer", "FIN in place of an answer",
          [](const Blow&) -> HttpAnswer {
            return {"", End::close};
          },
          "asks again"),
      once(
          "HeadCut", "FIN in the middle of the head",
          [](const Blow& blow) -> HttpAnswer {
            return {honest(blow.object, blow.request).bytes.substr(0, 60), End::close};
          },
          "asks again"),
  };
}

std::vector<FaultKind> numbers() {
  return {
      once("NegativeLength", "Content-Length: -5", length_of("-5")),
      once("OverflowingLength", "Content-Length: 99999999999999999999999",
           length_of("99999999999999999999999")),
      once("LengthThatIsNoNumber", "Content-Length: 0x10", length_of("0x10")),
      once("LengthOfAnother", "a Content-Length that is not the range's", length_of("123")),
      once(
          "SameLengthTwice", "the right Content-Length twice",
          [](const Blow& blow) {
            return with_fields(
                blow, "Content-Length: " + std::to_string(blow.request.range->size()) + "\r\n");
          },
          "takes it: they agree"),
      once("ReversedRange", "Content-Range: bytes 9-5/3000001", range_of("bytes 9-5/3000001")),
      once("OverflowingRange", "a Content-Range beyond 64 bits",
           range_of("bytes 0-99999999999999999999999/99999999999999999999999")),
      once("TwoContentRanges", "two Content-Ranges that disagree",
           [](const Blow& blow) {
             return with_fields(blow, "Content-Range: bytes 0-1/3000001\r\n");
           }),
      once("OtherUnit", "Content-Range in another unit", range_of("items 0-9/3000001")),
  };
}

std::vector<FaultKind> shapes() {
  return {
      once("LineFeedsOnly", "a head whose lines end in LF alone", line_feeds_only, "takes it"),
      once("NulInHead", "a NUL byte in a header field",
           [](const Blow& blow) { return with_fields(blow, std::string("X-Odd: a\0b\r\n", 12)); }),
      once("FoldedField", "a header field folded over two lines",
           [](const Blow& blow) {
             return with_head(blow, "Content-Range: bytes ", "Content-Range: bytes\r\n ");
           }),
      once("SpaceBeforeColon", "a space between a field's name and its colon",
           [](const Blow& blow) { return with_head(blow, "Content-Length:", "Content-Length :"); }),
      once(
          "EarlyHints", "103 with another ETag before the answer",
          [](const Blow& blow) {
            return after_interim(blow, "HTTP/1.1 103 Early Hints\r\nETag: \"v9\"\r\n\r\n");
          },
          "forgets it when the answer comes"),
      once(
          "SwitchingProtocols", "101 although no other protocol was asked for",
          [](const Blow& blow) {
            HttpAnswer answer = after_interim(
                blow,
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n");
            answer.end = End::close;
            return answer;
          },
          "takes what is an answer, else asks again"),
      once("Http2Frames", "HTTP/2 frames (SETTINGS, GOAWAY) on HTTP/1.1",
           [](const Blow&) -> HttpAnswer {
             return {http2_frames(), End::close};
           }),
      once("Http2StatusLine", "HTTP/2 in the status line",
           [](const Blow& blow) { return with_head(blow, "HTTP/1.1", "HTTP/2"); }),
      once(
          "OldHttp", "HTTP/1.0",
          [](const Blow& blow) {
            HttpAnswer answer = with_head(blow, "HTTP/1.1", "HTTP/1.0");
            answer.end = End::close;
            return answer;
          },
          "takes it"),
      once("BodyBeforeHead", "the body comes before the head",
           [](const Blow& blow) -> HttpAnswer {
             return {body_of(blow) + honest(blow.object, blow.request).bytes, End::close};
           }),
      once("TwoCodings", "identity and another Content-Encoding",
           [](const Blow& blow) {
             return with_fields(blow, "Content-Encoding: identity\r\nContent-Encoding: br\r\n");
           }),
      once("OtherTransferCoding", "Transfer-Encoding: gzip, chunked",
           [](const Blow& blow) -> HttpAnswer {
             return {head("206 x", {content_range(*blow.request.range, blow.object.size()),
                                    "Transfer-Encoding: gzip, chunked", "ETag: \"v1\""}) +
                         chunked(body_of(blow)) + "0\r\n\r\n",
                     End::close};
           }),
  };
}

}  // namespace

std::vector<FaultKind> head_faults() {
  std::vector<FaultKind> all;
  for (auto* make : {sizes, numbers, shapes}) {
    for (FaultKind& kind : make()) {
      all.push_back(std::move(kind));
    }
  }
  return all;
}

}  // namespace librarian::weightmap::remote::testing
