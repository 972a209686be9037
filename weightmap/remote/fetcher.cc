#include "weightmap/remote/fetcher.h"

#include <algorithm>
#include <utility>

#include "weightmap/remote/fetch_job.h"
#include "weightmap/remote/fetch_loop.h"

namespace librarian::weightmap::remote {

class Fetcher::Impl {
 public:
  Impl(Transport& transport, Clock& clock, const FetcherOptions& options)
      : clock_(clock), loop_(transport, clock, options) {}

  using Landed = FetchJob::Landed;

  /// Runs jobs side by side and waits for all of them; `stop`, or the failure of one, may cut them
  /// short.
  std::vector<Result<Landed>> run_and_wait(std::vector<FetchJob> jobs,
                                           const std::stop_token& stop) {
    Monitor answered(clock_);
    std::vector<std::optional<Result<Landed>>> answers(jobs.size());
    std::size_t missing = jobs.size();
    bool failed = false;
    std::vector<std::uint64_t> sequences;
    sequences.reserve(jobs.size());
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      jobs[i].done = [&, i](Result<Landed> result) {
        auto lock = answered.lock();
        failed = failed || !result;
        answers[i].emplace(std::move(result));
        --missing;
        answered.notify_all(lock);
      };
      sequences.push_back(loop_.add(std::move(jobs[i])));
    }
    auto lock = answered.lock();
    const auto ready = [&] { return missing == 0; };
    if (!answered.wait(lock, stop, [&] { return failed || ready(); }) || !ready()) {
      lock.unlock();
      for (const std::uint64_t sequence : sequences) {
        loop_.cancel(sequence);
      }
      lock.lock();
      answered.wait(lock, {}, ready);  // The destinations are ours until then.
    }
    std::vector<Result<Landed>> results;
    results.reserve(answers.size());
    for (auto& answer : answers) {
      results.push_back(*std::move(answer));
    }
    return results;
  }

  Result<Landed> run_and_wait(FetchJob job, const std::stop_token& stop) {
    std::vector<FetchJob> jobs;
    jobs.push_back(std::move(job));
    return std::move(run_and_wait(std::move(jobs), stop).front());
  }

  std::vector<Result<Opened>> open(const std::vector<Uri>& uris, std::uint64_t head_bytes,
                                   const std::optional<ObjectInfo>& expected,
                                   const std::stop_token& stop) {
    std::vector<std::string> heads(uris.size());
    std::vector<FetchJob> jobs;
    for (std::size_t i = 0; i < uris.size(); ++i) {
      heads[i].resize(std::max<std::uint64_t>(head_bytes, 1));
      const ByteRange range{0, heads[i].size()};
      FetchJob& job = jobs.emplace_back(
          uris[i], std::vector<FetchPiece>{{range, reinterpret_cast<std::byte*>(heads[i].data())}});
      job.opening = true;
      job.expected = expected;
    }
    std::vector<Result<Landed>> landed = run_and_wait(std::move(jobs), stop);
    std::vector<Result<Opened>> opened;
    auto lock = monitor_.lock();
    for (std::size_t i = 0; i < uris.size(); ++i) {
      if (!landed[i]) {
        opened.emplace_back(landed[i].error());
        continue;
      }
      heads[i].resize(std::min<std::uint64_t>(heads[i].size(), landed[i]->info.size));
      opened.emplace_back(
          Opened{static_cast<ObjectId>(objects_.size()), landed[i]->info, std::move(heads[i])});
      objects_.push_back({uris[i], landed[i]->info});
    }
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
    job.group = request.group;
    if (end > object.info.size) {
      job.refused =
          Error(ErrorCode::bad_input, "the file ends at byte " + std::to_string(object.info.size) +
                                          ", before the bytes asked for");
    }
    return job;
  }

  RequestSizes sizes(ObjectId object) {
    auto lock = monitor_.lock();
    LIB_CHECK(object < objects_.size());
    const std::string origin = objects_[object].uri.origin();
    lock.unlock();
    return loop_.sizes(origin);
  }

  FetchLoop& loop() { return loop_; }

 private:
  struct Object {
    Uri uri;
    ObjectInfo info;
  };

  Clock& clock_;
  Monitor monitor_{clock_};
  std::vector<Object> objects_;  // Guarded by monitor_.
  FetchLoop loop_;               // Last member: its thread ends before what its jobs use.
};

Fetcher::Fetcher(Transport& transport, Clock& clock, const FetcherOptions& options)
    : impl_(std::make_unique<Impl>(transport, clock, options)) {}

Fetcher::~Fetcher() = default;

Result<Fetcher::Opened> Fetcher::open(const Uri& uri, std::uint64_t head_bytes,
                                      const std::stop_token& stop) {
  return std::move(impl_->open({uri}, head_bytes, std::nullopt, stop).front());
}

Result<Fetcher::Opened> Fetcher::open(const Uri& uri, std::uint64_t head_bytes,
                                      const ObjectInfo& expected, const std::stop_token& stop) {
  return std::move(impl_->open({uri}, head_bytes, expected, stop).front());
}

std::vector<Result<Fetcher::Opened>> Fetcher::open_all(const std::vector<Uri>& uris,
                                                       std::uint64_t head_bytes,
                                                       const std::stop_token& stop) {
  return impl_->open(uris, head_bytes, std::nullopt, stop);
}

Result<Fetcher::Document> Fetcher::read_document(const Uri& uri, std::uint64_t bytes_max,
                                                 const std::stop_token& stop) {
  return impl_->read_document(uri, bytes_max, stop);
}

Fetcher::RequestId Fetcher::submit(FetchRequest request, Done done) {
  FetchJob job = impl_->job_for(std::move(request));
  job.done = [done = std::move(done)](Result<FetchJob::Landed> result) {
    done(result ? Result<CrcRuns>(std::move(result->crcs)) : Result<CrcRuns>(result.error()));
  };
  return impl_->loop().add(std::move(job));
}

void Fetcher::cancel(RequestId request) { impl_->loop().cancel(request); }

Result<void> Fetcher::fetch(FetchRequest request, const std::stop_token& stop) {
  auto result = impl_->run_and_wait(impl_->job_for(std::move(request)), stop);
  return result ? Result<void>() : Result<void>(std::move(result).error());
}

void Fetcher::cancel_all() { impl_->loop().cancel_all(); }

RequestSizes Fetcher::sizes(ObjectId object) const { return impl_->sizes(object); }

FetchStatistics Fetcher::statistics() const { return impl_->loop().statistics(); }

}  // namespace librarian::weightmap::remote
