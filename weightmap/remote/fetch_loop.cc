#include "weightmap/remote/fetch_loop.h"

#include <algorithm>

#include "base/log.h"
#include "weightmap/remote/scatter.h"

namespace librarian::weightmap::remote {
namespace {

constexpr std::uint32_t kBegin = 16;
constexpr std::uint32_t kBeginAtHub = 4;  // Its limits are low, and told only by refusals.
constexpr std::uint32_t kTwoGroups = 2;

Error stopped() { return {ErrorCode::cancelled, "stopped"}; }

OriginPace pace_for(const std::string& origin, std::uint32_t connections) {
  const std::uint32_t begin = origin.starts_with("file:") ? connections
                              : origin.starts_with("hf:") ? kBeginAtHub
                                                          : kBegin;
  return {begin, connections};
}

/// Where a second request goes on for a first one that has `there` bytes: where the first one's
/// CRCs can be cut.
std::uint64_t hedge_begin(std::uint64_t begin, std::uint64_t there) {
  return std::max(begin, (begin + there) / kCrcRunBytes * kCrcRunBytes);
}

void sooner(std::optional<TimePoint>& next, const std::optional<TimePoint>& other) {
  if (other) {
    next = next ? std::min(*next, *other) : *other;
  }
}

}  // namespace

FetchLoop::FetchLoop(Transport& transport, Clock& clock, const FetcherOptions& options)
    : transport_(transport),
      clock_(clock),
      connections_(options.connections),
      rule_(options.retry, options.jitter),
      monitor_(clock),
      hedge_rule_(options.hedge_budget) {
  LIB_CHECK(connections_ > 0);
  thread_ = start_thread(clock, [this](const std::stop_token& stop) { run(stop); });
}

FetchLoop::~FetchLoop() = default;

std::uint64_t FetchLoop::add(FetchJob job) {
  auto lock = monitor_.lock();
  const std::uint64_t sequence = next_sequence_++;
  hedge_rule_.wanted(job.piece_bytes());
  waiting_.emplace(sequence, std::make_shared<FetchJob>(std::move(job)));
  wake(lock);
  return sequence;
}

void FetchLoop::cancel(std::uint64_t sequence) {
  std::vector<std::stop_source> stops;
  {
    auto lock = monitor_.lock();
    const auto waiting = waiting_.find(sequence);
    const auto flying = flying_.find(sequence);
    if (waiting != waiting_.end()) {
      waiting->second->refused = stopped();
    } else if (flying != flying_.end()) {
      flying->second.job->refused = stopped();  // Should it ask for another try.
      for (const Attempt& attempt : flying->second.attempts) {
        stops.push_back(attempt.stop);
      }
    }
    wake(lock);
  }
  // Outside the lock: a transport may call back at once.
  for (std::stop_source& stop : stops) {
    stop.request_stop();
  }
}

void FetchLoop::cancel_all() {
  std::vector<std::stop_source> stops;
  {
    auto lock = monitor_.lock();
    for (const auto& [sequence, job] : waiting_) {
      job->refused = stopped();
    }
    for (const auto& [sequence, flight] : flying_) {
      flight.job->refused = stopped();
      for (const Attempt& attempt : flight.attempts) {
        stops.push_back(attempt.stop);
      }
    }
    wake(lock);
  }
  for (std::stop_source& stop : stops) {
    stop.request_stop();
  }
}

RequestSizes FetchLoop::sizes(const std::string& name) {
  auto lock = monitor_.lock();
  return origin(name).pace.sizes();
}

FetchStatistics FetchLoop::statistics() {
  auto lock = monitor_.lock();
  FetchStatistics now = statistics_;
  if (!flying_.empty()) {
    now.busy += clock_.now() - busy_since_;
  }
  for (const auto& [sequence, flight] : flying_) {
    for (const Attempt& attempt : flight.attempts) {
      now.body_bytes += attempt.progress->load(std::memory_order_relaxed);
    }
  }
  return now;
}

FetchLoop::Origin& FetchLoop::origin(const std::string& name) {
  return origins_.try_emplace(name, pace_for(name, connections_)).first->second;
}

void FetchLoop::wake(const Lock& lock) {
  changed_ = true;
  monitor_.notify_all(lock);
}

void FetchLoop::run(const std::stop_token& stop) {
  auto lock = monitor_.lock();
  while (!stop.stop_requested()) {
    changed_ = false;
    finish_landed(lock);
    finish_refused(lock);
    // What is late goes first: a layer waits for it.
    std::optional<TimePoint> next = start_hedges(lock);
    sooner(next, start_ready(lock));
    sooner(next, look_at_pace());
    monitor_.wait_until(lock, stop, next, [&] { return changed_; });
  }
  drain(lock);
}

/// Ends everything with `cancelled`, after the transport has let go of all destinations.
void FetchLoop::drain(Lock& lock) {
  lock.unlock();
  cancel_all();
  lock.lock();
  while (true) {
    finish_landed(lock);
    for (const auto& [sequence, job] : waiting_) {
      job->refused = stopped();  // Also what a completion has just queued.
    }
    finish_refused(lock);
    if (flying_.empty() && waiting_.empty() && landed_.empty()) {
      return;
    }
    monitor_.wait(lock, {}, [&] { return !landed_.empty() || !waiting_.empty(); });
  }
}

void FetchLoop::finish(Lock& lock, const JobPointer& job, Result<FetchJob::Landed> result) {
  lock.unlock();
  job->done(std::move(result));
  lock.lock();
}

void FetchLoop::finish_refused(Lock& lock) {
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    if (!it->second->refused) {
      ++it;
      continue;
    }
    const JobPointer job = it->second;
    waiting_.erase(it);
    finish(lock, job, job->name(*job->refused));
    it = waiting_.begin();  // The map may have changed meanwhile.
  }
}

void FetchLoop::finish_landed(Lock& lock) {
  while (!landed_.empty()) {
    const Landed landed = std::move(landed_.front());
    landed_.erase(landed_.begin());
    std::vector<std::stop_source> to_stop;
    Flight& flight = flying_.at(landed.sequence);
    take_attempt(landed, flight, to_stop);
    if (flight.attempts.empty()) {
      land(lock, landed.sequence);
    }
    if (!to_stop.empty()) {
      lock.unlock();
      for (std::stop_source& stop : to_stop) {
        stop.request_stop();
      }
      lock.lock();
    }
  }
}

/// Statistics and pace, from one attempt that has ended.
void FetchLoop::count(const Landed& landed, Flight& flight, const Attempt& attempt) {
  const TransferResult& result = landed.result;
  const TimePoint now = clock_.now();
  Origin& from = origin(flight.job->origin());
  statistics_.body_bytes += result.body_bytes;
  statistics_.piece_bytes += result.piece_bytes;
  statistics_.resolves += result.resolves;
  flight.body_bytes += result.body_bytes;
  from.landed_bytes += result.body_bytes;
  const bool cancelled = result.error && result.error->code() == ErrorCode::cancelled;
  if (!result.error) {
    from.pace.landed(result.first_byte, now - attempt.started, result.body_bytes);
  }
  if (!cancelled) {
    hedge_rule_.ended(result.error.has_value());
  }
  if (result.status == 429 || result.status == 503 || result.retry_after) {
    from.pace.pushed_back(now);
  }
  if (result.retry_after) {
    // The wish speaks for the origin: all requests to it wait, not only the one that was told.
    from.cool_until = std::max(from.cool_until,
                               now + std::min(*result.retry_after, rule_.policy().retry_after_max));
  }
}

/// Takes an attempt out of its flight, and decides what it means for the job.
void FetchLoop::take_attempt(const Landed& landed, Flight& flight,
                             std::vector<std::stop_source>& to_stop) {
  const auto attempt =
      std::find_if(flight.attempts.begin(), flight.attempts.end(),
                   [&](const Attempt& candidate) { return candidate.hedge == landed.hedge; });
  count(landed, flight, *attempt);
  flight.attempts.erase(attempt);
  hedges_flying_ -= landed.hedge ? 1 : 0;
  const bool failed_before = flight.outcome && flight.outcome->error;
  if (!landed.hedge) {
    flight.first_crcs = landed.result.crcs;
    if (!flight.outcome) {
      flight.outcome = landed.result;
    }
  } else if (!landed.result.error) {
    // It brought the end; the beginning must be there from the first attempt.
    const bool begins = !failed_before ||
                        flight.range.begin + flight.outcome->bytes_in_order >= *flight.hedge_begin;
    if ((!flight.outcome || failed_before) && begins) {
      flight.outcome = landed.result;
      flight.outcome->bytes_in_order = flight.range.size();
      flight.hedge_counts = true;
    }
  }
  const bool done = flight.outcome && !flight.outcome->error;
  const bool hopeless = flight.outcome && flight.outcome->error &&
                        flight.outcome->error->code() != ErrorCode::unavailable;
  if (done || hopeless) {
    for (const Attempt& other : flight.attempts) {
      to_stop.push_back(other.stop);
    }
  }
}

/// Ends a flight whose attempts have all ended: the job is done, or waits to be tried again.
void FetchLoop::land(Lock& lock, std::uint64_t sequence) {
  Flight flight = flying_.extract(sequence).mapped();
  const JobPointer& job = flight.job;
  const TimePoint now = clock_.now();
  Origin& from = origin(job->origin());
  --from.flying;
  if (flying_.empty()) {
    statistics_.busy += now - busy_since_;
  }
  if (flight.hedge_begin) {
    const std::uint64_t needed = flight.range.size();
    const std::uint64_t extra = std::max(flight.body_bytes, needed) - needed;
    statistics_.hedge_bytes += extra;
    hedge_rule_.give_back(flight.hedge_bytes - std::min(extra, flight.hedge_bytes));
  }
  if (flight.hedge_counts) {
    CrcRuns crcs;
    append_runs(crcs, flight.first_crcs, *flight.hedge_begin);
    append_runs(crcs, flight.outcome->crcs, flight.range.end);
    flight.outcome->crcs = std::move(crcs);
  }
  FetchJob::Landing landing = job->land(*flight.outcome, rule_, now, from.cool_until);
  if (landing.result) {
    finish(lock, job, *std::move(landing.result));
    return;
  }
  ++statistics_.retries;
  log(LogLevel::info, "fetch_retry",
      {{"object", job->uri().display()},
       {"begin", job->missing().begin},
       {"failures", std::uint64_t{job->failures()}},
       {"wait_ns", std::int64_t{(job->not_before() - now).count()}},
       {"why", landing.why}});
  waiting_.emplace(sequence, job);
}

void FetchLoop::start(Lock& lock, std::uint64_t sequence, Flight& flight, TransferRequest request,
                      bool hedge) {
  Attempt& attempt = flight.attempts.emplace_back();
  attempt.hedge = hedge;
  attempt.range = request.range;
  attempt.started = clock_.now();
  attempt.progress = std::make_shared<std::atomic<std::uint64_t>>(0);
  request.progress = attempt.progress;
  request.stop = attempt.stop.get_token();
  ++statistics_.requests;
  lock.unlock();
  transport_.start(std::move(request), [this, sequence, hedge](TransferResult result) {
    auto done_lock = monitor_.lock();
    landed_.push_back({sequence, hedge, std::move(result)});
    wake(done_lock);
  });
  lock.lock();
}

/// Starts what may start, oldest first. @return when the next one may, if only time is missing.
std::optional<TimePoint> FetchLoop::start_ready(Lock& lock) {
  std::optional<TimePoint> next;
  for (auto& [name, from] : origins_) {
    from.more_wait = false;
  }
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    const auto [sequence, job] = *it;
    Origin& from = origin(job->origin());
    const TimePoint ready = std::max(job->not_before(), from.cool_until);
    if (job->refused || ready > clock_.now()) {
      sooner(next, ready);  // One refused meanwhile: looks again at once.
      ++it;
      continue;
    }
    const bool all_in_use = flying_.size() + hedges_flying_ >= connections_;
    if (from.flying >= from.pace.connections() || all_in_use) {
      from.more_wait = true;
      if (all_in_use) {
        return next;  // A completion comes first.
      }
      ++it;
      continue;
    }
    waiting_.erase(it);
    if (flying_.empty()) {
      busy_since_ = clock_.now();
    }
    TransferRequest request = job->request(clock_.now());
    Flight& flight = flying_[sequence];
    flight.job = job;
    flight.range = request.range;
    ++from.flying;
    start(lock, sequence, flight, std::move(request), false);
    it = waiting_.begin();  // The map may have changed meanwhile; older ones may be ready now.
    next.reset();
  }
  return next;
}

/// Asks again for what is late, of the two groups that are needed first.
/// @return when something that flies will be late.
std::optional<TimePoint> FetchLoop::start_hedges(Lock& lock) {
  std::optional<TimePoint> next;
  if (!hedge_rule_.enabled() || flying_.empty()) {
    return next;
  }
  std::uint64_t first_group = flying_.begin()->second.job->group;
  if (!waiting_.empty()) {
    first_group = std::min(first_group, waiting_.begin()->second->group);
  }
  const std::uint32_t hedges_max = std::max(connections_ / 4, 1U);
  std::vector<std::uint64_t> late;
  for (const auto& [sequence, flight] : flying_) {
    const FetchJob& job = *flight.job;
    if (job.group >= first_group + kTwoGroups || flight.hedge_begin || flight.outcome ||
        job.refused || job.opening || !job.expected || !job.may_hedge()) {
      continue;
    }
    const auto usual = origin(job.origin()).pace.usual(flight.range.size());
    if (!usual) {
      continue;
    }
    const TimePoint due = flight.attempts.front().started + HedgeRule::late_after(*usual);
    if (due > clock_.now()) {
      sooner(next, due);
    } else {
      late.push_back(sequence);
    }
  }
  for (const std::uint64_t sequence : late) {
    const auto found = flying_.find(sequence);
    if (found == flying_.end() || found->second.outcome) {
      continue;  // While another was started, the lock was free.
    }
    if (hedges_flying_ >= hedges_max || flying_.size() + hedges_flying_ >= connections_) {
      return next;  // The next connection that gets free is taken for it.
    }
    Flight& flight = found->second;
    const std::uint64_t there = flight.attempts.front().progress->load(std::memory_order_relaxed);
    const std::uint64_t begin = hedge_begin(flight.range.begin, there);
    TransferRequest request = flight.job->request_from(begin);
    if (request.pieces.empty() || !hedge_rule_.take(request.range.size())) {
      continue;
    }
    flight.hedge_begin = begin;
    flight.hedge_bytes = request.range.size();
    ++hedges_flying_;
    ++statistics_.hedges;
    start(lock, sequence, flight, std::move(request), true);
  }
  return next;
}

/// Lets every origin's pace see what was delivered. @return when it wants to look again.
std::optional<TimePoint> FetchLoop::look_at_pace() {
  std::optional<TimePoint> next;
  std::map<std::string_view, std::uint64_t> under_way;
  for (const auto& [sequence, flight] : flying_) {
    for (const Attempt& attempt : flight.attempts) {
      under_way[flight.job->origin()] += attempt.progress->load(std::memory_order_relaxed);
    }
  }
  for (auto& [name, from] : origins_) {
    const bool all_busy = from.flying >= from.pace.connections() && from.more_wait;
    from.pace.tick(clock_.now(), from.landed_bytes + under_way[name], all_busy);
    if (all_busy) {
      sooner(next, from.pace.next_tick());
    }
  }
  return next;
}

}  // namespace librarian::weightmap::remote
