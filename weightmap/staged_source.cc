#include "weightmap/staged_source.h"

#include <algorithm>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "base/log.h"
#include "weightmap/layer_queue.h"
#include "weightmap/object_stager.h"

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

using remote::StagingDirectory;
using remote::StagingHold;

// Looking at what other processes do costs them and us a little.
constexpr int kPollsWithoutHurry = 20;

Error stopped() { return {ErrorCode::cancelled, "stopped while waiting for staged weights"}; }

std::uint64_t size_of(const std::vector<remote::FetchPiece>& pieces) {
  std::uint64_t bytes = 0;
  for (const remote::FetchPiece& piece : pieces) {
    bytes += piece.range.size();
  }
  return bytes;
}

}  // namespace

class StagedSource::Impl {
 public:
  Impl(remote::Fetcher& fetcher, const Checkpoint& checkpoint, FileSystem& files, Clock& clock,
       StagingDirectory& directory, const remote::FileStagingOptions& staging,
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
    staging_thread_ =
        start_thread(clock, [this](const std::stop_token& stop) { stage_ahead(stop); });
  }

  ~Impl() {
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

  void announce(std::int32_t layer) {
    auto lock = monitor_.lock();
    queue_.announce(layer);
    monitor_.notify_all(lock);
  }

  void submit(std::uint32_t file, std::vector<remote::FetchPiece> pieces,
              std::function<void(Result<void>)> done) {
    auto lock = monitor_.lock();
    const std::uint64_t bytes = size_of(pieces);
    jobs_.push_back({file, queue_.asked_for(bytes), bytes, std::move(pieces), std::move(done)});
    monitor_.notify_all(lock);
  }

  void cancel_all() {
    auto lock = monitor_.lock();
    const std::deque<Job> jobs = std::exchange(jobs_, {});
    const bool direct = direct_in_flight_ > 0;
    lock.unlock();
    if (direct) {
      fetcher_.cancel_all();
    }
    for (const Job& job : jobs) {
      job.done(stopped());
    }
  }

  void layer_is_durable(std::int32_t layer) {
    auto lock = monitor_.lock();
    for (const std::size_t index : queue_.durable(layer)) {
      Object& object = objects_[index];
      if (object.place == Place::away || object.moving) {
        continue;
      }
      const bool keep = !object.info.validator.empty() || !object.info.sha256.empty();
      give_up(lock, object, keep && (options_.keep || another_pass_));
    }
    monitor_.notify_all(lock);
  }

  void expect_another_pass(bool expected) {
    auto lock = monitor_.lock();
    another_pass_ = expected;
    monitor_.notify_all(lock);
  }

  Verification verification(std::int32_t layer) const {
    const auto lock = monitor_.lock();
    return queue_.verification(layer);
  }

  std::uint64_t needed_bytes() const {
    const auto lock = monitor_.lock();
    return stager_.needed_bytes() + direct_bytes_;
  }

 private:
  enum class Place : std::uint8_t {
    away,    // Not held by us.
    ready,   // Held and checked.
    direct,  // Could not be had: read by ranges, for now.
  };
  struct Object {
    std::string key;
    remote::ObjectInfo info;
    remote::ObjectId id = 0;
    std::uint32_t file = 0;  // The first of those that it holds.
    Place place = Place::away;
    bool moving = false;  // A thread of ours is bringing it or giving it up.
    std::optional<StagingHold> hold;
    std::shared_ptr<File> data;
    std::optional<std::uint64_t> checked_inode;  // What this process has checked in full.
    std::optional<TimePoint> blocked_since;
    std::uint64_t progress_bytes = 0;  // Of another process, when it was blocked.
  };
  struct Job {
    std::uint32_t file;
    std::uint64_t number;  // Of its layer, in queue_.
    std::uint64_t bytes;
    std::vector<remote::FetchPiece> pieces;
    std::function<void(Result<void>)> done;
  };
  using Outcome = ObjectStager::Outcome;
  using Lock = std::unique_lock<std::mutex>;

  std::vector<std::size_t> find_objects() {
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

  // Reading.

  void read_jobs(const std::stop_token& stop) {
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
        read_direct(lock, std::move(job));
      } else {
        const std::shared_ptr<File> data = object.data;
        const std::string path = object.hold->data_path();
        const bool sha256 = !object.info.sha256.empty();
        lock.unlock();
        Result<void> result;
        for (const remote::FetchPiece& piece : job.pieces) {
          if (result) {
            result = read_exactly(*data, path, piece.range.begin,
                                  {piece.destination, piece.range.size()});
          }
        }
        lock.lock();
        finish(lock, job, result, sha256 ? Verification::sha256 : Verification::stream);
      }
    }
  }

  void finish(Lock& lock, const Job& job, const Result<void>& result, Verification verification) {
    queue_.arrived(job.number, job.bytes, verification);
    monitor_.notify_all(lock);
    lock.unlock();
    job.done(result);
    lock.lock();
  }

  void read_direct(Lock& lock, Job job) {
    ++direct_in_flight_;
    direct_bytes_ += job.bytes;
    const remote::ObjectId id = checkpoint_.files()[job.file].object;
    std::vector<remote::FetchPiece> pieces = job.pieces;
    lock.unlock();
    fetcher_.submit({id, std::move(pieces)},
                    [this, job = std::move(job)](const Result<void>& result) {
                      auto done_lock = monitor_.lock();
                      finish(done_lock, job, result, Verification::stream);
                      --direct_in_flight_;
                      monitor_.notify_all(done_lock);
                    });
    lock.lock();
  }

  // Staging.

  void stage_ahead(const std::stop_token& stop) {
    auto lock = monitor_.lock();
    while (!stop.stop_requested()) {
      auto moved = bring_next(lock, stop);
      if (!moved) {
        if (!stop.stop_requested()) {
          failure_ = moved.error();
          monitor_.notify_all(lock);
        }
        return;
      }
      if (*moved) {
        continue;
      }
      const bool blocked = blocked_;
      const std::uint64_t seen = changes_;
      std::optional<TimePoint> look_again;
      if (blocked) {
        look_again = clock_.now() + options_.poll * (waited_for_ ? 1 : kPollsWithoutHurry);
      }
      monitor_.wait_until(lock, stop, look_again, [&] {
        return changes_ != seen || (!blocked && has_candidate()) ||
               (blocked && !waited_for_ && blocked_is_waited_for());
      });
    }
  }

  bool blocked_is_waited_for() const {
    const std::vector<std::size_t> wanted = queue_.wanted();
    return std::any_of(wanted.begin(), wanted.end(), [&](std::size_t index) {
      return is_candidate(objects_[index]) && queue_.is_waited_for(index);
    });
  }
  bool has_candidate() const {
    const std::vector<std::size_t> wanted = queue_.wanted();
    return std::any_of(wanted.begin(), wanted.end(),
                       [&](std::size_t index) { return is_candidate(objects_[index]); });
  }
  static bool is_candidate(const Object& object) {
    return object.place == Place::away && !object.moving;
  }

  /// Tries the objects that are wanted and not there, nearest first.
  /// @return whether one of them is there now, or read by ranges from now on.
  Result<bool> bring_next(Lock& lock, const std::stop_token& stop) {
    blocked_ = waited_for_ = false;
    for (const std::size_t index : queue_.wanted()) {
      Object& object = objects_[index];
      if (!is_candidate(object)) {
        continue;
      }
      LIB_TRY(Outcome brought, bring(lock, object, stop));
      while (brought == Outcome::no_room) {
        LIB_TRY(const bool went, let_one_go(lock, queue_.distance(index, another_pass_), stop));
        if (!went) {
          break;
        }
        LIB_TRY(brought, bring(lock, object, stop));
      }
      if (brought == Outcome::ready) {
        object.blocked_since.reset();
        no_room_for_long_ = false;
        return true;
      }
      blocked_ = true;
      waited_for_ = waited_for_ || queue_.is_waited_for(index);
      if (gives_in(index) ||
          (no_room_for_long_ && brought == Outcome::no_room && queue_.is_waited_for(index))) {
        no_room_for_long_ = no_room_for_long_ || brought == Outcome::no_room;
        object.blocked_since.reset();
        object.place = Place::direct;
        log(LogLevel::warning, "staging_gave_way_to_ranges",
            {{"key", object.key}, {"why", brought == Outcome::busy ? "busy" : "no room"}});
        monitor_.notify_all(lock);
        return true;
      }
      if (brought == Outcome::no_room) {
        return false;  // What is needed later must not take the room that this one waits for.
      }
    }
    return false;
  }

  /// Whether an object that could not be had has been waited for long enough.
  bool gives_in(std::size_t index) {
    Object& object = objects_[index];
    const std::uint64_t progress = directory_.progress_bytes(object.key);
    if (!object.blocked_since || progress != object.progress_bytes ||
        !queue_.is_waited_for(index)) {
      object.blocked_since = clock_.now();
      object.progress_bytes = progress;
    }
    return clock_.now() - *object.blocked_since >= options_.patience;
  }

  Result<Outcome> bring(Lock& lock, Object& object, const std::stop_token& stop) {
    std::set<std::string> keep;
    for (std::size_t i = 0; i < objects_.size(); ++i) {
      if (queue_.distance(i, another_pass_) < LayerQueue::kNever - 1) {
        keep.insert(objects_[i].key);
      }
    }
    const WeightFile& file = checkpoint_.files()[object.file];
    const std::optional<std::uint64_t> checked = object.checked_inode;
    object.moving = true;
    lock.unlock();
    auto brought = stager_.bring(file, object.key, checked, keep, stop);
    lock.lock();
    object.moving = false;
    if (brought && brought->outcome == Outcome::ready) {
      object.checked_inode = brought->inode;
      object.data = std::move(brought->data);
      object.hold.emplace(*std::move(brought->hold));
      object.place = Place::ready;
    }
    monitor_.notify_all(lock);
    return brought ? Result<Outcome>(brought->outcome) : Result<Outcome>(brought.error());
  }

  /// Deletes the object of ours that is needed last, if that is behind `distance`.
  Result<bool> let_one_go(Lock& lock, std::uint64_t distance, const std::stop_token& stop) {
    std::vector<std::pair<std::uint64_t, std::size_t>> choices;
    for (std::size_t i = 0; i < objects_.size(); ++i) {
      const std::uint64_t of_this = queue_.distance(i, another_pass_);
      if (of_this > distance && !objects_[i].moving && objects_[i].place != Place::direct) {
        choices.emplace_back(of_this, i);
      }
    }
    std::sort(choices.rbegin(), choices.rend());
    for (const auto& [of_this, index] : choices) {
      Object& object = objects_[index];
      bool went = false;
      if (object.place == Place::ready) {
        went = give_up(lock, object, false);
      } else {
        lock.unlock();
        auto removed = directory_.remove_idle(object.key, stop);
        lock.lock();
        LIB_TRY(went, std::move(removed));
      }
      if (went) {
        return true;
      }
    }
    return false;
  }

  /// Ends our hold of an object; deletes it unless `keep`. @return whether it is gone.
  bool give_up(Lock& lock, Object& object, bool keep) {
    object.place = Place::away;
    object.data.reset();
    if (!object.hold) {
      return false;
    }
    StagingHold hold = *std::exchange(object.hold, std::nullopt);
    if (keep) {
      ++changes_;
      return false;
    }
    object.moving = true;
    lock.unlock();
    const auto removed = directory_.remove(std::move(hold), {});
    if (!removed) {
      log(LogLevel::warning, "staged_file_not_removed",
          {{"key", object.key}, {"why", removed.error().message()}});
    }
    lock.lock();
    object.moving = false;
    ++changes_;
    monitor_.notify_all(lock);
    return removed && *removed;
  }

  remote::Fetcher& fetcher_;
  const Checkpoint& checkpoint_;
  Clock& clock_;
  StagingDirectory& directory_;
  const StagedSourceOptions options_;
  ObjectStager stager_;          // The staging thread only, but for its statistics.
  std::vector<Object> objects_;  // As many as there are from the start; see find_objects().
  std::vector<std::size_t> object_of_file_;
  LayerQueue queue_;
  mutable Monitor monitor_;
  // Guarded by monitor_, as is queue_:
  std::deque<Job> jobs_;
  std::optional<Error> failure_;
  std::uint64_t direct_in_flight_ = 0;
  std::uint64_t direct_bytes_ = 0;
  std::uint64_t changes_ = 0;      // Counts what may give a blocked object its room.
  bool blocked_ = false;           // Something could not be had when it was last tried,
  bool waited_for_ = false;        // and somebody waits for it.
  bool no_room_for_long_ = false;  // Patience ended, and nothing was staged since.
  bool another_pass_ = false;
  std::vector<std::jthread> readers_;
  std::jthread staging_thread_;  // Last members: they end before anything they use.
};

StagedSource::StagedSource(remote::Fetcher& fetcher, const Checkpoint& checkpoint,
                           FileSystem& files, Clock& clock, StagingDirectory& directory,
                           const remote::FileStagingOptions& staging,
                           const StagedSourceOptions& options)
    : impl_(
          std::make_unique<Impl>(fetcher, checkpoint, files, clock, directory, staging, options)) {}

StagedSource::~StagedSource() = default;

void StagedSource::announce(std::int32_t layer) { impl_->announce(layer); }
void StagedSource::submit(std::uint32_t file, std::vector<remote::FetchPiece> pieces,
                          std::function<void(Result<void>)> done) {
  impl_->submit(file, std::move(pieces), std::move(done));
}
void StagedSource::cancel_all() { impl_->cancel_all(); }
void StagedSource::layer_is_durable(std::int32_t layer) { impl_->layer_is_durable(layer); }
void StagedSource::expect_another_pass(bool expected) { impl_->expect_another_pass(expected); }
Verification StagedSource::verification(std::int32_t layer) const {
  return impl_->verification(layer);
}
std::uint64_t StagedSource::needed_bytes() const { return impl_->needed_bytes(); }

}  // namespace librarian::weightmap
