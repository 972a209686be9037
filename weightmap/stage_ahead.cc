// The thread that brings files before layers ask for them, and what goes to make room.
#include <algorithm>
#include <set>
#include <utility>

#include "base/log.h"
#include "weightmap/staged_source_impl.h"

namespace librarian::weightmap {
namespace {

// Looking at what other processes do costs them and us a little.
constexpr int kPollsWithoutHurry = 20;

}  // namespace

void StagedSource::Impl::stage_ahead(const std::stop_token& stop) {
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

bool StagedSource::Impl::blocked_is_waited_for() const {
  const std::vector<std::size_t> wanted = queue_.wanted();
  return std::any_of(wanted.begin(), wanted.end(), [&](std::size_t index) {
    return is_candidate(objects_[index]) && queue_.is_waited_for(index);
  });
}

bool StagedSource::Impl::has_candidate() const {
  const std::vector<std::size_t> wanted = queue_.wanted();
  return std::any_of(wanted.begin(), wanted.end(),
                     [&](std::size_t index) { return is_candidate(objects_[index]); });
}

/// Tries the objects that are wanted and not there, nearest first.
/// @return whether one of them is there now, or read by ranges from now on.
Result<bool> StagedSource::Impl::bring_next(Lock& lock, const std::stop_token& stop) {
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
bool StagedSource::Impl::gives_in(std::size_t index) {
  Object& object = objects_[index];
  const std::uint64_t progress = directory_.progress_bytes(object.key);
  if (!object.blocked_since || progress != object.progress_bytes || !queue_.is_waited_for(index)) {
    object.blocked_since = clock_.now();
    object.progress_bytes = progress;
  }
  return clock_.now() - *object.blocked_since >= options_.patience;
}

Result<ObjectStager::Outcome> StagedSource::Impl::bring(Lock& lock, Object& object,
                                                        const std::stop_token& stop) {
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
Result<bool> StagedSource::Impl::let_one_go(Lock& lock, std::uint64_t distance,
                                            const std::stop_token& stop) {
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
      went = give_up(lock, object, false, stop);
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
bool StagedSource::Impl::give_up(Lock& lock, Object& object, bool keep,
                                 const std::stop_token& stop) {
  object.place = Place::away;
  object.data.reset();
  if (!object.hold) {
    return false;
  }
  remote::StagingHold hold = *std::exchange(object.hold, std::nullopt);
  if (keep) {
    ++changes_;
    return false;
  }
  object.moving = true;
  lock.unlock();
  const auto removed = directory_.remove(std::move(hold), stop);
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

}  // namespace librarian::weightmap
