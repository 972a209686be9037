// FileStaging::hash(): an object's bytes through memory, in order, and away.
#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "weightmap/remote/file_staging.h"
#include "weightmap/remote/stated_digest.h"

namespace librarian::weightmap::remote {

/// Segments in flight behind the one that is hashed next; slab i holds segments i, i + slabs, ...
class FileStaging::Window {
 public:
  Window(FileStaging& owner, ObjectId object, const ObjectInfo& stated)
      : owner_(owner),
        object_(object),
        stated_(stated),
        bytes_(stated.size),
        segments_((bytes_ + owner.options_.segment_bytes - 1) / owner.options_.segment_bytes),
        monitor_(owner.clock_),
        requests_(owner.options_.slabs),
        results_(owner.options_.slabs) {}

  Result<StagedObject> run(const std::stop_token& stop) {
    StatedDigest digest(stated_);
    Result<void> outcome;
    for (std::uint64_t next = 0; next < segments_ && outcome; ++next) {
      while (sent_ < segments_ && sent_ < next + results_.size()) {
        send();
      }
      outcome = wait_for(next, stop);
      if (outcome) {
        digest.update(place(next));
      }
    }
    if (!outcome) {
      for (const Fetcher::RequestId request : requests_) {
        owner_.fetcher_.cancel(request);  // One that has ended is not there any more.
      }
    }
    auto lock = monitor_.lock();
    monitor_.wait(lock, {}, [&] { return in_flight_ == 0; });  // Slabs are written to until then.
    lock.unlock();
    LIB_TRY_VOID(std::move(outcome));
    std::string sha256 = digest.finish();
    return StagedObject{std::move(sha256), digest.matches()};
  }

 private:
  std::span<std::byte> place(std::uint64_t segment) const {
    const std::uint64_t begin = segment * owner_.options_.segment_bytes;
    return owner_.slab(static_cast<std::uint32_t>(segment % results_.size()))
        .first(std::min(owner_.options_.segment_bytes, bytes_ - begin));
  }

  void send() {
    const std::uint64_t segment = sent_++;
    const std::span<std::byte> into = place(segment);
    const std::uint64_t begin = segment * owner_.options_.segment_bytes;
    {
      auto lock = monitor_.lock();
      results_[segment % results_.size()].reset();
      ++in_flight_;
      auto count_lock = owner_.monitor_.lock();
      owner_.needed_bytes_ += into.size();
    }
    requests_[segment % results_.size()] =
        owner_.fetcher_.submit({object_, {{{begin, begin + into.size()}, into.data()}}, 0},
                               [this, segment](Result<void> result) {
                                 auto lock = monitor_.lock();
                                 results_[segment % results_.size()].emplace(std::move(result));
                                 --in_flight_;
                                 monitor_.notify_all(lock);
                               });
  }

  Result<void> wait_for(std::uint64_t segment, const std::stop_token& stop) {
    std::optional<Result<void>>& result = results_[segment % results_.size()];
    auto lock = monitor_.lock();
    if (!monitor_.wait(lock, stop, [&] { return result.has_value(); })) {
      return Error(ErrorCode::cancelled, "stopped while hashing weights");
    }
    return *result;
  }

  FileStaging& owner_;
  const ObjectId object_;
  const ObjectInfo& stated_;
  const std::uint64_t bytes_;
  const std::uint64_t segments_;
  std::uint64_t sent_ = 0;
  Monitor monitor_;
  std::vector<Fetcher::RequestId> requests_;          // The latest one of each slab.
  std::vector<std::optional<Result<void>>> results_;  // Guarded by monitor_, as is in_flight_.
  std::uint64_t in_flight_ = 0;
};

Result<StagedObject> FileStaging::hash(ObjectId object, const ObjectInfo& stated,
                                       const std::stop_token& stop) {
  LIB_TRY(StagedObject hashed, Window(*this, object, stated).run(stop));
  if (!hashed.matches) {
    LIB_TRY(hashed, Window(*this, object, stated).run(stop));
  }
  return hashed;
}

}  // namespace librarian::weightmap::remote
