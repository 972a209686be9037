#include "weightmap/remote/fetcher.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/log.h"
#include "weightmap/remote/fetch_job.h"
#include "weightmap/remote/scatter.h"

namespace librarian::weightmap::remote {

class Fetcher::Impl {
 public:
  Impl(Transport& transport, Clock& clock, const FetcherOptions& options)
      : transport_(transport),
        clock_(clock),
        connections_(options.connections),
        rule_(options.retry, options.jitter),
        monitor_(clock) {
    LIB_CHECK(connections_ > 0);
    thread_ = start_thread(clock, [this](const std::stop_token& stop) { run(stop); });
  }

  using Done = FetchJob::Done;

  std::uint64_t add(FetchJob job) {
    auto lock = monitor_.lock();
    const std::uint64_t sequence = next_sequence_++;
    waiting_.emplace(sequence, std::make_shared<FetchJob>(std::move(job)));
    wake(lock);
    return sequence;
  }

  void cancel(std::uint64_t sequence) {
    std::shared_ptr<FetchJob> job;
    {
      auto lock = monitor_.lock();
      const auto found = waiting_.find(sequence);
      const auto flying = flying_.find(sequence);
      if (found != waiting_.end()) {
        job = found->second;
      } else if (flying != flying_.end()) {
        job = flying->second;
      } else {
        return;  // Its completion is on the way.
      }
      job->refused = stopped();  // On the wire: ends it there too, should it ask for another try.
      wake(lock);
    }
    // Outside the lock: a transport may call back at once.
    job->stop.request_stop();
  }

  void cancel_all() {
    std::vector<std::shared_ptr<FetchJob>> flying;
    {
      auto lock = monitor_.lock();
      for (const Jobs* jobs : {&waiting_, &flying_}) {
        for (const auto& [sequence, job] : *jobs) {
          job->refused = stopped();
        }
      }
      for (const auto& [sequence, job] : flying_) {
        flying.push_back(job);
      }
      wake(lock);
    }
    for (const auto& job : flying) {
      job->stop.request_stop();
    }
  }

  using Landed = FetchJob::Landed;

  /// Waits for the one result of a job that `stop` may cut short.
  Result<Landed> run_and_wait(FetchJob job, const std::stop_token& stop) {
    Monitor answered(clock_);
    std::optional<Result<Landed>> answer;
    job.done = [&](Result<Landed> result) {
      auto lock = answered.lock();
      answer.emplace(std::move(result));
      answered.notify_all(lock);
    };
    const std::uint64_t sequence = add(std::move(job));
    auto lock = answered.lock();
    const auto ready = [&] { return answer.has_value(); };
    if (!answered.wait(lock, stop, ready)) {
      lock.unlock();
      cancel(sequence);
      lock.lock();
      answered.wait(lock, {}, ready);  // The destinations are ours until then.
    }
    return *std::move(answer);
  }

  Result<Opened> open(const Uri& uri, std::uint64_t head_bytes, std::optional<ObjectInfo> expected,
                      const std::stop_token& stop) {
    Opened opened;
    opened.head.resize(std::max<std::uint64_t>(head_bytes, 1));
    const ByteRange range{0, opened.head.size()};
    FetchJob job(uri, {{range, reinterpret_cast<std::byte*>(opened.head.data())}});
    job.opening = true;
    job.expected = std::move(expected);
    LIB_TRY(Landed landed, run_and_wait(std::move(job), stop));
    opened.info = std::move(landed.info);
    opened.head.resize(std::min<std::uint64_t>(opened.head.size(), opened.info.size));
    auto lock = monitor_.lock();
    opened.id = static_cast<ObjectId>(objects_.size());
    objects_.push_back({uri, opened.info});
    return opened;
  }

  Result<Document> read_document(const Uri& uri, std::uint64_t bytes_max,
                                 const std::stop_token& stop) {
    Document document;
    document.body.resize(bytes_max);
    FetchJob job(uri, {{{0, bytes_max}, reinterpret_cast<std::byte*>(document.body.data())}});
    job.opening = true;
    job.document = true;
    LIB_TRY(Landed landed, run_and_wait(std::move(job), stop));
    document.body.resize(landed.info.size);
    document.link = std::move(landed.link);
    return document;
  }

  FetchJob job_for(FetchRequest request) {
    LIB_CHECK(!request.pieces.empty());
    auto lock = monitor_.lock();
    LIB_CHECK(request.object < objects_.size());
    const Object& object = objects_[request.object];
    const std::uint64_t end = request.pieces.back().range.end;
    FetchJob job(object.uri, std::move(request.pieces));
    job.expected = object.info;
    if (end > object.info.size) {
      job.refused =
          Error(ErrorCode::bad_input, "the file ends at byte " + std::to_string(object.info.size) +
                                          ", before the bytes asked for");
    }
    return job;
  }

  FetchStatistics statistics() {
    auto lock = monitor_.lock();
    FetchStatistics now = statistics_;
    if (!flying_.empty()) {
      now.busy += clock_.now() - busy_since_;
    }
    return now;
  }

 private:
  struct Object {
    Uri uri;
    ObjectInfo info;
  };
  using Lock = std::unique_lock<std::mutex>;
  static Error stopped() { return {ErrorCode::cancelled, "stopped"}; }
  using Jobs = std::map<std::uint64_t, std::shared_ptr<FetchJob>>;  // By order of arrival.

  void wake(const Lock& lock) {
    changed_ = true;
    monitor_.notify_all(lock);
  }

  void run(const std::stop_token& stop) {
    auto lock = monitor_.lock();
    while (!stop.stop_requested()) {
      changed_ = false;
      finish_landed(lock);
      finish_refused(lock);
      const std::optional<TimePoint> next = start_ready(lock);
      monitor_.wait_until(lock, stop, next, [&] { return changed_; });
    }
    drain(lock);
  }

  /// Ends everything with `cancelled`, after the transport has let go of all destinations.
  void drain(Lock& lock) {
    std::vector<std::shared_ptr<FetchJob>> flying;
    for (const auto& [sequence, job] : flying_) {
      job->refused = stopped();
      flying.push_back(job);
    }
    lock.unlock();
    for (const auto& job : flying) {
      job->stop.request_stop();
    }
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

  void finish(Lock& lock, const std::shared_ptr<FetchJob>& job, Result<Landed> result) {
    lock.unlock();
    job->done(std::move(result));
    lock.lock();
  }

  void finish_refused(Lock& lock) {
    for (auto it = waiting_.begin(); it != waiting_.end();) {
      if (!it->second->refused) {
        ++it;
        continue;
      }
      const auto job = it->second;
      waiting_.erase(it);
      finish(lock, job, job->name(*job->refused));
      it = waiting_.begin();  // The map may have changed meanwhile.
    }
  }

  void finish_landed(Lock& lock) {
    while (!landed_.empty()) {
      auto [sequence, result] = std::move(landed_.front());
      landed_.erase(landed_.begin());
      const auto job = flying_.extract(sequence).mapped();
      if (flying_.empty()) {
        statistics_.busy += clock_.now() - busy_since_;
      }
      statistics_.body_bytes += result.body_bytes;
      statistics_.piece_bytes += result.piece_bytes;
      statistics_.resolves += result.resolves;
      const TimePoint now = clock_.now();
      TimePoint& cool_until = cool_until_[job->origin()];
      if (result.retry_after) {
        // The wish speaks for the origin: all requests to it wait, not only the one that was told.
        cool_until = std::max(cool_until,
                              now + std::min(*result.retry_after, rule_.policy().retry_after_max));
      }
      FetchJob::Landing landing = job->land(result, rule_, now, cool_until);
      if (landing.result) {
        finish(lock, job, *std::move(landing.result));
        continue;
      }
      ++statistics_.retries;
      log(LogLevel::info, "fetch_retry",
          {{"object", job->uri().display()},
           {"begin", job->missing_begin()},
           {"failures", std::uint64_t{job->failures()}},
           {"wait_ns", std::int64_t{(job->not_before() - now).count()}},
           {"why", landing.why}});
      waiting_.emplace(sequence, job);
    }
  }

  /// Starts what may start, oldest first. @return when the next one may, if only time is missing.
  std::optional<TimePoint> start_ready(Lock& lock) {
    std::optional<TimePoint> next;
    for (auto it = waiting_.begin(); it != waiting_.end();) {
      if (flying_.size() >= connections_) {
        return std::nullopt;  // A completion comes first.
      }
      const auto [sequence, job] = *it;
      const auto cool = cool_until_.find(job->origin());
      const TimePoint ready =
          cool == cool_until_.end() ? job->not_before() : std::max(job->not_before(), cool->second);
      if (job->refused || ready > clock_.now()) {
        next =
            next ? std::min(*next, ready) : ready;  // One refused meanwhile: looks again at once.
        ++it;
        continue;
      }
      waiting_.erase(it);
      if (flying_.empty()) {
        busy_since_ = clock_.now();
      }
      flying_.emplace(sequence, job);
      ++statistics_.requests;
      TransferRequest request = job->request(clock_.now());
      lock.unlock();
      transport_.start(std::move(request), [this, id = sequence](TransferResult result) {
        auto done_lock = monitor_.lock();
        landed_.emplace_back(id, std::move(result));
        wake(done_lock);
      });
      lock.lock();
      it = waiting_.begin();  // The map may have changed meanwhile; older ones may be ready now.
      next.reset();
    }
    return next;
  }

  Transport& transport_;
  Clock& clock_;
  const std::uint32_t connections_;
  const RetryRule rule_;
  Monitor monitor_;
  // Guarded by monitor_:
  bool changed_ = false;
  std::uint64_t next_sequence_ = 0;
  std::vector<Object> objects_;
  Jobs waiting_;  // Not on the wire: new, or waiting to be tried again.
  Jobs flying_;
  std::vector<std::pair<std::uint64_t, TransferResult>> landed_;
  std::map<std::string, TimePoint> cool_until_;  // Per origin.
  FetchStatistics statistics_;
  TimePoint busy_since_{};
  std::jthread thread_;  // Last member: it stops and joins before anything it uses is destroyed.
};

Fetcher::Fetcher(Transport& transport, Clock& clock, const FetcherOptions& options)
    : impl_(std::make_unique<Impl>(transport, clock, options)) {}

Fetcher::~Fetcher() = default;

Result<Fetcher::Opened> Fetcher::open(const Uri& uri, std::uint64_t head_bytes,
                                      const std::stop_token& stop) {
  return impl_->open(uri, head_bytes, std::nullopt, stop);
}

Result<Fetcher::Opened> Fetcher::open(const Uri& uri, std::uint64_t head_bytes,
                                      const ObjectInfo& expected, const std::stop_token& stop) {
  return impl_->open(uri, head_bytes, expected, stop);
}

Result<Fetcher::Document> Fetcher::read_document(const Uri& uri, std::uint64_t bytes_max,
                                                 const std::stop_token& stop) {
  return impl_->read_document(uri, bytes_max, stop);
}

void Fetcher::submit(FetchRequest request, std::function<void(Result<void>)> done) {
  FetchJob job = impl_->job_for(std::move(request));
  job.done = [done = std::move(done)](Result<FetchJob::Landed> result) {
    done(result ? Result<void>() : Result<void>(std::move(result).error()));
  };
  impl_->add(std::move(job));
}

Result<void> Fetcher::fetch(FetchRequest request, const std::stop_token& stop) {
  auto result = impl_->run_and_wait(impl_->job_for(std::move(request)), stop);
  return result ? Result<void>() : Result<void>(std::move(result).error());
}

void Fetcher::cancel_all() { impl_->cancel_all(); }

FetchStatistics Fetcher::statistics() const { return impl_->statistics(); }

}  // namespace librarian::weightmap::remote
