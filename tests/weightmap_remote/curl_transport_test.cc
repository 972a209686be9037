// libcurl against a real server on loopback that misbehaves as told. The right bytes or an error
// that says what is wrong; never other bytes, never a hang.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "base/digest.h"
#include "loopback_server.h"
#include "weightmap/remote/fetcher.h"

namespace librarian::weightmap::remote {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using testing::head;
using testing::honest;
using testing::HttpAnswer;
using testing::HttpRequest;
using testing::LoopbackServer;
using ::testing::Not;
using End = HttpAnswer::End;

constexpr std::uint64_t kObjectBytes = 300'001;
constexpr ByteRange kWanted{1000, 200'000};

std::byte* bytes_of(std::string& text) { return reinterpret_cast<std::byte*>(text.data()); }

std::string content_range(std::uint64_t begin, std::uint64_t end, std::uint64_t size) {
  return "Content-Range: bytes " + std::to_string(begin) + "-" + std::to_string(end - 1) + "/" +
         std::to_string(size);
}

// Opens the object (always answered well) and fetches kWanted, whose requests the script answers:
// it gets the request and its number, counted from 0 without the opening one.
class CurlTransportTest : public ::testing::Test {
 protected:
  using Script = std::function<HttpAnswer(const HttpRequest&, int)>;

  void serve(Script script, TransportOptions options = {}, RetryPolicy retry = {}) {
    server_ = std::make_unique<LoopbackServer>([this, script](const HttpRequest& request) {
      return request.index == 0 ? honest(object_, request) : script(request, request.index - 1);
    });
    transport_ = make_transport(real_clock(), options);
    retry.backoff_base = 0ms;  // Real time: do not wait.
    fetcher_ = std::make_unique<Fetcher>(
        *transport_, real_clock(), FetcherOptions{.connections = 4, .retry = retry, .jitter = {}});
    const auto opened = fetcher_->open(*parse_uri(server_->url("/model?sig=secret")), 10, {});
    ASSERT_TRUE(opened) << opened.error().message();
    id_ = opened->id;
  }
  Result<void> fetch(const std::stop_token& stop = {}) {
    return fetcher_->fetch({id_, {{kWanted, bytes_of(buffer_) + kGuard}}}, stop);
  }
  // The wanted bytes are there, and nothing around them was touched.
  void expect_right_bytes() {
    const std::string guard(kGuard, '#');
    EXPECT_TRUE(buffer_ == guard + object_.substr(kWanted.begin, kWanted.size()) + guard);
  }
  void expect_untouched() { EXPECT_TRUE(buffer_ == std::string(buffer_.size(), '#')); }
  // Right bytes although the first answer is as given.
  void expect_recovery(Script first) {
    serve([this, first](const HttpRequest& request, int number) {
      return number == 0 ? first(request, number) : honest(object_, request);
    });
    const auto fetched = fetch();
    ASSERT_TRUE(fetched) << fetched.error().message();
    expect_right_bytes();
    EXPECT_EQ(fetcher_->statistics().retries, 1U);
  }
  // The error's message, if every answer is as given.
  std::string expect_failure(ErrorCode code, Script always) {
    serve(std::move(always), {}, {.attempts_max = 3});
    const auto fetched = fetch();
    EXPECT_FALSE(fetched);
    if (fetched) {
      return "";
    }
    EXPECT_EQ(fetched.error().code(), code) << fetched.error().message();
    EXPECT_THAT(fetched.error().message(), HasSubstr("/model bytes [1000, 200000)"));
    EXPECT_THAT(fetched.error().message(), Not(HasSubstr("secret")));
    return fetched.error().message();
  }
  // The range that request `number` after the opening one asked for.
  ByteRange asked(std::size_t number) const { return *server_->requests().at(number + 1).range; }

  static constexpr std::size_t kGuard = 64;
  const std::string object_ = testing::test_object(kObjectBytes);
  std::string buffer_ = std::string(kWanted.size() + 2 * kGuard, '#');
  ObjectId id_ = 0;
  std::unique_ptr<LoopbackServer> server_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<Fetcher> fetcher_;
};

// The honest answer cut off `bytes` before its end.
HttpAnswer cut(HttpAnswer answer, std::size_t bytes, End end) {
  answer.bytes.resize(answer.bytes.size() - bytes);
  answer.end = end;
  return answer;
}

TEST_F(CurlTransportTest, ReusesItsConnectionAndAsksPlainly) {
  serve([this](const HttpRequest& request, int) { return honest(object_, request); });
  ASSERT_TRUE(fetch());
  expect_right_bytes();
  ASSERT_TRUE(fetch());
  const auto requests = server_->requests();
  ASSERT_EQ(requests.size(), 3U);
  EXPECT_EQ(requests[2].connection, 0);
  EXPECT_EQ(asked(0), kWanted);
  EXPECT_EQ(requests[1].headers.at("accept-encoding"), "identity");
  EXPECT_EQ(requests[1].headers.at("if-match"), "\"v1\"");
  EXPECT_EQ(requests[0].headers.count("if-match"), 0U);
}

// Goal: a connection that dies mid-body costs only the missing tail.
TEST_F(CurlTransportTest, GoesOnAfterAnEarlyFin) {
  expect_recovery([this](const HttpRequest& request, int) {
    return cut(honest(object_, request), 50'000, End::close);
  });
  EXPECT_EQ(asked(1), (ByteRange{kWanted.end - 50'000, kWanted.end}));
}

TEST_F(CurlTransportTest, GoesOnAfterAReset) {
  expect_recovery([this](const HttpRequest& request, int) {
    return cut(honest(object_, request), 50'000, End::reset);
  });
  // A reset may overtake bytes, so where it goes on is not fixed; it never goes back.
  EXPECT_GE(asked(1).begin, kWanted.begin);
  EXPECT_EQ(asked(1).end, kWanted.end);
}

TEST_F(CurlTransportTest, EnduresManyDropsThatMakeProgress) {
  serve(
      [this](const HttpRequest& request, int) {
        HttpAnswer answer = honest(object_, request);
        const std::size_t left = request.range->size();
        return left > 10'000 ? cut(std::move(answer), left - 10'000, End::close) : answer;
      },
      {}, {.attempts_max = 2, .progress_bytes = 10'000});
  const auto fetched = fetch();
  ASSERT_TRUE(fetched) << fetched.error().message();
  expect_right_bytes();
  EXPECT_EQ(fetcher_->statistics().requests, 21U);  // The opening one and 199,000 / 10,000.
}

TEST_F(CurlTransportTest, GoesOnAfterAChunkedBodyThatEndsWellButShort) {
  expect_recovery([this](const HttpRequest& request, int) -> HttpAnswer {
    return {head("206 x", {content_range(kWanted.begin, kWanted.end, kObjectBytes), "ETag: \"v1\"",
                           "Transfer-Encoding: chunked"}) +
            "10\r\n" + object_.substr(request.range->begin, 16) + "\r\n0\r\n\r\n"};
  });
  EXPECT_EQ(asked(1).begin, kWanted.begin + 16);
}

TEST_F(CurlTransportTest, GoesOnAfterAChunkedBodyThatIsCut) {
  expect_recovery([this](const HttpRequest& request, int) -> HttpAnswer {
    return {head("206 x", {content_range(kWanted.begin, kWanted.end, kObjectBytes), "ETag: \"v1\"",
                           "Transfer-Encoding: chunked"}) +
                "100\r\n" + object_.substr(request.range->begin, 16),
            End::close};
  });
}

TEST_F(CurlTransportTest, GoesOnAfterABodyWithoutLengthThatIsShort) {
  expect_recovery([this](const HttpRequest& request, int) -> HttpAnswer {
    return {head("206 x", {content_range(kWanted.begin, kWanted.end, kObjectBytes), "ETag: \"v1\"",
                           "Connection: close"}) +
                object_.substr(request.range->begin, 777),
            End::close};
  });
  EXPECT_EQ(asked(1).begin, kWanted.begin + 777);
}

// Goal: a server without ranges still gives the right bytes, and no more of them than needed.
TEST_F(CurlTransportTest, TakesItsBytesOutOfAWholeFile) {
  serve([this](const HttpRequest&, int) -> HttpAnswer {
    return {head("200 OK", {"ETag: \"v1\"", "Content-Length: " + std::to_string(kObjectBytes)}) +
            object_};
  });
  const auto fetched = fetch();
  ASSERT_TRUE(fetched) << fetched.error().message();
  expect_right_bytes();
  EXPECT_EQ(fetcher_->statistics().retries, 0U);
  EXPECT_LT(fetcher_->statistics().body_bytes, kObjectBytes);
}

TEST_F(CurlTransportTest, OpensAFileFromAServerWithoutRanges) {
  LoopbackServer server([this](const HttpRequest&) -> HttpAnswer {
    return {head("200 OK", {"Content-Length: " + std::to_string(kObjectBytes)}) + object_};
  });
  serve([](const HttpRequest&, int) { return HttpAnswer{}; });
  const auto opened = fetcher_->open(*parse_uri(server.url("/x")), 1000, {});
  ASSERT_TRUE(opened) << opened.error().message();
  EXPECT_EQ(opened->info, (ObjectInfo{kObjectBytes, "", false}));
  EXPECT_EQ(opened->head, object_.substr(0, 1000));
}

// Goal: nothing lands from an answer to another question. Method: the first answer is wrong in one
// way each; the bytes must come from the second.
TEST_F(CurlTransportTest, RefusesAnotherRange) {
  expect_recovery([this](const HttpRequest& request, int) {
    HttpRequest other = request;
    other.range->begin += 4;
    return honest(object_, other);
  });
  EXPECT_EQ(asked(1), kWanted);
}

TEST_F(CurlTransportTest, RefusesCompression) {
  expect_recovery([](const HttpRequest&, int) -> HttpAnswer {
    return {head("206 x", {content_range(kWanted.begin, kWanted.end, kObjectBytes), "ETag: \"v1\"",
                           "Content-Encoding: gzip", "Content-Length: 3"}) +
            "abc"};
  });
  EXPECT_EQ(asked(1), kWanted);
}

TEST_F(CurlTransportTest, RefusesTwoLengths) {
  expect_recovery([this](const HttpRequest& request, int) -> HttpAnswer {
    return {
        head("206 x", {content_range(kWanted.begin, kWanted.end, kObjectBytes), "ETag: \"v1\"",
                       "Content-Length: " + std::to_string(kWanted.size()), "Content-Length: 77"}) +
            object_.substr(request.range->begin, 77),
        End::close};
  });
  EXPECT_EQ(asked(1), kWanted);
}

TEST_F(CurlTransportTest, RefusesGarbageInPlaceOfAHead) {
  for (const char* garbage : {"garbage\r\n\r\n", "\r\n\r\n", "HTTP/9.9 206 x\r\n\r\n"}) {
    SCOPED_TRACE(garbage);
    expect_recovery([garbage](const HttpRequest&, int) -> HttpAnswer {
      return {garbage, End::close};
    });
  }
}

TEST_F(CurlTransportTest, RefusesAHugeHead) {
  expect_recovery([](const HttpRequest&, int) -> HttpAnswer {
    HttpAnswer answer{"HTTP/1.1 206 x\r\n", End::close};
    for (int i = 0; i < 20'000; ++i) {
      answer.bytes += "X-Filler-" + std::to_string(i) + ": " + std::string(100, 'x') + "\r\n";
    }
    return answer;
  });
}

// Goal: a server that sends more than it announced is not believed, and never overruns.
TEST_F(CurlTransportTest, MoreBytesThanAnnouncedAreSuspect) {
  expect_recovery([this](const HttpRequest& request, int) -> HttpAnswer {
    return {head("206 x", {content_range(kWanted.begin, kWanted.end, kObjectBytes), "ETag: \"v1\"",
                           "Connection: close"}) +
                object_.substr(request.range->begin, request.range->size()) +
                std::string(100'000, 'x'),
            End::close};
  });
  EXPECT_EQ(asked(1), kWanted);
}

TEST_F(CurlTransportTest, MoreBytesThanTheLengthNeverLand) {
  serve([this](const HttpRequest& request, int) {
    HttpAnswer answer = honest(object_, request);
    answer.bytes += std::string(100'000, 'x');
    answer.end = End::close;
    return answer;
  });
  ASSERT_TRUE(fetch());
  expect_right_bytes();
}

// Goal: another file at the source ends the job, and none of its bytes land.
TEST_F(CurlTransportTest, AChangedEtagIsSourceChanged) {
  expect_failure(ErrorCode::source_changed, [this](const HttpRequest& request, int) {
    HttpAnswer answer = honest(object_, request);
    answer.bytes.replace(answer.bytes.find("\"v1\""), 4, "\"v2\"");
    return answer;
  });
  expect_untouched();
  EXPECT_EQ(server_->requests().size(), 2U);
}

TEST_F(CurlTransportTest, APreconditionFailureIsSourceChanged) {
  expect_failure(ErrorCode::source_changed, [](const HttpRequest&, int) -> HttpAnswer {
    return {head("412 Precondition Failed", {"Content-Length: 0"})};
  });
}

TEST_F(CurlTransportTest, AChangedSizeIsSourceChanged) {
  expect_failure(ErrorCode::source_changed, [](const HttpRequest&, int) -> HttpAnswer {
    return {head("206 x",
                 {content_range(kWanted.begin, kWanted.end, kObjectBytes + 1), "ETag: \"v1\""}),
            End::close};
  });
  expect_untouched();
}

// Goal: statuses worth a retry get one, others end at once.
TEST_F(CurlTransportTest, RetriesWhenTheServerIsBusy) {
  for (const char* status : {"503 Busy", "500 Oops", "429 Slow down", "408 Late", "425 Early"}) {
    SCOPED_TRACE(status);
    expect_recovery([status](const HttpRequest&, int) -> HttpAnswer {
      return {head(status, {"Retry-After: 0", "Content-Length: 5"}) + "sorry"};
    });
    EXPECT_EQ(asked(1), kWanted);
  }
}

TEST_F(CurlTransportTest, AlwaysBusyIsUnavailable) {
  const auto message =
      expect_failure(ErrorCode::unavailable, [](const HttpRequest&, int) -> HttpAnswer {
        return {head("500 Oops", {"Content-Length: 0"})};
      });
  EXPECT_THAT(message, HasSubstr("HTTP 500"));
  EXPECT_EQ(server_->requests().size(), 4U);
}

TEST_F(CurlTransportTest, ALoginIsBadInput) {
  for (const std::string status : {"401 No", "403 No", "404 Gone", "410 Gone"}) {
    const auto message =
        expect_failure(ErrorCode::bad_input, [status](const HttpRequest&, int) -> HttpAnswer {
          // The error's body is longer than what we care to read.
          return {head(status, {"Content-Length: 1000000"}) + std::string(1'000'000, 'x')};
        });
    // What has gone since it was opened is not a wrong URL.
    EXPECT_THAT(message,
                HasSubstr(status.find("Gone") == std::string::npos ? "check the URL"
                                                                   : "when the job began"));
    EXPECT_EQ(server_->requests().size(), 2U);
    EXPECT_LE(fetcher_->statistics().body_bytes, 64U << 10U);
    expect_untouched();
  }
}

TEST_F(CurlTransportTest, RetryAfterReachesTheFetcher) {
  std::promise<TransferResult> promise;
  serve([](const HttpRequest&, int) -> HttpAnswer {
    return {head("429 Slow down", {"Retry-After: 17", "Content-Length: 0"})};
  });
  transport_->start(
      {*parse_uri(server_->url("/m")), kWanted, {{kWanted, bytes_of(buffer_)}}, {}, false, {}},
      [&](TransferResult result) { promise.set_value(std::move(result)); });
  const TransferResult result = promise.get_future().get();
  EXPECT_EQ(result.retry_after, 17s);
  EXPECT_EQ(result.status, 429);
  EXPECT_EQ(result.error->code(), ErrorCode::unavailable);
}

// Goal: redirects are followed a few times, to http and https only.
TEST_F(CurlTransportTest, FollowsFiveRedirects) {
  serve([this](const HttpRequest& request, int number) -> HttpAnswer {
    if (number < 5) {
      return {head("302 Found", {"Location: /hop" + std::to_string(number), "Content-Length: 3"}) +
              "abc"};
    }
    return honest(object_, request);
  });
  const auto fetched = fetch();
  ASSERT_TRUE(fetched) << fetched.error().message();
  expect_right_bytes();
  EXPECT_EQ(server_->requests().back().target, "/hop4");
  EXPECT_EQ(server_->requests().back().headers.at("if-match"), "\"v1\"");
}

TEST_F(CurlTransportTest, RefusesARedirectLoop) {
  const auto message =
      expect_failure(ErrorCode::bad_input, [](const HttpRequest&, int) -> HttpAnswer {
        return {head("301 Moved", {"Location: /model", "Content-Length: 0"})};
      });
  EXPECT_THAT(message, HasSubstr("more than 5"));
  EXPECT_EQ(server_->requests().size(), 7U);
}

TEST_F(CurlTransportTest, RefusesRedirectsToOtherPlaces) {
  for (const char* place : {"file:///etc/passwd", "ftp://127.0.0.1/x", "http://u:p@127.0.0.1/",
                            "http://192.0.2.1/x", "s3://bucket/x"}) {
    SCOPED_TRACE(place);
    expect_failure(ErrorCode::bad_input, [place](const HttpRequest&, int) -> HttpAnswer {
      return {head("302 Found", {std::string("Location: ") + place, "Content-Length: 0"})};
    });
    EXPECT_EQ(server_->requests().size(), 2U);
    expect_untouched();
  }
}

// Goal: a signed URL that has expired is asked for anew where it came from.
TEST_F(CurlTransportTest, AsksTheOriginAgainAfterAnExpiredRedirect) {
  serve([this](const HttpRequest& request, int number) -> HttpAnswer {
    if (request.target == "/signed1") {
      return {head("403 Expired", {"Content-Length: 0"})};
    }
    if (request.target == "/signed2") {
      return honest(object_, request);
    }
    const char* place = number == 0 ? "Location: /signed1" : "Location: /signed2";
    return {head("302 Found", {place, "Content-Length: 0"})};
  });
  const auto fetched = fetch();
  ASSERT_TRUE(fetched) << fetched.error().message();
  expect_right_bytes();
}

TEST_F(CurlTransportTest, ARefusedConnectionIsUnavailable) {
  std::string url;
  {
    const LoopbackServer gone([](const HttpRequest&) { return HttpAnswer{}; });
    url = gone.url("/x");
  }
  const auto transport = make_transport(real_clock(), {});
  Fetcher fetcher(
      *transport, real_clock(),
      {.connections = 1, .retry = {.backoff_base = 0ms, .attempts_max = 2}, .jitter = {}});
  const auto opened = fetcher.open(*parse_uri(url), 10, {});
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code(), ErrorCode::unavailable);
}

TEST_F(CurlTransportTest, PlainHttpToOtherHostsIsRefusedBeforeItIsTried) {
  const auto transport = make_transport(real_clock(), {});
  Fetcher fetcher(*transport, real_clock(), {});
  const auto opened = fetcher.open(*parse_uri("http://192.0.2.1/x"), 10, {});
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code(), ErrorCode::invalid_argument);
}

// Goal: a server that stops sending is left, and the rest is fetched elsewhere.
// Method: the server hangs mid-body; the test waits for the result, not for a time.
TEST_F(CurlTransportTest, LeavesAStalledConnection) {
  TransportOptions options;
  options.stall_time = 100ms;
  serve(
      [this](const HttpRequest& request, int number) {
        return number == 0 ? cut(honest(object_, request), 50'000, End::hang)
                           : honest(object_, request);
      },
      options);
  const auto fetched = fetch();
  ASSERT_TRUE(fetched) << fetched.error().message();
  expect_right_bytes();
  EXPECT_EQ(asked(1).begin, kWanted.end - 50'000);
}

// Goal: a stop and a destruction end what is on the wire; the connection is closed, so nothing can
// arrive any more. Method: the server hangs mid-body and sees the client go.
TEST_F(CurlTransportTest, AStopEndsAHangingTransfer) {
  serve([this](const HttpRequest& request, int) {
    return cut(honest(object_, request), 50'000, End::hang);
  });
  std::stop_source source;
  std::jthread stopper([&] {
    server_->wait_for_hanging(1);
    source.request_stop();
  });
  const auto fetched = fetch(source.get_token());
  ASSERT_FALSE(fetched);
  EXPECT_EQ(fetched.error().code(), ErrorCode::cancelled);
  server_->wait_for_abandoned(1);
}

// Catches: bytes of the network that come without a checksum, so that nothing is compared later.
TEST_F(CurlTransportTest, SumsWhatLibcurlHandsOver) {
  serve([this](const HttpRequest& request, int) { return honest(object_, request); });
  std::string buffer(kWanted.size(), '#');
  std::promise<Result<CrcRuns>> promise;
  fetcher_->submit({id_, {{kWanted, bytes_of(buffer)}}},
                   [&](const Result<CrcRuns>& result) { promise.set_value(result); });
  const Result<CrcRuns> crcs = promise.get_future().get();
  ASSERT_TRUE(crcs) << crcs.error().message();
  const auto wanted = std::as_bytes(std::span(object_)).subspan(kWanted.begin, kWanted.size());
  EXPECT_EQ(*crcs, (CrcRuns{{kWanted, crc32c(wanted)}}));
}

TEST_F(CurlTransportTest, DestructionEndsHangingTransfers) {
  serve([this](const HttpRequest& request, int) {
    return cut(honest(object_, request), 50'000, End::hang);
  });
  int cancelled = 0;
  std::vector<std::string> buffers(6, std::string(kWanted.size(), '#'));
  for (std::string& buffer : buffers) {
    fetcher_->submit({id_, {{kWanted, bytes_of(buffer)}}}, [&](const Result<CrcRuns>& result) {
      cancelled += result.error().code() == ErrorCode::cancelled ? 1 : 0;
    });
  }
  server_->wait_for_hanging(4);
  fetcher_.reset();
  EXPECT_EQ(cancelled, 6);
  server_->wait_for_abandoned(4);
}

// The transport alone answers too, so that its owner may go first in an emergency.
TEST_F(CurlTransportTest, TheTransportsDestructionAnswersWhatIsOnTheWire) {
  serve([this](const HttpRequest& request, int) {
    return cut(honest(object_, request), 50'000, End::hang);
  });
  std::promise<TransferResult> promise;
  transport_->start(
      {*parse_uri(server_->url("/m")), kWanted, {{kWanted, bytes_of(buffer_)}}, {}, false, {}},
      [&](TransferResult result) { promise.set_value(std::move(result)); });
  server_->wait_for_hanging(1);
  fetcher_.reset();
  transport_.reset();
  EXPECT_EQ(promise.get_future().get().error->code(), ErrorCode::cancelled);
}

}  // namespace
}  // namespace librarian::weightmap::remote
