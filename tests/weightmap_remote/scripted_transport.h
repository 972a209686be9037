#pragma once
/// A transport that does as it is told, on the test's clock.

#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote::testing {

/// What becomes of one transfer. By default all of it arrives at once.
struct Outcome {
  std::optional<std::uint64_t> deliver;  ///< Bytes in place at its end; none: all.
  std::optional<Error> error = std::nullopt;
  std::optional<Duration> retry_after = std::nullopt;
  Duration takes{};                               ///< Time on the clock until then.
  bool forever = false;                           ///< Ends only by its stop.
  std::optional<std::uint64_t> answers_for = {};  ///< Of what it delivered; none: all.
};

Outcome deliver_all();
Outcome deliver_then_fail(std::uint64_t bytes, ErrorCode code = ErrorCode::unavailable);

/// Serves one object under every URI. Transfers follow the outcomes in order, then deliver all.
class ScriptedTransport final : public Transport {
 public:
  struct Seen {
    TransferRequest request;
    TimePoint at;
  };

  ScriptedTransport(Clock& clock, std::string object, std::deque<Outcome> script);
  void start(TransferRequest request, std::function<void(TransferResult)> done) override;

  std::vector<Seen> seen() const;
  std::vector<ByteRange> requested() const;
  int in_flight_peak() const;
  /// Returns once `count` transfers were started.
  void wait_for_started(std::size_t count);
  ObjectInfo info() const { return info_; }

 private:
  void carry_out(const TransferRequest& request, const Outcome& outcome,
                 const std::function<void(TransferResult)>& done);

  Clock& clock_;
  const std::string object_;
  const ObjectInfo info_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Outcome> script_;
  std::vector<Seen> seen_;
  int in_flight_ = 0;
  int in_flight_peak_ = 0;
  std::vector<std::jthread> threads_;
};

}  // namespace librarian::weightmap::remote::testing
