#include "weightmap/remote/response_check.h"

#include <gtest/gtest.h>

#include <sstream>

namespace librarian::weightmap::remote {
namespace {

using namespace std::chrono_literals;

ResponseHead parse(const std::string& text) {
  ResponseHead head;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    EXPECT_TRUE(head.add_line(line + "\r\n")) << line;
  }
  EXPECT_TRUE(head.add_line("\r\n"));
  EXPECT_TRUE(head.complete());
  return head;
}

enum class Ask : std::uint8_t { open, opened, opened_weak, opened_dated, redirected };

ResponseVerdict check(const std::string& text, Ask ask) {
  ResponseExpectation expectation;
  expectation.range = ask == Ask::open ? ByteRange{0, 100} : ByteRange{100, 200};
  expectation.redirected = ask == Ask::redirected;
  expectation.wall_now_s = 784111777;  // Sun, 06 Nov 1994 08:49:37 GMT
  if (ask == Ask::opened_dated) {
    expectation.expected = ObjectInfo{1000, "last-modified:yesterday", false};
  } else if (ask != Ask::open) {
    expectation.expected = ask == Ask::opened_weak ? ObjectInfo{1000, "W/\"a\"", false}
                                                   : ObjectInfo{1000, "\"a\"", true};
  }
  return check_response(parse(text), expectation);
}

struct Row {
  const char* name;
  Ask ask;
  const char* head;
  std::optional<ErrorCode> code;  // None: accepted.
};

constexpr const char* kGood206 = "HTTP/1.1 206 Partial Content\nETag: \"a\"\n";

std::string expand(std::string head) {
  if (head.front() == '+') {
    head.replace(0, 1, kGood206);
  }
  return head;
}

constexpr auto kRetry = ErrorCode::unavailable;
constexpr auto kChanged = ErrorCode::source_changed;
constexpr auto kBad = ErrorCode::bad_input;

// "+" stands for a 206 with the pinned ETag.
constexpr Row kRows[] = {
    // A range of the opened object.
    {"exact", Ask::opened, "+Content-Range: bytes 100-199/1000", {}},
    {"exact with length",
     Ask::opened,
     "+Content-Range: bytes 100-199/1000\nContent-Length: 100",
     {}},
    {"unit in capitals", Ask::opened, "+Content-Range: Bytes 100-199/1000", {}},
    {"chunked", Ask::opened, "+Content-Range: bytes 100-199/1000\nTransfer-Encoding: chunked", {}},
    {"identity", Ask::opened, "+Content-Range: bytes 100-199/1000\nContent-Encoding: identity", {}},
    {"same length twice",
     Ask::opened,
     "+Content-Range: bytes 100-199/1000\nContent-Length: 100\nContent-Length: 100",
     {}},
    {"no content range", Ask::opened, "+Content-Length: 100", kRetry},
    {"shifted", Ask::opened, "+Content-Range: bytes 104-203/1000", kRetry},
    {"shorter", Ask::opened, "+Content-Range: bytes 100-198/1000", kRetry},
    {"longer", Ask::opened, "+Content-Range: bytes 100-200/1000", kRetry},
    {"from the start", Ask::opened, "+Content-Range: bytes 0-999/1000", kRetry},
    {"length disagrees", Ask::opened, "+Content-Range: bytes 100-199/1000\nContent-Length: 99",
     kRetry},
    {"unknown total", Ask::opened, "+Content-Range: bytes 100-199/*", kRetry},
    {"other total", Ask::opened, "+Content-Range: bytes 100-199/1001", kChanged},
    {"other unit", Ask::opened, "+Content-Range: items 100-199/1000", kRetry},
    {"past the total", Ask::opened, "+Content-Range: bytes 100-199/150", kRetry},
    {"reversed", Ask::opened, "+Content-Range: bytes 199-100/1000", kRetry},
    {"signed", Ask::opened, "+Content-Range: bytes +100-199/1000", kRetry},
    {"overflow", Ask::opened, "+Content-Range: bytes 100-99999999999999999999/1000", kRetry},
    {"two ranges", Ask::opened, "+Content-Range: bytes 100-199/1000\nContent-Range: bytes 0-1/1000",
     kRetry},
    {"multipart", Ask::opened,
     "+Content-Range: bytes 100-199/1000\nContent-Type: multipart/byteranges; boundary=x", kRetry},
    {"gzip", Ask::opened, "+Content-Range: bytes 100-199/1000\nContent-Encoding: gzip", kRetry},
    {"two codings", Ask::opened,
     "+Content-Range: bytes 100-199/1000\nContent-Encoding: identity\nContent-Encoding: br",
     kRetry},
    {"gzip transfer", Ask::opened,
     "+Content-Range: bytes 100-199/1000\nTransfer-Encoding: gzip, chunked", kRetry},
    {"two lengths", Ask::opened,
     "+Content-Range: bytes 100-199/1000\nContent-Length: 100\nContent-Length: 101", kRetry},
    {"negative length", Ask::opened, "+Content-Range: bytes 100-199/1000\nContent-Length: -1",
     kRetry},
    {"length list", Ask::opened, "+Content-Range: bytes 100-199/1000\nContent-Length: 100, 100",
     kRetry},
    {"web page", Ask::opened,
     "+Content-Range: bytes 100-199/1000\nContent-Type: Text/HTML; charset=utf-8", kRetry},
    {"two etags", Ask::opened, "+ETag: \"b\"\nContent-Range: bytes 100-199/1000", kRetry},
    {"other etag", Ask::opened, "HTTP/1.1 206 x\nETag: \"b\"\nContent-Range: bytes 100-199/1000",
     kChanged},
    {"weak for strong", Ask::opened,
     "HTTP/1.1 206 x\nETag: W/\"a\"\nContent-Range: bytes 100-199/1000", kChanged},
    {"no etag", Ask::opened, "HTTP/1.1 206 x\nContent-Range: bytes 100-199/1000", kRetry},
    {"a date for an etag", Ask::opened,
     "HTTP/1.1 206 x\nLast-Modified: today\nContent-Range: bytes 100-199/1000", kRetry},
    {"an etag for a date", Ask::opened_dated, "+Content-Range: bytes 100-199/1000", kRetry},
    {"another date", Ask::opened_dated,
     "HTTP/1.1 206 x\nLast-Modified: today\nContent-Range: bytes 100-199/1000", kChanged},
    {"weak the same",
     Ask::opened_weak,
     "HTTP/1.1 206 x\nETag: W/\"a\"\nContent-Range: bytes 100-199/1000",
     {}},
    {"weak changed", Ask::opened_weak,
     "HTTP/1.1 206 x\nETag: W/\"b\"\nContent-Range: bytes 100-199/1000", kChanged},
    {"whole", Ask::opened, "HTTP/1.1 200 OK\nETag: \"a\"\nContent-Length: 1000", {}},
    {"whole, other length", Ask::opened, "HTTP/1.1 200 OK\nETag: \"a\"\nContent-Length: 999",
     kChanged},
    {"whole, other etag", Ask::opened, "HTTP/1.1 200 OK\nETag: \"b\"\nContent-Length: 1000",
     kChanged},
    {"whole, web page", Ask::opened, "HTTP/1.1 200 OK\nContent-Type: text/html\nContent-Length: 50",
     kRetry},
    {"whole, no length", Ask::opened, "HTTP/1.1 200 OK\nETag: \"a\"\nTransfer-Encoding: chunked",
     kBad},
    {"whole, an error as XML", Ask::opened,
     "HTTP/1.1 200 OK\nContent-Type: application/xml\nContent-Length: 1000\nETag: \"a\"", kRetry},
    // Opening.
    {"open, an error as XML", Ask::open,
     "HTTP/1.1 200 OK\nContent-Type: Text/XML\nContent-Length: 100", kRetry},
    {"open", Ask::open, "+Content-Range: bytes 0-99/1000", {}},
    {"open a short one", Ask::open, "+Content-Range: bytes 0-41/42", {}},
    {"open, cut short", Ask::open, "+Content-Range: bytes 0-41/1000", kRetry},
    {"open, whole", Ask::open, "HTTP/1.1 200 OK\nContent-Length: 1000", {}},
    {"open, no validator", Ask::open, "HTTP/1.1 206 x\nContent-Range: bytes 0-99/1000", {}},
    {"open, unknown total", Ask::open, "+Content-Range: bytes 0-99/*", kRetry},
    {"open, web page", Ask::open, "HTTP/1.1 200 OK\nContent-Type: text/html\nContent-Length: 10",
     kBad},
    {"open, empty", Ask::open, "HTTP/1.1 416 x\nContent-Range: bytes */0", kBad},
    {"open, 416", Ask::open, "HTTP/1.1 416 x\nContent-Range: bytes */1000", kRetry},
    // Statuses.
    {"416, same size", Ask::opened, "HTTP/1.1 416 x\nContent-Range: bytes */1000", kRetry},
    {"416, no size", Ask::opened, "HTTP/1.1 416 x", kRetry},
    {"416, other size", Ask::opened, "HTTP/1.1 416 x\nContent-Range: bytes */150", kChanged},
    {"412", Ask::opened, "HTTP/1.1 412 x", kChanged},
    {"204", Ask::opened, "HTTP/1.1 204 x", kRetry},
    {"304", Ask::opened, "HTTP/1.1 304 x", kBad},
    {"302 nowhere", Ask::opened, "HTTP/1.1 302 x", kRetry},
    {"302 to two places", Ask::opened, "HTTP/1.1 302 x\nLocation: /a\nLocation: /b", kRetry},
    {"400", Ask::opened, "HTTP/1.1 400 x", kBad},
    {"401", Ask::opened, "HTTP/1.1 401 x", kBad},
    {"403", Ask::opened, "HTTP/1.1 403 x", kBad},
    {"404", Ask::opened, "HTTP/1.1 404 x", ErrorCode::not_found},
    {"410", Ask::opened, "HTTP/1.1 410 x", ErrorCode::not_found},
    {"407", Ask::opened, "HTTP/1.1 407 x", kBad},
    {"408", Ask::opened, "HTTP/1.1 408 x", kRetry},
    {"425", Ask::opened, "HTTP/1.1 425 x", kRetry},
    {"429", Ask::opened, "HTTP/1.1 429 x", kRetry},
    {"500", Ask::opened, "HTTP/1.1 500 x", kRetry},
    {"503", Ask::opened, "HTTP/1.1 503 x", kRetry},
    {"501", Ask::opened, "HTTP/1.1 501 x", kBad},
    {"599", Ask::opened, "HTTP/1.1 599 x", kRetry},
    {"999", Ask::opened, "HTTP/1.1 999 x", kRetry},
    {"expired 403", Ask::redirected, "HTTP/1.1 403 x", kRetry},
    {"expired 400", Ask::redirected, "HTTP/1.1 400 x", kRetry},
    {"redirected 404", Ask::redirected, "HTTP/1.1 404 x", ErrorCode::not_found},
};

// Goal: every answer is either exactly what was asked or refused as what it is, head alone.
// Method: one row per way an answer can be wrong; the accepted ones give the asked bytes.
TEST(ResponseCheck, AcceptsOnlyWhatWasAsked) {
  for (const Row& row : kRows) {
    const ResponseVerdict verdict = check(expand(row.head), row.ask);
    SCOPED_TRACE(row.name);
    EXPECT_TRUE(verdict.location.empty());
    ASSERT_EQ(verdict.error.has_value(), row.code.has_value())
        << (verdict.error ? verdict.error->message() : "accepted");
    if (row.code) {
      EXPECT_EQ(verdict.error->code(), *row.code) << verdict.error->message();
      EXPECT_FALSE(verdict.error->message().empty());
    } else if (row.ask != Ask::open) {
      EXPECT_EQ(verdict.wanted, (ByteRange{100, 200}));
      EXPECT_EQ(verdict.info.size, 1000U);
      EXPECT_EQ(verdict.body_begin, verdict.whole ? 0U : 100U);
    }
  }
}

TEST(ResponseCheck, OpeningTellsTheObjectAndCutsTheRange) {
  const ResponseVerdict verdict = check(expand("+Content-Range: bytes 0-41/42"), Ask::open);
  EXPECT_EQ(verdict.info, (ObjectInfo{42, "\"a\"", true}));
  EXPECT_EQ(verdict.wanted, (ByteRange{0, 42}));
  const std::string dated = "HTTP/1.1 200 OK\nContent-Length: 7\nLast-Modified: yesterday";
  EXPECT_EQ(check(dated, Ask::open).info, (ObjectInfo{7, "last-modified:yesterday", false}));
  const std::string list = "HTTP/1.1 200 OK\nContent-Length: 7\nETag: \"a\", \"b\"";
  EXPECT_FALSE(check(list, Ask::open).info.strong);
}

// Goal: only a strong validator goes into If-Match, which compares strongly.
TEST(ResponseCheck, OnlyStrongValidatorsAreSent) {
  EXPECT_EQ(if_match_value(ObjectInfo{1, "\"a\"", true}), "\"a\"");
  EXPECT_EQ(if_match_value(ObjectInfo{1, "W/\"a\"", false}), "");
  EXPECT_EQ(if_match_value(std::nullopt), "");
}

TEST(ResponseCheck, RedirectsAreReportedNotFollowed) {
  const auto verdict = check("HTTP/1.1 307 x\nLocation: //other/x", Ask::opened);
  EXPECT_FALSE(verdict.error);
  EXPECT_EQ(verdict.location, "//other/x");
}

// Goal: Retry-After in both forms, and nothing from a value that makes no sense.
TEST(ResponseCheck, ReadsRetryAfter) {
  const std::int64_t now = 784111777;
  EXPECT_EQ(parse_retry_after("0", now), 0s);
  EXPECT_EQ(parse_retry_after("120", now), 120s);
  EXPECT_EQ(parse_retry_after("Sun, 06 Nov 1994 08:50:37 GMT", now), 60s);
  EXPECT_EQ(parse_retry_after("Sun, 06 Nov 1994 08:48:37 GMT", now), std::nullopt);
  EXPECT_EQ(parse_retry_after("-5", now), std::nullopt);
  EXPECT_EQ(parse_retry_after("1.5", now), std::nullopt);
  EXPECT_EQ(parse_retry_after("soon", now), std::nullopt);
  EXPECT_EQ(parse_retry_after("", now), std::nullopt);
  EXPECT_EQ(parse_retry_after("99999999999999999999999", now), 365 * 24h);
  EXPECT_EQ(check("HTTP/1.1 429 x\nRetry-After: 7", Ask::opened).retry_after, 7s);
  EXPECT_EQ(check("HTTP/1.1 503 x", Ask::opened).retry_after, std::nullopt);
}

TEST(ResponseHead, ForgetsInterimHeads) {
  ResponseHead head;
  for (const char* line : {"HTTP/1.1 103 Early Hints\r\n", "ETag: \"wrong\"\r\n", "\r\n"}) {
    ASSERT_TRUE(head.add_line(line));
  }
  EXPECT_EQ(head.status(), 103);
  ASSERT_TRUE(head.add_line("HTTP/1.1 206 x\r\n"));
  EXPECT_FALSE(head.complete());
  EXPECT_EQ(head.find("etag"), std::nullopt);
}

TEST(ResponseHead, RefusesWhatIsNotHttpAndWhatIsTooLarge) {
  EXPECT_FALSE(ResponseHead().add_line("ICY 200 OK\r\n"));
  EXPECT_FALSE(ResponseHead().add_line("HTTP/1.1 2x0 OK\r\n"));
  EXPECT_FALSE(ResponseHead().add_line("HTTP/1.1\r\n"));
  ResponseHead unnamed;
  ASSERT_TRUE(unnamed.add_line("HTTP/1.1 200 OK"));
  EXPECT_FALSE(unnamed.add_line("no name here"));
  for (const char* line : {"Content-Length : 5", " Content-Range: bytes 0-1/2", ": x", "a\tb: c"}) {
    ResponseHead folded;
    ASSERT_TRUE(folded.add_line("HTTP/1.1 200 OK"));
    EXPECT_FALSE(folded.add_line(line)) << line;
  }
  ResponseHead many;
  ASSERT_TRUE(many.add_line("HTTP/1.1 200 OK"));
  int taken = 0;
  while (taken < 10'000 && many.add_line("a: b")) {
    ++taken;
  }
  EXPECT_EQ(taken, 256);
  ResponseHead large;
  ASSERT_TRUE(large.add_line("HTTP/1.1 200 OK"));
  EXPECT_FALSE(large.add_line("a: " + std::string(70'000, 'b')));
}

}  // namespace
}  // namespace librarian::weightmap::remote
