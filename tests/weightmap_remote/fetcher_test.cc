#include "weightmap/remote/fetcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/digest.h"
#include "loopback_server.h"
#include "scripted_transport.h"
#include "tests/support/fake_clock.h"

namespace librarian::weightmap::remote {

// For messages of failed tests.
void PrintTo(const ByteRange& range, std::ostream* out) {
  *out << "[" << range.begin << ", " << range.end << ")";
}

namespace {

using namespace std::chrono_literals;
using testing::deliver_all;
using testing::deliver_then_fail;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::Outcome;
using testing::ScriptedTransport;

std::byte* bytes_of(std::string& text) { return reinterpret_cast<std::byte*>(text.data()); }

// An opened object of 1000 bytes whose further transfers follow the script; time stands still
// while the test itself runs. The longest backoff is always taken (jitter 1).
class FetcherTest : public ::testing::Test {
 protected:
  void open(std::deque<Outcome> script, FetcherOptions options = {}, std::uint64_t size = 1000) {
    object_ = testing::test_object(size);
    buffer_.assign(size, '#');
    script.push_front(deliver_all());  // For open().
    transport_ = std::make_unique<ScriptedTransport>(clock_, object_, std::move(script));
    if (!options.jitter) {
      options.jitter = [] { return 1.0; };
    }
    fetcher_ = std::make_unique<Fetcher>(*transport_, clock_, options);
    const auto opened = fetcher_->open(uri_, 1, {});
    ASSERT_TRUE(opened) << opened.error().message();
    id_ = opened->id;
  }
  FetchRequest request(std::vector<ByteRange> ranges) {
    FetchRequest out{id_, {}};
    for (const ByteRange& range : ranges) {
      out.pieces.push_back({range, bytes_of(buffer_) + range.begin});
    }
    return out;
  }
  Result<void> fetch_all() { return fetcher_->fetch(request({{0, object_.size()}}), {}); }
  // Without the one of open().
  std::vector<ByteRange> requested() const {
    auto ranges = transport_->requested();
    ranges.erase(ranges.begin());
    return ranges;
  }
  std::vector<Duration> times() const {
    std::vector<Duration> at;
    for (const auto& seen : transport_->seen()) {
      at.push_back(seen.at);
    }
    at.erase(at.begin());
    return at;
  }

  librarian::testing::FakeClock clock_;
  Activity running_{clock_};
  const Uri uri_ = *parse_uri("https://host/model.safetensors?signature=secret");
  std::string object_;
  std::string buffer_;
  ObjectId id_ = 0;
  std::unique_ptr<ScriptedTransport> transport_;
  std::unique_ptr<Fetcher> fetcher_;
};

// Goal: a dropped connection costs a retry of the missing tail, never a wrong or repeated byte.
// Method: the transport drops after 300 bytes; the fake clock makes backoff free and exact.
TEST_F(FetcherTest, AsksOnlyForTheMissingTailAfterADroppedConnection) {
  open({deliver_then_fail(300)});
  const auto fetched = fetch_all();
  ASSERT_TRUE(fetched) << fetched.error().message();
  EXPECT_THAT(requested(), ElementsAre(ByteRange{0, 1000}, ByteRange{300, 1000}));
  EXPECT_THAT(times(), ElementsAre(0ms, 500ms));
  EXPECT_TRUE(buffer_ == object_);
  const FetchStatistics statistics = fetcher_->statistics();
  EXPECT_EQ(statistics.requests, 3U);
  EXPECT_EQ(statistics.retries, 1U);
  EXPECT_EQ(statistics.body_bytes, 1001U);
  EXPECT_EQ(statistics.piece_bytes, 1001U);
  // The connection that failed once may be stale.
  EXPECT_FALSE(transport_->seen()[1].request.fresh_connection);
  EXPECT_TRUE(transport_->seen()[2].request.fresh_connection);
}

// Goal: the checksums of what arrived are those of the pieces asked for, in however many tries they
// came, and not those of bytes that a try brought without answering for them.
// Method: tries that end inside pieces, between them, and where they had written more.
TEST_F(FetcherTest, SumsEachPieceOverAllTries) {
  const std::vector<ByteRange> ranges = {{0, 100}, {200, 300}, {300, 301}, {400, 500}, {900, 1000}};
  Outcome takes_back = deliver_then_fail(170);
  takes_back.answers_for = 50;
  open({deliver_then_fail(250), takes_back, deliver_then_fail(1), deliver_then_fail(99)});
  std::optional<Result<CrcRuns>> landed;
  Monitor monitor(clock_);
  fetcher_->submit(request(ranges), [&](const Result<CrcRuns>& result) {
    auto lock = monitor.lock();
    landed = result;
    monitor.notify_all(lock);
  });
  auto lock = monitor.lock();
  monitor.wait(lock, {}, [&] { return landed.has_value(); });
  ASSERT_TRUE(*landed) << landed->error().message();
  EXPECT_THAT(requested(),
              ElementsAre(ByteRange{0, 1000}, ByteRange{250, 1000}, ByteRange{300, 1000},
                          ByteRange{400, 1000}, ByteRange{499, 1000}));
  CrcRuns expected;
  for (const ByteRange& range : ranges) {
    expected.push_back(
        {range, crc32c(std::as_bytes(std::span(object_)).subspan(range.begin, range.size()))});
  }
  EXPECT_EQ(**landed, expected);
}

// Goal: after a failure in a hole only missing pieces are asked for again.
// Method: the first transfer ends between the second and the third piece, the next inside one.
TEST_F(FetcherTest, SkipsAHoleWhenItGoesOn) {
  open({deliver_then_fail(350), deliver_then_fail(50)});
  const auto fetched =
      fetcher_->fetch(request({{0, 100}, {200, 300}, {400, 500}, {900, 1000}}), {});
  ASSERT_TRUE(fetched) << fetched.error().message();
  EXPECT_THAT(requested(),
              ElementsAre(ByteRange{0, 1000}, ByteRange{400, 1000}, ByteRange{450, 1000}));
  for (std::size_t i = 0; i < buffer_.size(); ++i) {
    const bool wanted = i < 100 || (i >= 200 && i < 300) || (i >= 400 && i < 500) || i >= 900;
    ASSERT_EQ(buffer_[i], wanted ? object_[i] : '#') << i;
  }
}

// Goal: waits double up to their maximum, and eight failures in a row end the request.
TEST_F(FetcherTest, BacksOffThenGivesUpNamingObjectAndRangeButNoQuery) {
  open(std::deque<Outcome>(8, deliver_then_fail(0)));
  const auto fetched = fetch_all();
  ASSERT_FALSE(fetched);
  EXPECT_THAT(times(), ElementsAre(0ms, 500ms, 1500ms, 3500ms, 7500ms, 15500ms, 31500ms, 51500ms));
  EXPECT_EQ(fetched.error().code(), ErrorCode::unavailable);
  EXPECT_THAT(fetched.error().message(),
              HasSubstr("https://host/model.safetensors bytes [0, 1000)"));
  EXPECT_THAT(fetched.error().message(), HasSubstr("scripted failure"));
  EXPECT_THAT(fetched.error().message(), Not(HasSubstr("secret")));
}

// Goal: jitter spreads the waits over the whole interval.
TEST_F(FetcherTest, ScalesTheBackoffByTheJitter) {
  std::deque<double> chances{0.0, 0.25};
  FetcherOptions options;
  options.jitter = [&] {
    const double chance = chances.front();
    chances.pop_front();
    return chance;
  };
  open({deliver_then_fail(0), deliver_then_fail(0)}, options);
  ASSERT_TRUE(fetch_all());
  EXPECT_THAT(times(), ElementsAre(0ms, 0ms, 250ms));
}

// Goal: a bad line that still moves bytes is endured without limit; one that only trickles is not.
// Method: 30 failures of 100 bytes each, with 100 and with 1000 bytes counting as progress.
TEST_F(FetcherTest, ProgressResetsTheCountOfFailures) {
  FetcherOptions options;
  options.retry.progress_bytes = 100;
  open(std::deque<Outcome>(29, deliver_then_fail(100)), options, 3000);
  const auto fetched = fetch_all();
  ASSERT_TRUE(fetched) << fetched.error().message();
  EXPECT_TRUE(buffer_ == object_);
  EXPECT_EQ(requested().size(), 30U);
  EXPECT_EQ(clock_.now(), 29 * 500ms);  // Each failure is the first in a row.
}

TEST_F(FetcherTest, TricklingDoesNotResetTheCountOfFailures) {
  FetcherOptions options;
  options.retry.progress_bytes = 1000;
  open(std::deque<Outcome>(29, deliver_then_fail(100)), options, 3000);
  const auto fetched = fetch_all();
  ASSERT_FALSE(fetched);
  EXPECT_EQ(fetched.error().code(), ErrorCode::unavailable);
  EXPECT_EQ(requested().size(), 8U);
}

// Goal: without any progress the request ends within give_up, whatever attempts are left.
TEST_F(FetcherTest, GivesUpWithoutProgressForAQuarterOfAnHour) {
  FetcherOptions options;
  options.retry.attempts_max = 1'000'000;
  open(std::deque<Outcome>(1000, deliver_then_fail(0)), options);
  const auto fetched = fetch_all();
  ASSERT_FALSE(fetched);
  EXPECT_EQ(fetched.error().code(), ErrorCode::unavailable);
  EXPECT_GT(clock_.now(), 14min);
  EXPECT_LE(clock_.now(), 15min);
}

// Goal: Retry-After is obeyed by every request to that origin, and cut to its maximum.
TEST_F(FetcherTest, RetryAfterHoldsBackTheWholeOrigin) {
  Outcome told{0, Error(ErrorCode::unavailable, "HTTP 429"), 30s};
  open({told});
  int done = 0;
  Monitor monitor(clock_);
  const auto count = [&](const Result<CrcRuns>& result) {
    EXPECT_TRUE(result);
    auto lock = monitor.lock();
    ++done;
    monitor.notify_all(lock);
  };
  fetcher_->submit(request({{0, 10}}), count);
  transport_->wait_for_started(2);
  // Opened while the origin must be left alone; another origin does not mind.
  const auto other = fetcher_->open(*parse_uri("https://other/x"), 1, {});
  ASSERT_TRUE(other);
  EXPECT_EQ(clock_.now(), 0s);
  fetcher_->submit(request({{20, 30}}), count);
  auto lock = monitor.lock();
  monitor.wait(lock, {}, [&] { return done == 2; });
  EXPECT_THAT(times(), ElementsAre(0s, 0s, 30s, 30s));
}

TEST_F(FetcherTest, ALongRetryAfterIsCut) {
  open({{0, Error(ErrorCode::unavailable, "HTTP 503"), 10h}});
  ASSERT_TRUE(fetch_all());
  EXPECT_THAT(times(), ElementsAre(0min, 5min));
}

// Goal: what no retry can mend ends the request at once, as what it is.
TEST_F(FetcherTest, FinalFailuresAreNotRetried) {
  for (const ErrorCode code : {ErrorCode::source_changed, ErrorCode::bad_input}) {
    open({deliver_then_fail(5, code)});
    const auto fetched = fetch_all();
    ASSERT_FALSE(fetched);
    EXPECT_EQ(fetched.error().code(), code);
    EXPECT_EQ(requested().size(), 1U);
  }
}

// Goal: a file that vanishes during the job is the job's problem, not a missing file.
TEST_F(FetcherTest, NotFoundAfterOpeningIsBadInput) {
  open({deliver_then_fail(0, ErrorCode::not_found)});
  EXPECT_EQ(fetch_all().error().code(), ErrorCode::bad_input);
  EXPECT_EQ(requested().size(), 1U);
}

// Goal: a retried opening goes on only with the same bytes.
// Method: the first try tells the object and drops; the second must ask for the tail of that one.
TEST_F(FetcherTest, AnOpeningThatIsRetriedPinsWhatTheFirstTrySaw) {
  ScriptedTransport transport(clock_, testing::test_object(80), {deliver_then_fail(30)});
  Fetcher fetcher(transport, clock_, {});
  const auto opened = fetcher.open(uri_, 1000, {});
  ASSERT_TRUE(opened) << opened.error().message();
  EXPECT_EQ(opened->head, testing::test_object(80));
  EXPECT_THAT(transport.requested(), ElementsAre(ByteRange{0, 1000}, ByteRange{30, 80}));
  EXPECT_EQ(transport.seen()[0].request.expected, std::nullopt);
  EXPECT_EQ(transport.seen()[1].request.expected, transport.info());
}

TEST_F(FetcherTest, OpeningWithKnowledgePinsItFromTheStart) {
  ScriptedTransport transport(clock_, testing::test_object(80), {});
  Fetcher fetcher(transport, clock_, {});
  ASSERT_TRUE(fetcher.open(uri_, 10, transport.info(), {}));
  EXPECT_EQ(transport.seen()[0].request.expected, transport.info());
}

TEST_F(FetcherTest, AnEmptyObjectIsBadInput) {
  ScriptedTransport transport(clock_, "", {});
  Fetcher fetcher(transport, clock_, {});
  EXPECT_EQ(fetcher.open(uri_, 10, {}).error().code(), ErrorCode::bad_input);
}

// Goal: never more transfers at once than connections, and all of them used.
// Method: ten transfers of 1 s over three connections take exactly 4 s of virtual time.
TEST_F(FetcherTest, AdmitsAsManyTransfersAsConnections) {
  FetcherOptions options;
  options.connections = 3;
  Outcome second;
  second.takes = 1s;
  open(std::deque<Outcome>(10, second), options);
  int done = 0;
  Monitor monitor(clock_);
  for (std::uint64_t i = 0; i < 10; ++i) {
    fetcher_->submit(request({{i * 10, i * 10 + 5}}), [&](const Result<CrcRuns>& result) {
      EXPECT_TRUE(result);
      auto lock = monitor.lock();
      ++done;
      monitor.notify_all(lock);
    });
  }
  auto lock = monitor.lock();
  monitor.wait(lock, {}, [&] { return done == 10; });
  EXPECT_EQ(transport_->in_flight_peak(), 3);
  EXPECT_EQ(clock_.now(), 4s);
  EXPECT_EQ(fetcher_->statistics().busy, 4s);
  EXPECT_THAT(times(), ElementsAre(0s, 0s, 0s, 1s, 1s, 1s, 2s, 2s, 2s, 3s));
  const auto ranges = requested();
  EXPECT_TRUE(std::is_sorted(ranges.begin(), ranges.end(),
                             [](const auto& a, const auto& b) { return a.begin < b.begin; }));
}

// Goal: a request that waits to be retried gives its connection to the next one, and goes first
// once its time has come.
TEST_F(FetcherTest, ABackoffDoesNotHoldAConnection) {
  FetcherOptions options;
  options.connections = 1;
  Outcome slow;
  slow.takes = 400ms;
  open({deliver_then_fail(0), slow, slow}, options);
  int done = 0;
  Monitor monitor(clock_);
  for (std::uint64_t i = 0; i < 4; ++i) {
    fetcher_->submit(request({{i * 10, i * 10 + 5}}), [&](const Result<CrcRuns>& result) {
      EXPECT_TRUE(result);
      auto lock = monitor.lock();
      ++done;
      monitor.notify_all(lock);
    });
  }
  auto lock = monitor.lock();
  monitor.wait(lock, {}, [&] { return done == 4; });
  EXPECT_THAT(requested(), ElementsAre(ByteRange{0, 5}, ByteRange{10, 15}, ByteRange{20, 25},
                                       ByteRange{0, 5}, ByteRange{30, 35}));
}

// Goal: completions may queue more work.
TEST_F(FetcherTest, DoneMaySubmit) {
  open({});
  Monitor monitor(clock_);
  bool done = false;
  fetcher_->submit(request({{0, 10}}), [&](const Result<CrcRuns>&) {
    fetcher_->submit(request({{10, 20}}), [&](const Result<CrcRuns>&) {
      auto lock = monitor.lock();
      done = true;
      monitor.notify_all(lock);
    });
  });
  auto lock = monitor.lock();
  monitor.wait(lock, {}, [&] { return done; });
  EXPECT_EQ(buffer_.substr(0, 20), object_.substr(0, 20));
}

// Goal: a stop ends a fetch at once, whether it is on the wire or waits for a retry.
// Method: the test's own activity holds time still, so only the stop can end it.
TEST_F(FetcherTest, AStopEndsATransferOnTheWire) {
  Outcome forever;
  forever.forever = true;
  open({forever});
  std::stop_source source;
  auto stopper = start_thread(clock_, [&](const std::stop_token&) {
    transport_->wait_for_started(2);
    source.request_stop();
  });
  const auto fetched = fetcher_->fetch(request({{0, 10}}), source.get_token());
  ASSERT_FALSE(fetched);
  EXPECT_EQ(fetched.error().code(), ErrorCode::cancelled);
  EXPECT_EQ(buffer_.substr(0, 10), "##########");
}

TEST_F(FetcherTest, AStopEndsABackoff) {
  open({{0, Error(ErrorCode::unavailable, "HTTP 429"), 4min}});
  std::stop_source source;
  Activity still(clock_);
  auto stopper = start_thread(clock_, [&](const std::stop_token&) {
    while (fetcher_->statistics().retries == 0) {
      std::this_thread::yield();
    }
    source.request_stop();
  });
  const auto fetched = fetcher_->fetch(request({{0, 10}}), source.get_token());
  ASSERT_FALSE(fetched);
  EXPECT_EQ(fetched.error().code(), ErrorCode::cancelled);
  EXPECT_EQ(requested().size(), 1U);
  EXPECT_EQ(clock_.now(), 0s);
}

// Goal: destruction answers every request with cancelled, once, and lets go of all destinations.
TEST_F(FetcherTest, DestructionCancelsWhatFliesAndWhatWaits) {
  FetcherOptions options;
  options.connections = 2;
  Outcome forever;
  forever.forever = true;
  open({forever, forever}, options);
  std::vector<ErrorCode> ends;
  for (std::uint64_t i = 0; i < 5; ++i) {
    fetcher_->submit(request({{i * 10, i * 10 + 5}}),
                     [&](const Result<CrcRuns>& result) { ends.push_back(result.error().code()); });
  }
  transport_->wait_for_started(3);
  fetcher_.reset();
  EXPECT_EQ(ends, std::vector<ErrorCode>(5, ErrorCode::cancelled));
  EXPECT_EQ(requested().size(), 2U);
  EXPECT_EQ(buffer_, std::string(buffer_.size(), '#'));
}

// Goal: a small object is one request, a larger one two, and a too large one is refused.
TEST_F(FetcherTest, ReadObjectNeedsOneRequestForASmallObject) {
  ScriptedTransport transport(clock_, testing::test_object(5000), {});
  Fetcher fetcher(transport, clock_, {});
  const auto text = read_object(fetcher, uri_, 1U << 20U, {});
  ASSERT_TRUE(text);
  EXPECT_EQ(*text, testing::test_object(5000));
  EXPECT_EQ(transport.requested().size(), 1U);
}

}  // namespace
}  // namespace librarian::weightmap::remote
