#include "scripted_transport.h"

#include <algorithm>
#include <span>

#include "weightmap/remote/scatter.h"

namespace librarian::weightmap::remote::testing {

Outcome deliver_all() { return {}; }

Outcome deliver_then_fail(std::uint64_t bytes, ErrorCode code) {
  return {bytes, Error(code, "scripted failure")};
}

ScriptedTransport::ScriptedTransport(Clock& clock, std::string object, std::deque<Outcome> script)
    : clock_(clock),
      object_(std::move(object)),
      info_{object_.size(), "\"v1\"", true},
      script_(std::move(script)) {}

void ScriptedTransport::start(TransferRequest request, std::function<void(TransferResult)> done) {
  Outcome outcome;
  {
    const std::lock_guard guard(mutex_);
    seen_.push_back({request, clock_.now()});
    in_flight_peak_ = std::max(in_flight_peak_, ++in_flight_);
    if (!script_.empty()) {
      outcome = script_.front();
      script_.pop_front();
    }
  }
  changed_.notify_all();
  if (!outcome.forever && outcome.takes == Duration{}) {
    carry_out(request, outcome, done);  // Before start() returns: that is allowed.
    return;
  }
  auto thread = start_thread(clock_, [this, request, outcome, done](const std::stop_token&) {
    if (outcome.forever) {
      Monitor never(clock_);  // No deadline: virtual time would jump to it.
      auto lock = never.lock();
      never.wait(lock, request.stop, [] { return false; });
    } else {
      clock_.sleep_for(outcome.takes, request.stop);
    }
    carry_out(request, outcome, done);
  });
  const std::lock_guard guard(mutex_);
  threads_.push_back(std::move(thread));
}

void ScriptedTransport::carry_out(const TransferRequest& request, const Outcome& outcome,
                                  const std::function<void(TransferResult)>& done) {
  TransferResult result;
  if (request.stop.stop_requested()) {
    result.error = Error(ErrorCode::cancelled, "stopped");
  } else {
    const std::uint64_t end = std::min<std::uint64_t>(request.range.end, object_.size());
    const std::uint64_t bytes =
        std::min(outcome.deliver.value_or(end - request.range.begin), end - request.range.begin);
    Scatter scatter(request.range.begin, request.pieces);
    scatter.append(std::as_bytes(std::span(object_)).subspan(request.range.begin, bytes));
    result.body_bytes = bytes;
    result.bytes_in_order = outcome.answers_for.value_or(bytes);
    result.piece_bytes = scatter.piece_bytes();
    result.crcs = scatter.crcs();
    result.info = info_;
    result.status = 206;
    result.retry_after = outcome.retry_after;
    result.error = outcome.error;
  }
  {
    const std::lock_guard guard(mutex_);
    --in_flight_;
  }
  done(std::move(result));
}

std::vector<ScriptedTransport::Seen> ScriptedTransport::seen() const {
  const std::lock_guard guard(mutex_);
  return seen_;
}

std::vector<ByteRange> ScriptedTransport::requested() const {
  std::vector<ByteRange> ranges;
  for (const Seen& one : seen()) {
    ranges.push_back(one.request.range);
  }
  return ranges;
}

int ScriptedTransport::in_flight_peak() const {
  const std::lock_guard guard(mutex_);
  return in_flight_peak_;
}

void ScriptedTransport::wait_for_started(std::size_t count) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return seen_.size() >= count; });
}

}  // namespace librarian::weightmap::remote::testing
