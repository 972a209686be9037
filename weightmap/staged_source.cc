#include "weightmap/staged_source.h"

#include <algorithm>
#include <map>
#include <utility>

#include "weightmap/staged_source_impl.h"

namespace librarian::weightmap {

const char* verification_name(Verification verification) {
  switch (verification) {
    case Verification::none:
      return "none";
    case Verification::stream:
      return "stream";
    case Verification::sha256:
      return "sha256";
  }
  return "none";
}

namespace {

// Of a local disk.
constexpr std::uint64_t kReadBytes = 16U << 20U;
constexpr std::uint64_t kReadHoleBytes = 64U << 10U;

Error stopped() { return {ErrorCode::cancelled, "stopped while waiting for staged weights"}; }

std::uint64_t size_of(const std::vector<remote::FetchPiece>& pieces) {
  std::uint64_t bytes = 0;
  for (const remote::FetchPiece& piece : pieces) {
    bytes += piece.range.size();
  }
  return bytes;
}

}  // namespace

StagedSource::Impl::Impl(remote::Fetcher& fetcher, const Checkpoint& checkpoint, FileSystem& files,
                         Clock& clock, remote::StagingDirectory& directory,
                         const remote::FileStagingOptions& staging,
                         const StagedSourceOptions& options)
    : fetcher_(fetcher),
      checkpoint_(checkpoint),
      clock_(clock),
      directory_(directory),
      options_(options),
      stager_(fetcher, checkpoint, files, clock, directory, staging),
      queue_(checkpoint, find_objects(), options.last_layer),
      monitor_(clock) {
  for (std::uint32_t i = 0; i < options.readers; ++i) {
    readers_.push_back(
        start_thread(clock, [this](const std::stop_token& stop) { read_jobs(stop); }));
  }
  staging_thread_ = start_thread(clock, [this](const std::stop_token& stop) { stage_ahead(stop); });
}

StagedSource::Impl::~Impl() {
  staging_thread_.request_stop();
  staging_thread_.join();
  for (std::jthread& reader : readers_) {
    reader.request_stop();
  }
  readers_.clear();
  cancel_all();
  auto lock = monitor_.lock();
  monitor_.wait(lock, {}, [&] { return direct_in_flight_ == 0; });
}

void StagedSource::Impl::announce(std::int32_t layer, std::uint32_t readings) {
  auto lock = monitor_.lock();
  queue_.announce(layer, readings);
  monitor_.notify_all(lock);
}

void StagedSource::Impl::submit(std::uint32_t file, std::vector<remote::FetchPiece> pieces,
                                remote::Fetcher::Done done) {
  auto lock = monitor_.lock();
  const std::uint64_t bytes = size_of(pieces);
  jobs_.push_back({file, queue_.asked_for(bytes), bytes, std::move(pieces), std::move(done)});
  monitor_.notify_all(lock);
}

void StagedSource::Impl::pass_over(std::uint64_t bytes) {
  auto lock = monitor_.lock();
  queue_.pass_over(bytes);
  monitor_.notify_all(lock);
}

void StagedSource::Impl::cancel_all() {
  auto lock = monitor_.lock();
  const std::deque<Job> jobs = std::exchange(jobs_, {});
  const std::vector<remote::Fetcher::RequestId> direct = direct_requests_;
  lock.unlock();
  for (const remote::Fetcher::RequestId request : direct) {
    fetcher_.cancel(request);
  }
  for (const Job& job : jobs) {
    job.done(stopped());
  }
}

void StagedSource::Impl::layer_is_durable(std::int32_t layer, const std::stop_token& stop) {
  auto lock = monitor_.lock();
  for (const std::size_t index : queue_.durable(layer)) {
    Object& object = objects_[index];
    if (object.place == Place::away || object.moving) {
      continue;
    }
    const bool keep = !object.info.validator.empty() || !object.info.sha256.empty();
    give_up(lock, object, keep && (options_.keep || another_pass_), stop);
  }
  monitor_.notify_all(lock);
}

void StagedSource::Impl::expect_another_pass(bool expected) {
  auto lock = monitor_.lock();
  another_pass_ = expected;
  monitor_.notify_all(lock);
}

Verification StagedSource::Impl::verification(std::int32_t layer) const {
  const auto lock = monitor_.lock();
  return queue_.verification(layer);
}

std::uint64_t StagedSource::Impl::needed_bytes() const {
  const auto lock = monitor_.lock();
  return stager_.needed_bytes() + direct_bytes_;
}

std::vector<std::size_t> StagedSource::Impl::find_objects() {
  std::map<std::string, std::size_t> known;
  std::vector<std::size_t> object_of_file;
  for (std::uint32_t file = 0; file < checkpoint_.files().size(); ++file) {
    const WeightFile& weights = checkpoint_.files()[file];
    const std::string key =
        remote::staging_key(checkpoint_.directory().child(weights.name), weights.info);
    const auto [entry, is_new] = known.emplace(key, objects_.size());
    if (is_new) {
      Object object;
      object.key = key;
      object.info = weights.info;
      object.id = weights.object;
      object.file = file;
      objects_.push_back(std::move(object));
    }
    object_of_file.push_back(entry->second);
  }
  object_of_file_ = object_of_file;
  return object_of_file;
}

void StagedSource::Impl::read_jobs(const std::stop_token& stop) {
  auto lock = monitor_.lock();
  while (true) {
    const auto runnable = [&] {
      return std::find_if(jobs_.begin(), jobs_.end(), [&](const Job& job) {
        return failure_ || objects_[object_of_file_[job.file]].place != Place::away;
      });
    };
    if (!monitor_.wait(lock, stop, [&] { return runnable() != jobs_.end(); })) {
      return;
    }
    const auto next = runnable();
    Job job = std::move(*next);
    jobs_.erase(next);
    const Object& object = objects_[object_of_file_[job.file]];
    if (failure_) {
      finish(lock, job, *failure_, Verification::none);
    } else if (object.place == Place::direct) {
      read_direct(lock, job);
    } else {
      const std::shared_ptr<File> data = object.data;
      const std::string path = object.hold->data_path();
      const bool sha256 = !object.info.sha256.empty();
      lock.unlock();
      Result<void> result;
      for (const remote::FetchPiece& piece : job.pieces) {
        if (result) {
          result =
              read_exactly(*data, path, piece.range.begin, {piece.destination, piece.range.size()});
        }
      }
      lock.lock();
      finish(lock, job,
             result ? Result<remote::CrcRuns>() : Result<remote::CrcRuns>(result.error()),
             sha256 ? Verification::sha256 : Verification::stream);
    }
  }
}

void StagedSource::Impl::finish(Lock& lock, const Job& job, const Result<remote::CrcRuns>& result,
                                Verification verification) {
  queue_.arrived(job.number, job.bytes, verification);
  monitor_.notify_all(lock);
  lock.unlock();
  job.done(result);
  lock.lock();
}

void StagedSource::Impl::read_direct(Lock& lock, const Job& job) {
  if (direct_in_flight_++ == 0) {
    direct_requests_.clear();  // All of them have ended.
  }
  direct_bytes_ += job.bytes;
  const remote::ObjectId id = checkpoint_.files()[job.file].object;
  std::vector<remote::FetchPiece> pieces = job.pieces;
  lock.unlock();
  const remote::Fetcher::RequestId request = fetcher_.submit(
      {id, std::move(pieces), job.number}, [this, job](const Result<remote::CrcRuns>& result) {
        auto done_lock = monitor_.lock();
        finish(done_lock, job, result, Verification::stream);
        --direct_in_flight_;
        monitor_.notify_all(done_lock);
      });
  lock.lock();
  direct_requests_.push_back(request);
}

StagedSource::StagedSource(remote::Fetcher& fetcher, const Checkpoint& checkpoint,
                           FileSystem& files, Clock& clock, remote::StagingDirectory& directory,
                           const remote::FileStagingOptions& staging,
                           const StagedSourceOptions& options)
    : impl_(
          std::make_unique<Impl>(fetcher, checkpoint, files, clock, directory, staging, options)) {}

StagedSource::~StagedSource() = default;

void StagedSource::announce(std::int32_t layer, std::uint32_t readings) {
  impl_->announce(layer, readings);
}
void StagedSource::submit(WeightRequest request, remote::Fetcher::Done done) {
  impl_->submit(request.file, std::move(request.pieces), std::move(done));
}
void StagedSource::pass_over(std::uint64_t bytes) { impl_->pass_over(bytes); }

remote::RequestSizes StagedSource::sizes(std::uint32_t /*file*/) const {
  return {kReadBytes, kReadHoleBytes};
}
void StagedSource::cancel_all() { impl_->cancel_all(); }
void StagedSource::layer_is_durable(std::int32_t layer, const std::stop_token& stop) {
  impl_->layer_is_durable(layer, stop);
}
void StagedSource::expect_another_pass(bool expected) { impl_->expect_another_pass(expected); }
Verification StagedSource::verification(std::int32_t layer) const {
  return impl_->verification(layer);
}
std::uint64_t StagedSource::needed_bytes() const { return impl_->needed_bytes(); }

}  // namespace librarian::weightmap
