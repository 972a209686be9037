#include "paced_transport.h"

#include <algorithm>

#include "loopback_server.h"
#include "weightmap/remote/scatter.h"

namespace librarian::weightmap::remote::testing {
namespace {

constexpr std::uint64_t kStepBytes = 64U << 10U;

}  // namespace

PacedTransport::PacedTransport(Clock& clock, std::uint64_t size, const Pace& pace, Script script)
    : clock_(clock), object_(test_object(size)), pace_(pace), script_(std::move(script)) {}

PacedTransport::~PacedTransport() = default;

void PacedTransport::start(TransferRequest request, std::function<void(TransferResult)> done) {
  const std::lock_guard guard(mutex_);
  const int number = static_cast<int>(seen_.size());
  seen_.push_back({request.range, clock_.now(), ++in_flight_});
  const Special special = script_ ? script_(number, request) : Special{};
  threads_.push_back(start_thread(clock_, [this, special, request = std::move(request),
                                           done = std::move(done)](const std::stop_token&) {
    TransferResult result = carry_out(request, special);
    {
      const std::lock_guard ended(mutex_);
      --in_flight_;
    }
    done(std::move(result));
  }));
}

TransferResult PacedTransport::carry_out(const TransferRequest& request, const Special& special) {
  const std::uint64_t end = std::min<std::uint64_t>(request.range.end, object_.size());
  const auto wanted = static_cast<double>(end - request.range.begin);
  const std::uint64_t stop_at =
      special.error ? request.range.begin + static_cast<std::uint64_t>(wanted * special.fails_after)
                    : end;
  Scatter scatter(request.range.begin, request.pieces);
  TransferResult result;
  result.info = ObjectInfo{object_.size(), "\"v1\"", true};
  result.status = special.status;
  result.retry_after = special.retry_after;
  result.first_byte = pace_.first_byte;
  bool going = clock_.sleep_for(pace_.first_byte, request.stop);
  while (going && scatter.position() < stop_at) {
    const std::uint64_t step = std::min(stop_at - scatter.position(), kStepBytes);
    double rate = pace_.bytes_per_s / special.slower;
    if (pace_.bytes_per_s_together) {
      const std::lock_guard guard(mutex_);
      rate = std::min(rate, *pace_.bytes_per_s_together / in_flight_);
    }
    going = clock_.sleep_for(std::chrono::duration_cast<Duration>(
                                 std::chrono::duration<double>(static_cast<double>(step) / rate)),
                             request.stop);
    if (going) {
      std::string bytes = object_.substr(scatter.position(), step);
      if (special.wrong_tail &&
          scatter.position() >= request.range.begin + request.range.size() / 2) {
        std::for_each(bytes.begin(), bytes.end(), [](char& byte) { byte ^= 1; });
      }
      scatter.append(std::as_bytes(std::span(bytes)));
      if (request.progress) {
        request.progress->store(scatter.position() - request.range.begin);
      }
    }
  }
  result.bytes_in_order = result.body_bytes = scatter.position() - request.range.begin;
  result.piece_bytes = scatter.piece_bytes();
  result.crcs = scatter.crcs();
  if (!going) {
    result.error = Error(ErrorCode::cancelled, "stopped");
  } else {
    result.error = special.error;
  }
  return result;
}

std::vector<PacedTransport::Seen> PacedTransport::seen() const {
  const std::lock_guard guard(mutex_);
  return seen_;
}

}  // namespace librarian::weightmap::remote::testing
