// How the fetcher keeps up with stores far away: on virtual time, so that waits of minutes cost
// nothing and rates are exact.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/digest.h"
#include "paced_transport.h"
#include "tests/support/fake_clock.h"
#include "weightmap/remote/fetcher.h"

namespace librarian::weightmap::remote {
namespace {

using namespace std::chrono_literals;
using testing::Pace;
using testing::PacedTransport;
using testing::Special;

// A quarter of a MiB stands for one, and 10 MB/s for 40: the same times with less memory.
constexpr std::uint64_t kUnit = 256U << 10U;

double seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }

class FetchPaceTest : public ::testing::Test {
 protected:
  void open(std::uint64_t size, const Pace& pace, FetcherOptions options,
            PacedTransport::Script script = {}, const char* uri = "https://host/m") {
    transport_ = std::make_unique<PacedTransport>(clock_, size, pace, std::move(script));
    buffer_.assign(size, '#');
    options.jitter = [] { return 1.0; };
    fetcher_ = std::make_unique<Fetcher>(*transport_, clock_, options);
    const auto opened =
        fetcher_->open(Uri{uri[0] == 'h' && uri[1] == 'f' ? "hf" : "https", uri}, 1, {});
    ASSERT_TRUE(opened) << opened.error().message();
    id_ = opened->id;
  }

  // Fetches [begin, end) in requests of `request_bytes` and waits for all of it.
  void fetch(std::uint64_t begin, std::uint64_t end, std::uint64_t request_bytes,
             std::uint64_t group = 0) {
    Monitor monitor(clock_);
    std::uint64_t left = 0;
    for (std::uint64_t at = begin; at < end; at += request_bytes) {
      const ByteRange range{at, std::min(at + request_bytes, end)};
      {
        auto lock = monitor.lock();
        ++left;
      }
      fetcher_->submit({id_, {{range, reinterpret_cast<std::byte*>(buffer_.data()) + at}}, group},
                       [&, range](const Result<CrcRuns>& result) {
                         EXPECT_TRUE(result) << result.error().message();
                         // Of the bytes that count, whichever requests brought them.
                         EXPECT_EQ(*result, (CrcRuns{{range, crc_of_object(range)}}));
                         auto lock = monitor.lock();
                         --left;
                         monitor.notify_all(lock);
                       });
    }
    auto lock = monitor.lock();
    monitor.wait(lock, {}, [&] { return left == 0; });
  }
  std::uint32_t crc_of_object(ByteRange range) const {
    return crc32c(
        std::as_bytes(std::span(transport_->object())).subspan(range.begin, range.size()));
  }
  void expect_right_bytes(std::uint64_t begin, std::uint64_t end) {
    EXPECT_TRUE(std::string_view(buffer_).substr(begin, end - begin) ==
                std::string_view(transport_->object()).substr(begin, end - begin));
  }
  int in_flight_peak() const {
    int peak = 0;
    for (const auto& seen : transport_->seen()) {
      peak = std::max(peak, seen.in_flight);
    }
    return peak;
  }

  librarian::testing::FakeClock clock_;
  Activity running_{clock_};
  std::string buffer_;
  ObjectId id_ = 0;
  std::unique_ptr<PacedTransport> transport_;
  std::unique_ptr<Fetcher> fetcher_;
};

// Goal: where more connections bring more bytes, all that are allowed are used, soon.
TEST_F(FetchPaceTest, ConnectionsGrowWhileThatHelps) {
  FetcherOptions options;
  options.connections = 16;
  open(512 * kUnit, {}, options);
  fetch(0, 512 * kUnit, 8 * kUnit);
  expect_right_bytes(0, 512 * kUnit);
  EXPECT_EQ(in_flight_peak(), 16);
}

// Goal: where they bring nothing, an origin is not burdened with more of them.
TEST_F(FetchPaceTest, ConnectionsStayFewWhereTheLineIsFull) {
  FetcherOptions options;
  options.connections = 64;
  Pace pace;
  pace.bytes_per_s_together = 25e6;
  open(512 * kUnit, pace, options);
  fetch(0, 512 * kUnit, 4 * kUnit);
  expect_right_bytes(0, 512 * kUnit);
  const auto seen = transport_->seen();
  EXPECT_LE(in_flight_peak(), 32);  // Tried once, and given up again.
  for (auto late = seen.begin() + static_cast<std::ptrdiff_t>(seen.size() * 3 / 4);
       late != seen.end(); ++late) {
    EXPECT_LE(late->in_flight, 16);
  }
}

// Goal: a hub, whose limits are told only by refusals, is begun with four.
TEST_F(FetchPaceTest, AHubBeginsLow) {
  FetcherOptions options;
  options.connections = 16;
  Pace pace;
  pace.bytes_per_s = 2.5e6;
  open(256 * kUnit, pace, options, {}, "hf://org/name@0123456789012345678901234567890123456789/m");
  fetch(0, 256 * kUnit, 8 * kUnit);
  int at_first = 0;
  for (const auto& seen : transport_->seen()) {
    at_first = std::max(at_first, seen.at < 500ms ? seen.in_flight : 0);
  }
  EXPECT_EQ(at_first, 4);
  EXPECT_EQ(in_flight_peak(), 16);
}

// Goal: an origin that says "slow down" is sent half as many requests, not the same again.
TEST_F(FetchPaceTest, ARefusalHalvesTheConnections) {
  FetcherOptions options;
  options.connections = 8;
  open(256 * kUnit, {}, options, [](int number, const TransferRequest&) {
    Special special;
    if (number == 5) {
      special.error = Error(ErrorCode::unavailable, "HTTP 503");
      special.fails_after = 0;
      special.status = 503;
    }
    return special;
  });
  fetch(0, 256 * kUnit, 4 * kUnit);
  expect_right_bytes(0, 256 * kUnit);
  const auto seen = transport_->seen();
  int peak_after = 0;
  for (const auto& one : seen) {
    // Those of before take up to 0.14 s to end; the number grows again much later.
    peak_after = std::max(peak_after, one.at > 300ms && one.at < 2s ? one.in_flight : 0);
  }
  EXPECT_EQ(in_flight_peak(), 8);
  EXPECT_EQ(peak_after, 4);
}

// Goal: requests are so large that waiting for first bytes costs less than 5 % of the time.
TEST_F(FetchPaceTest, SizesFollowFirstByteTimeAndRate) {
  FetcherOptions options;
  options.connections = 4;
  Pace pace;
  pace.first_byte = 20ms;
  open(128 * kUnit, pace, options);
  fetch(0, 128 * kUnit, 8 * kUnit);
  const RequestSizes sizes = fetcher_->sizes(id_);
  const double transfer_s = static_cast<double>(sizes.request_bytes) / 10e6;
  EXPECT_GT(transfer_s / (transfer_s + 0.020), 0.95);
  EXPECT_LE(sizes.request_bytes, 64U << 20U);
  EXPECT_NEAR(static_cast<double>(sizes.hole_bytes), 0.020 * 10e6, 0.1 * 0.020 * 10e6);
}

// Every 33rd request is ten times slower than the others.
Special straggler(int number, const TransferRequest& /*request*/) {
  Special special;
  special.slower = number % 33 == 17 ? 10 : 1;
  return special;
}

// Goal: a few slow answers hardly delay a layer, at few extra bytes.
TEST_F(FetchPaceTest, StragglersAreAskedForAgain) {
  constexpr std::uint64_t kLayer = 128 * kUnit;
  constexpr int kLayers = 8;
  FetcherOptions options;
  options.connections = 16;
  options.hedge_budget = 0.05;
  open(kLayers * kLayer, {}, options, straggler);
  std::vector<double> took;
  for (std::uint64_t layer = 0; layer < kLayers; ++layer) {
    const TimePoint begin = clock_.now();
    fetch(layer * kLayer, (layer + 1) * kLayer, 8 * kUnit, layer);
    took.push_back(seconds(clock_.now() - begin));
  }
  expect_right_bytes(0, kLayers * kLayer);
  std::sort(took.begin(), took.end());
  EXPECT_LE(took.back(), 3.5 * took[took.size() / 2]);
  const FetchStatistics statistics = fetcher_->statistics();
  EXPECT_GT(statistics.hedges, 0U);
  EXPECT_LE(statistics.body_bytes, kLayers * kLayer * 105 / 100 + 1);
  EXPECT_LE(statistics.hedge_bytes, kLayers * kLayer / 20);
}

TEST_F(FetchPaceTest, WithoutABudgetNothingIsSentTwice) {
  FetcherOptions options;
  options.connections = 16;
  open(512 * kUnit, {}, options, straggler);
  fetch(0, 512 * kUnit, 8 * kUnit);
  EXPECT_EQ(fetcher_->statistics().hedges, 0U);
  EXPECT_EQ(fetcher_->statistics().body_bytes, 512 * kUnit + 1);
}

// Goal: the share of extra bytes is never above the budget, however many requests are late.
TEST_F(FetchPaceTest, TheBudgetHolds) {
  FetcherOptions options;
  options.connections = 8;
  options.hedge_budget = 0.01;
  open(512 * kUnit, {}, options, [](int number, const TransferRequest&) {
    Special special;
    special.slower = number > 16 && number % 4 == 0 ? 10 : 1;
    return special;
  });
  fetch(0, 512 * kUnit, 4 * kUnit);
  expect_right_bytes(0, 512 * kUnit);
  const FetchStatistics statistics = fetcher_->statistics();
  EXPECT_GT(statistics.hedges, 0U);
  EXPECT_LE(statistics.body_bytes, 512 * kUnit * 101 / 100 + 1);
}

// Goal: a second request that fails costs nothing; the first one still counts.
TEST_F(FetchPaceTest, AFailedHedgeIsForgotten) {
  FetcherOptions options;
  options.connections = 8;
  options.hedge_budget = 0.5;
  open(128 * kUnit, {}, options, [](int number, const TransferRequest& request) {
    Special special;
    const bool late = request.range.begin >= 100 * kUnit && request.range.begin < 104 * kUnit;
    special.slower = late && request.range.size() == 4 * kUnit ? 20 : 1;
    if (number > 1 && late && request.range.size() < 4 * kUnit) {
      special.error = Error(ErrorCode::bad_input, "no");
      special.fails_after = 0.5;
    }
    return special;
  });
  fetch(0, 128 * kUnit, 4 * kUnit);
  expect_right_bytes(0, 128 * kUnit);
  EXPECT_EQ(fetcher_->statistics().hedges, 1U);
  EXPECT_EQ(fetcher_->statistics().retries, 0U);
}

// Goal: when the late request dies after all, what the second one brings is used.
TEST_F(FetchPaceTest, AHedgeOutlivesTheFirstRequest) {
  FetcherOptions options;
  options.connections = 8;
  options.hedge_budget = 0.5;
  open(128 * kUnit, {}, options, [](int, const TransferRequest& request) {
    Special special;
    if (request.range.begin == 100 * kUnit) {
      special.slower = 10;
      special.error = Error(ErrorCode::unavailable, "reset");
      special.fails_after = 0.4;  // After the second one began, before it ended.
    } else if (request.range.begin > 100 * kUnit && request.range.begin < 104 * kUnit) {
      special.slower = 5;
    }
    return special;
  });
  fetch(0, 128 * kUnit, 4 * kUnit);
  expect_right_bytes(0, 128 * kUnit);
  EXPECT_EQ(fetcher_->statistics().hedges, 1U);
  EXPECT_EQ(fetcher_->statistics().retries, 0U);
}

// Goal: of two requests for the same bytes, the checksum is that of the one that counts: if the
// other one writes something else to their place, memory and checksum disagree, which its user
// sees. Method: a late request whose second half is wrong, and which reaches it before the second
// request ends; pieces that do not begin where runs do.
TEST_F(FetchPaceTest, ASlowRequestThatWritesOtherBytesDoesNotFitTheChecksum) {
  FetcherOptions options;
  options.connections = 8;
  options.hedge_budget = 0.5;
  open(128 * kUnit, {}, options, [](int, const TransferRequest& request) {
    Special special;
    if (request.range.begin == 100 * kUnit + 7) {
      special.slower = 6;
      special.wrong_tail = true;
    } else if (request.range.begin > 100 * kUnit + 7 && request.range.end == 104 * kUnit + 7) {
      special.slower = 3.2;
    }
    return special;
  });
  fetch(7, 128 * kUnit, 4 * kUnit);
  EXPECT_EQ(fetcher_->statistics().hedges, 1U);
  EXPECT_EQ(fetcher_->statistics().retries, 0U);
  EXPECT_NE(crc32c(std::as_bytes(std::span(buffer_)).subspan(100 * kUnit + 7, 4 * kUnit)),
            crc_of_object({100 * kUnit + 7, 104 * kUnit + 7}))
      << "the slow one wrote last somewhere";
}

// Goal: layers that are needed later do not spend the budget.
TEST_F(FetchPaceTest, OnlyTheTwoNearestGroupsAreHedged) {
  FetcherOptions options;
  options.connections = 8;
  options.hedge_budget = 1;
  open(160 * kUnit, {}, options, [](int, const TransferRequest& request) {
    Special special;
    // Of each group the first request; that of the nearest one is the slowest.
    special.slower = request.range.begin == 64 * kUnit    ? 40
                     : request.range.begin == 96 * kUnit  ? 20
                     : request.range.begin == 128 * kUnit ? 15
                                                          : 1;
    return special;
  });
  fetch(0, 64 * kUnit, 4 * kUnit, 0);  // What is usual is known now.
  const std::size_t first = transport_->seen().size();
  Monitor monitor(clock_);
  int left = 3;
  for (std::uint64_t group = 1; group <= 3; ++group) {
    const std::uint64_t begin = 32 * kUnit + group * 32 * kUnit;
    fetcher_->submit(
        {id_,
         {{{begin, begin + 4 * kUnit}, reinterpret_cast<std::byte*>(buffer_.data()) + begin}},
         group},
        [&](const Result<CrcRuns>& result) {
          EXPECT_TRUE(result);
          auto lock = monitor.lock();
          --left;
          monitor.notify_all(lock);
        });
  }
  {
    auto lock = monitor.lock();
    monitor.wait(lock, {}, [&] { return left == 0; });
  }
  // The third group's request was late as well, and had to wait until another group was done.
  const auto seen = transport_->seen();
  ASSERT_GE(seen.size(), first + 5);
  EXPECT_LT(seen[first + 3].range.begin, 128 * kUnit);
  EXPECT_LT(seen[first + 4].range.begin, 128 * kUnit);
}

}  // namespace
}  // namespace librarian::weightmap::remote
