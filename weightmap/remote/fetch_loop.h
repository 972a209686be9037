#pragma once
/// The thread that puts fetch jobs on the wire: in order, as many at a time as their origins take,
/// again when they fail, twice when they are late.

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "weightmap/remote/fetch_job.h"
#include "weightmap/remote/fetcher.h"
#include "weightmap/remote/hedge_rule.h"
#include "weightmap/remote/origin_pace.h"
#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote {

/// Thread-safe. Jobs' `done` are called on its thread. Destruction ends every job with `cancelled`
/// and waits until no destination can be touched any more.
class FetchLoop {
 public:
  FetchLoop(Transport& transport, Clock& clock, const FetcherOptions& options);
  ~FetchLoop();
  FetchLoop(const FetchLoop&) = delete;
  FetchLoop& operator=(const FetchLoop&) = delete;

  /// Queues a job. @return its number, for cancel().
  std::uint64_t add(FetchJob job);
  /// Ends a job with `cancelled`, unless it is ending already.
  void cancel(std::uint64_t sequence);
  void cancel_all();
  RequestSizes sizes(const std::string& origin);
  FetchStatistics statistics();

 private:
  using Lock = std::unique_lock<std::mutex>;
  using JobPointer = std::shared_ptr<FetchJob>;

  /// One transfer of a job's missing bytes.
  struct Attempt {
    bool hedge = false;
    ByteRange range;
    TimePoint started{};
    std::stop_source stop;
    std::shared_ptr<std::atomic<std::uint64_t>> progress;
  };
  /// A job on the wire: one attempt, or two when the first is late.
  struct Flight {
    JobPointer job;
    ByteRange range;  ///< What is missing, holes included.
    std::vector<Attempt> attempts;
    std::optional<TransferResult> outcome;  ///< What counts, once that is known.
    std::optional<std::uint64_t> hedge_begin;
    bool hedge_counts = false;      ///< The outcome's end is the second attempt's,
    CrcRuns first_crcs;             ///< its beginning the first one's.
    std::uint64_t hedge_bytes = 0;  ///< Taken from the budget.
    std::uint64_t body_bytes = 0;   ///< Of attempts that have ended.
  };
  struct Landed {
    std::uint64_t sequence;
    bool hedge;
    TransferResult result;
  };
  /// What is known of one scheme, host and port.
  struct Origin {
    explicit Origin(const OriginPace& begin) : pace(begin) {}
    OriginPace pace;
    TimePoint cool_until{};
    std::uint64_t landed_bytes = 0;
    std::uint32_t flying = 0;
    bool more_wait = false;  ///< Jobs are ready and not admitted.
  };

  void wake(const Lock& lock);
  void run(const std::stop_token& stop);
  void drain(Lock& lock);
  void finish(Lock& lock, const JobPointer& job, Result<FetchJob::Landed> result);
  void finish_refused(Lock& lock);
  void finish_landed(Lock& lock);
  void take_attempt(const Landed& landed, Flight& flight, std::vector<std::stop_source>& to_stop);
  void count(const Landed& landed, Flight& flight, const Attempt& attempt);
  void land(Lock& lock, std::uint64_t sequence);
  std::optional<TimePoint> start_ready(Lock& lock);
  std::optional<TimePoint> start_hedges(Lock& lock);
  std::optional<TimePoint> look_at_pace();
  void start(Lock& lock, std::uint64_t sequence, Flight& flight, TransferRequest request,
             bool hedge);
  Origin& origin(const std::string& name);

  Transport& transport_;
  Clock& clock_;
  const std::uint32_t connections_;
  const RetryRule rule_;
  Monitor monitor_;
  // Guarded by monitor_:
  bool changed_ = false;
  std::uint64_t next_sequence_ = 0;
  std::map<std::uint64_t, JobPointer> waiting_;  // Not on the wire: new, or to be tried again.
  std::map<std::uint64_t, Flight> flying_;       // By the same numbers: the order of arrival.
  std::vector<Landed> landed_;
  std::map<std::string, Origin> origins_;
  HedgeRule hedge_rule_;
  std::uint32_t hedges_flying_ = 0;
  FetchStatistics statistics_;
  TimePoint busy_since_{};
  std::jthread thread_;  // Last member: it stops and joins before anything it uses is destroyed.
};

}  // namespace librarian::weightmap::remote
