#pragma once
/// A transport with the pace of a store far away, on the test's clock: a first byte that takes its
/// time, a rate per connection, and some requests that are slow or fail.

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote::testing {

struct Pace {
  Duration first_byte = std::chrono::milliseconds(30);
  double bytes_per_s = 10e6;                        ///< Of one connection.
  std::optional<double> bytes_per_s_together = {};  ///< Of all of them, if that is less.
};

/// What is special about one request; `number` counts them from 0.
struct Special {
  double slower = 1;           ///< Its rate is divided by this.
  std::optional<Error> error;  ///< Instead of its end.
  double fails_after = 1;      ///< ... and this share of its bytes.
  bool wrong_tail = false;     ///< Its second half is not the object's.
  int status = 206;
  std::optional<Duration> retry_after;
};

/// Serves `size` bytes of test_object() under every URI.
class PacedTransport final : public Transport {
 public:
  using Script = std::function<Special(int number, const TransferRequest& request)>;
  PacedTransport(Clock& clock, std::uint64_t size, const Pace& pace, Script script);
  ~PacedTransport() override;
  void start(TransferRequest request, std::function<void(TransferResult)> done) override;

  struct Seen {
    ByteRange range;
    TimePoint at;
    int in_flight;  ///< With it.
  };
  std::vector<Seen> seen() const;
  const std::string& object() const { return object_; }

 private:
  TransferResult carry_out(const TransferRequest& request, const Special& special);

  Clock& clock_;
  const std::string object_;
  const Pace pace_;
  const Script script_;
  mutable std::mutex mutex_;
  std::vector<Seen> seen_;
  int in_flight_ = 0;
  std::vector<std::jthread> threads_;
};

}  // namespace librarian::weightmap::remote::testing
