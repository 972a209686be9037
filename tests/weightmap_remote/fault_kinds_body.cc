// Bodies without end or measure, and connections that do not do as their answers say.

#include "fault_kinds.h"

namespace librarian::weightmap::remote::testing {
namespace {

using End = HttpAnswer::End;
using Target = FaultTarget;
constexpr auto kRight = FaultOutcome::right_bytes;
constexpr auto kError = FaultOutcome::clear_error;
constexpr const char* kOverrun = "ends the connection at the range's end, believes none of it";
constexpr const char* kAsksAgain = "drops it, asks again";

FaultKind once(const std::string& name, const std::string& fault, const std::string& defence,
               std::function<HttpAnswer(const Blow&)> strike) {
  return {name, fault, defence, Target::part, 1, kRight, {}, std::move(strike)};
}

std::string chunked_head(const Blow& blow) {
  return head("206 x", {content_range(*blow.request.range, blow.object.size()),
                        "Transfer-Encoding: chunked", "ETag: \"v1\""});
}

HttpAnswer endless_chunks(const Blow& blow) {
  HttpAnswer answer{chunked_head(blow) + chunked(body_of(blow))};
  answer.endless = chunked(std::string(10'000, 'x'));
  return answer;
}

HttpAnswer terabyte_range(const Blow& blow) {
  HttpAnswer answer{with_head(blow, "Content-Length: " + std::to_string(blow.request.range->size()),
                              "Content-Length: 1099511627776")};
  answer.endless = std::string(10'000, 'x');
  return answer;
}

HttpAnswer terabyte_file(const Blow& blow) {
  HttpAnswer answer{head("200 OK", {"ETag: \"v1\"", "Content-Length: 1099511627776"}) +
                    blow.object};
  answer.endless = std::string(10'000, 'x');
  return answer;
}

std::vector<FaultKind> endless() {
  return {
      {"TerabyteRange", "a range of 1 TB, sent without end", "drops it unread, gives up",
       Target::part, kAlways, kError, ErrorCode::unavailable, terabyte_range},
      {"TerabyteFile", "200 with 1 TB in the middle of a job", "ends the job: the size has changed",
       Target::part, kAlways, kError, ErrorCode::source_changed, terabyte_file},
      {"TerabyteDocument", "a small file (config.json) of 1 TB", "reads its first MiB at most",
       Target::document, kAlways, kError, ErrorCode::bad_input, terabyte_file},
      {"CompressedBomb", "a small file (config.json) under gzip, though identity was asked",
       "never unpacks: drops it unread, gives up", Target::document, kAlways, kError,
       ErrorCode::unavailable,
       [](const Blow&) -> HttpAnswer {
         return {head("200 OK", {"Content-Encoding: gzip", "Content-Length: 28",
                                 "Content-Type: application/json"}) +
                 std::string("\x1f\x8b\x08\0\0\0\0\0\0\x03", 10) + std::string(18, 'x')};
       }},
      {"ErrorWithoutEnd", "404 with a body without end", "reads 4 KiB of it at most", Target::part,
       kAlways, kError, ErrorCode::bad_input,
       [](const Blow&) -> HttpAnswer {
         HttpAnswer answer{head("404 Not Found", {"Connection: close"})};
         answer.endless = std::string(10'000, 'x');
         return answer;
       }},
      {"RedirectWithoutEnd",
       "a redirect with a body without end",
       "reads 4 KiB of it at most",
       Target::part,
       kAlways,
       kRight,
       {},
       [](const Blow& blow) -> HttpAnswer {
         HttpAnswer answer{head("302 Found", {"Location: " + blow.elsewhere, "Connection: close"})};
         answer.endless = std::string(10'000, 'x');
         return answer;
       }},
      once("EndlessChunks", "chunks without end after the right bytes, once", kOverrun,
           endless_chunks),
      {"EndlessChunksAlways", "chunks without end after the right bytes, always",
       "ends the connection at the range's end each time, gives up", Target::part, kAlways, kError,
       ErrorCode::unavailable, endless_chunks},
      once("EndlessWithoutLength", "no length, and bytes without end after the right ones",
           kOverrun,
           [](const Blow& blow) {
             HttpAnswer answer{with_head(
                 blow, "\r\nContent-Length: " + std::to_string(blow.request.range->size()), "")};
             answer.endless = std::string(10'000, 'x');
             return answer;
           }),
      once("EndlessTrailer", "trailer fields without end after the right bytes",
           "reads 4 KiB of them at most",
           [](const Blow& blow) {
             HttpAnswer answer{chunked_head(blow) + chunked(body_of(blow)) + "0\r\n"};
             answer.endless = "X-Trailer: " + std::string(1000, 'x') + "\r\n";
             return answer;
           }),
      {"StallAlways",
       "no byte any more soon after the body's begin, always",
       "leaves each time after the stall time, gives up",
       Target::part,
       kAlways,
       kError,
       ErrorCode::unavailable,
       [](const Blow& blow) { return first_bytes(blow, 7'000, End::hang); },
       {.says = "no byte came for 400 ms"}},
      {"DripAlways",
       "a byte now and then, always",
       "leaves what is slower than the floor, gives up",
       Target::part,
       kAlways,
       kError,
       ErrorCode::unavailable,
       [](const Blow& blow) {
         HttpAnswer answer = honest(blow.object, blow.request);
         answer.at_once = answer.bytes.find("\r\n\r\n") + 4;
         answer.pause = std::chrono::milliseconds(50);
         return answer;
       },
       {.says = "too slow"}},
  };
}

std::vector<FaultKind> api_answers() {
  constexpr auto kApi = Target::api;
  return {
      {"ApiTerabyte", "an API's answer of 1 TB", "reads none of it", kApi, kAlways, kError,
       ErrorCode::bad_input, terabyte_file},
      {"ApiEndless", "an API's answer in chunks without end", "reads 1 MiB of it at most", kApi,
       kAlways, kError, ErrorCode::bad_input,
       [](const Blow&) {
         HttpAnswer answer{head("200 OK", {"Transfer-Encoding: chunked"})};
         answer.endless = chunked(std::string(10'000, 'x'));
         return answer;
       }},
      {"ApiCompressed", "an API's answer under gzip, though identity was asked",
       "never unpacks: drops it unread, gives up", kApi, kAlways, kError, ErrorCode::unavailable,
       [](const Blow& blow) {
         return HttpAnswer{
             head("200 OK", {"Content-Encoding: gzip",
                             "Content-Length: " + std::to_string(blow.object.size())}) +
             blow.object};
       }},
      {"ApiCut",
       "an API's answer cut before its length is reached, once",
       "asks again",
       kApi,
       1,
       kRight,
       {},
       [](const Blow& blow) {
         return HttpAnswer{
             head("200 OK", {"Content-Length: " + std::to_string(blow.object.size())}) +
                 blow.object.substr(0, 9'000),
             End::close};
       }},
      {"ApiChunkedCut",
       "an API's answer in chunks, cut before the last one, once",
       "asks again",
       kApi,
       1,
       kRight,
       {},
       [](const Blow& blow) {
         return HttpAnswer{
             head("200 OK", {"Transfer-Encoding: chunked"}) + chunked(blow.object.substr(0, 9'000)),
             End::close};
       }},
      {"ApiPartial",
       "206 to an API's request, which asks for no range",
       "asks again",
       kApi,
       1,
       kRight,
       {},
       [](const Blow& blow) {
         return HttpAnswer{
             head("206 Partial Content",
                  {content_range({0, 9'000}, blow.object.size()), "Content-Length: 9000"}) +
             blow.object.substr(0, 9'000)};
       }},
      {"ApiBusy",
       "503 to an API's request, three times",
       "waits with jitter, asks again",
       kApi,
       3,
       kRight,
       {},
       [](const Blow&) { return refusal("503 Service Unavailable"); }},
  };
}

std::vector<FaultKind> chunks() {
  return {
      once("Trailers", "a trailer that contradicts the head", "takes no notice of it",
           [](const Blow& blow) -> HttpAnswer {
             return {chunked_head(blow) + chunked(body_of(blow)) +
                     "0\r\nETag: \"v9\"\r\nContent-Range: bytes 0-1/2\r\n\r\n"};
           }),
      once("LastChunkMissing", "all bytes, but the last chunk never comes",
           "has all it asked for: takes them after the stall time",
           [](const Blow& blow) -> HttpAnswer {
             return {chunked_head(blow) + chunked(body_of(blow)), End::hang};
           }),
      once("ChunkSizeOverflow", "a chunk size beyond 64 bits", kAsksAgain,
           [](const Blow& blow) -> HttpAnswer {
             return {chunked_head(blow) + "fffffffffffffffffff\r\n" + body_of(blow), End::close};
           }),
      once("ChunkSizeGarbage", "a chunk size that is no number", kAsksAgain,
           [](const Blow& blow) -> HttpAnswer {
             return {chunked_head(blow) + "zz\r\n" + body_of(blow), End::close};
           }),
      once("NegativeChunk", "a negative chunk size", kAsksAgain,
           [](const Blow& blow) -> HttpAnswer {
             return {chunked_head(blow) + "-5\r\n" + body_of(blow), End::close};
           }),
      once("ChunkOverrun", "a chunk longer than its size", "takes nothing that was not announced",
           [](const Blow& blow) -> HttpAnswer {
             return {chunked_head(blow) + "10\r\n" + body_of(blow) + "\r\n0\r\n\r\n", End::close};
           }),
      once("LengthAndChunks", "both Content-Length and chunked", "takes the chunks' bytes",
           [](const Blow& blow) {
             HttpAnswer answer = with_fields(blow, "Transfer-Encoding: chunked\r\n");
             const std::size_t size = blow.request.range->size();
             answer.bytes.resize(answer.bytes.size() - size);
             answer.bytes += chunked(body_of(blow)) + "0\r\n\r\n";
             return answer;
           }),
  };
}

std::vector<FaultKind> connections() {
  return {
      once("HalfClosed", "FIN in the middle of a body, yet the socket stays open",
           "goes on from the first missing byte",
           [](const Blow& blow) { return cut(blow, 150'000, End::half_close); }),
      once("UnaskedAnswer", "408 on an idle connection that is kept for the next request",
           "leaves the connection",
           [](const Blow& blow) {
             HttpAnswer answer = honest(blow.object, blow.request);
             answer.bytes += refusal("408 Request Timeout").bytes;
             answer.end = End::close;
             return answer;
           }),
      {"EarlyAnswer",
       "an answer before the request, on three of the first connections",
       "does not take it for its own",
       Target::part,
       0,
       kRight,
       {},
       [](const Blow&) { return HttpAnswer{}; },
       {.greeting =
            [](int connection) {
              // Fewer than the failures in a row that end a request, whoever meets them.
              return connection % 2 == 0 || connection > 6 ? std::string()
                                                           : refusal("408 Request Timeout").bytes;
            }}},
      {"StalePooledConnection",
       "every connection dies after one answer, unannounced",
       "asks again on a new one",
       Target::everything,
       kAlways,
       kRight,
       {},
       [](const Blow& blow) -> HttpAnswer {
         return blow.request.on_connection == 0 ? honest(blow.object, blow.request)
                                                : HttpAnswer{"", End::reset};
       }},
      once("AnswerToAnother", "the answer to another request", kAsksAgain,
           [](const Blow& blow) {
             HttpRequest other = blow.request;
             other.range = ByteRange{0, 300'000};
             return honest(blow.object, other);
           }),
  };
}

}  // namespace

std::vector<FaultKind> body_faults() {
  std::vector<FaultKind> all;
  for (auto* make : {endless, api_answers, chunks, connections}) {
    for (FaultKind& kind : make()) {
      all.push_back(std::move(kind));
    }
  }
  return all;
}

}  // namespace librarian::weightmap::remote::testing
