// What every transport must do, shown through the Fetcher on the real ones: files and libcurl.

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>

#include "loopback_server.h"
#include "weightmap/remote/fetcher.h"

namespace librarian::weightmap::remote {
namespace {

using testing::LoopbackServer;

constexpr std::uint64_t kObjectBytes = 3'000'017;  // Several read calls, no round number.

// One place that serves `object`, and what is under test to read it.
class Place {
 public:
  explicit Place(const std::string& kind, std::string object) : object_(std::move(object)) {
    if (kind == "http") {
      server_ = std::make_unique<LoopbackServer>(
          [this](const testing::HttpRequest& request) -> testing::HttpAnswer {
            if (request.target == "/object") {
              return testing::honest(object_, request);
            }
            return {testing::head("404 Not Found", {"Content-Length: 0"})};
          });
      return;
    }
    const std::string pattern = std::filesystem::temp_directory_path() / "librarian-test-XXXXXX";
    std::string made = pattern;
    LIB_CHECK(::mkdtemp(made.data()) != nullptr);
    directory_ = made;
    std::ofstream(directory_ / "object") << object_;
  }
  ~Place() {
    if (!directory_.empty()) {
      std::filesystem::remove_all(directory_);
    }
  }
  Uri uri(const std::string& name) const {
    return *parse_uri(server_ ? server_->url("/" + name) : (directory_ / name).string());
  }

 private:
  std::string object_;
  std::unique_ptr<LoopbackServer> server_;
  std::filesystem::path directory_;
};

class TransportConformance : public ::testing::TestWithParam<const char*> {
 protected:
  const std::string object_ = testing::test_object(kObjectBytes);
  Place place_{GetParam(), object_};
  std::unique_ptr<Transport> transport_ = make_transport(real_clock(), {});
  Fetcher fetcher_{*transport_, real_clock(), {.connections = 4, .retry = {}, .jitter = {}}};
};

std::byte* bytes_of(std::string& text) { return reinterpret_cast<std::byte*>(text.data()); }

// Goal: opening tells size, validator and first bytes in one request.
// Method: open with a head shorter and longer than the object.
TEST_P(TransportConformance, OpeningTellsSizeValidatorAndHead) {
  const auto part = fetcher_.open(place_.uri("object"), 1000, {});
  ASSERT_TRUE(part) << part.error().message();
  EXPECT_EQ(part->info.size, kObjectBytes);
  EXPECT_FALSE(part->info.validator.empty());
  EXPECT_EQ(part->head, object_.substr(0, 1000));
  const auto whole = fetcher_.open(place_.uri("object"), kObjectBytes + 5, {});
  ASSERT_TRUE(whole) << whole.error().message();
  EXPECT_EQ(whole->head, object_);
  EXPECT_EQ(whole->info, part->info);
  EXPECT_NE(whole->id, part->id);
  EXPECT_EQ(fetcher_.statistics().requests, 2U);
}

// Goal: each piece gets its bytes and nothing else is written.
// Method: pieces with holes between them inside one buffer of a known filling.
TEST_P(TransportConformance, ScattersPiecesAndLeavesTheRestAlone) {
  const auto opened = fetcher_.open(place_.uri("object"), 1, {});
  ASSERT_TRUE(opened) << opened.error().message();
  std::string buffer(100'000, '#');
  std::string expected = buffer;
  const std::vector<ByteRange> ranges = {
      {7, 8}, {8, 1000}, {60'000, 99'991}, {2'999'000, kObjectBytes}};
  FetchRequest request{opened->id, {}};
  std::uint64_t at = 1;
  for (const ByteRange& range : ranges) {
    request.pieces.push_back({range, bytes_of(buffer) + at});
    expected.replace(at, range.size(), object_.substr(range.begin, range.size()));
    at += range.size() + 3;
  }
  const auto fetched = fetcher_.fetch(std::move(request), {});
  ASSERT_TRUE(fetched) << fetched.error().message();
  EXPECT_TRUE(buffer == expected);
}

// Goal: many requests at once all get the right bytes.
// Method: 200 requests of odd sizes over 4 connections; compare the whole.
TEST_P(TransportConformance, ManyRequestsAtOnceFillTheirPlaces) {
  const auto opened = fetcher_.open(place_.uri("object"), 1, {});
  ASSERT_TRUE(opened) << opened.error().message();
  std::string buffer(kObjectBytes, '#');
  constexpr std::uint64_t kStep = 15'013;
  std::mutex mutex;
  std::condition_variable changed;
  std::uint64_t left = 0;
  for (std::uint64_t begin = 0; begin < kObjectBytes; begin += kStep) {
    const ByteRange range{begin, std::min(begin + kStep, kObjectBytes)};
    {
      const std::lock_guard guard(mutex);
      ++left;
    }
    fetcher_.submit({opened->id, {{range, bytes_of(buffer) + begin}}},
                    [&](const Result<CrcRuns>& result) {
                      EXPECT_TRUE(result) << result.error().message();
                      const std::lock_guard guard(mutex);
                      --left;
                      changed.notify_all();
                    });
  }
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return left == 0; });
  EXPECT_TRUE(buffer == object_);
  EXPECT_EQ(fetcher_.statistics().piece_bytes, kObjectBytes + 1);
  EXPECT_EQ(fetcher_.statistics().retries, 0U);
}

// Goal: a missing file is told apart from every other failure, and named.
TEST_P(TransportConformance, AMissingObjectIsNotFound) {
  const auto opened = fetcher_.open(place_.uri("nothing"), 10, {});
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code(), ErrorCode::not_found);
  EXPECT_NE(opened.error().message().find("/nothing"), std::string::npos);
}

// Goal: bytes past the end are refused before they are asked for.
TEST_P(TransportConformance, ARequestPastTheEndIsBadInput) {
  const auto opened = fetcher_.open(place_.uri("object"), 1, {});
  ASSERT_TRUE(opened) << opened.error().message();
  std::string buffer(10, '#');
  const ByteRange range{kObjectBytes - 9, kObjectBytes + 1};
  const auto fetched = fetcher_.fetch({opened->id, {{range, bytes_of(buffer)}}}, {});
  ASSERT_FALSE(fetched);
  EXPECT_EQ(fetched.error().code(), ErrorCode::bad_input);
  EXPECT_EQ(buffer, std::string(10, '#'));
}

// Goal: small objects are read whole, large ones refused.
TEST_P(TransportConformance, ReadObjectReadsAllOrRefuses) {
  const auto all = read_object(fetcher_, place_.uri("object"), kObjectBytes, {});
  ASSERT_TRUE(all) << all.error().message();
  EXPECT_TRUE(*all == object_);
  const auto refused = read_object(fetcher_, place_.uri("object"), kObjectBytes - 1, {});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), ErrorCode::bad_input);
}

INSTANTIATE_TEST_SUITE_P(Real, TransportConformance, ::testing::Values("file", "http"),
                         [](const auto& place) { return std::string(place.param); });

}  // namespace
}  // namespace librarian::weightmap::remote
