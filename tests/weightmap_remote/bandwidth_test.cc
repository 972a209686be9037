// The bandwidth limit in libcurl's loop, against a server that sends as fast as it can.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "loopback_server.h"

namespace librarian::weightmap::remote {
namespace {

using namespace std::chrono_literals;
using Seconds = std::chrono::duration<double>;
using testing::head;
using testing::HttpAnswer;
using testing::HttpRequest;
using testing::LoopbackServer;

constexpr std::uint64_t kRate = 20'000'000;
// The bucket's tenth of a second, and what libcurl may read between two looks at it.
constexpr double kAheadSecondsMax = 0.35;
constexpr std::uint64_t kPartBytes = 4U << 20U;
constexpr int kParts = 8;

HttpAnswer fast(const HttpRequest& request) {
  constexpr std::uint64_t kPieceBytes = 256U << 10U;
  HttpAnswer answer;
  answer.bytes =
      head("206 Partial Content",
           {"Content-Range: bytes " + std::to_string(request.range->begin) + "-" +
                std::to_string(request.range->end - 1) + "/" + std::to_string(kParts * kPartBytes),
            "Content-Length: " + std::to_string(request.range->size()), "ETag: \"v1\""});
  answer.endless = std::string(kPieceBytes, 'x');
  answer.endless_times = request.range->size() / kPieceBytes;
  return answer;
}

// Goal: --max-bandwidth holds from the first byte on, where many connections begin at once and the
// server could send hundreds of MB in that moment.
// Method: after each look at what has come, time that has passed since before the first request
// must have allowed it. A slow machine only sees less.
TEST(Bandwidth, HoldsFromTheFirstByteOn) {
  LoopbackServer server(&fast);
  std::vector<std::byte> bytes(kParts * kPartBytes);
  std::vector<std::shared_ptr<std::atomic<std::uint64_t>>> progress;
  std::atomic<int> landed = 0;
  std::atomic<int> failed = 0;
  TransportOptions options;
  options.connections = kParts;
  options.bandwidth_max = kRate;
  const auto transport = make_transport(real_clock(), options);
  const auto begin = std::chrono::steady_clock::now();
  for (std::uint64_t part = 0; part < kParts; ++part) {
    TransferRequest request;
    request.uri = *parse_uri(server.url("/model"));
    request.range = {part * kPartBytes, (part + 1) * kPartBytes};
    request.pieces = {{request.range, &bytes[request.range.begin]}};
    request.progress = progress.emplace_back(std::make_shared<std::atomic<std::uint64_t>>(0));
    transport->start(std::move(request), [&](const TransferResult& result) {
      failed += result.error ? 1 : 0;
      ++landed;
    });
  }
  double ahead_seconds = 0;
  while (landed < kParts) {
    std::uint64_t received = 0;
    for (const auto& part : progress) {
      received += *part;
    }
    const Seconds passed = std::chrono::steady_clock::now() - begin;
    ahead_seconds = std::max(ahead_seconds, static_cast<double>(received) / kRate - passed.count());
    std::this_thread::sleep_for(1ms);
  }
  EXPECT_EQ(failed, 0);
  EXPECT_LE(ahead_seconds, kAheadSecondsMax);
}

}  // namespace
}  // namespace librarian::weightmap::remote
