#include "weightmap/remote/file_staging.h"

#include <algorithm>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "base/digest.h"
#include "base/journal.h"
#include "base/log.h"
#include "weightmap/remote/stated_digest.h"

namespace librarian::weightmap::remote {
namespace {

Error stopped() { return {ErrorCode::cancelled, "stopped while staging weights"}; }

std::uint64_t segment_count(std::uint64_t bytes, std::uint64_t segment_bytes) {
  return (bytes + segment_bytes - 1) / segment_bytes;
}

ByteRange segment_range(std::uint64_t segment, std::uint64_t bytes, std::uint64_t segment_bytes) {
  return {segment * segment_bytes, std::min(bytes, (segment + 1) * segment_bytes)};
}

}  // namespace

/// Two threads work on an object: the caller's sends requests and writes what arrives; the
/// keeper's makes it durable, journals it, and reads it back for the hash.
class FileStaging::Staging {
 public:
  Staging(FileStaging& owner, ObjectId object, const ObjectInfo& stated, const StagingHold& hold,
          StagingJournal& known, JournalWriter journal, std::unique_ptr<File> writing,
          std::unique_ptr<File> keeping)
      : owner_(owner),
        object_(object),
        hold_(hold),
        known_(known),
        journal_(std::move(journal)),
        writing_(std::move(writing)),
        keeping_(std::move(keeping)),
        digest_(stated),
        request_of_slab_(owner.options_.slabs),
        monitor_(owner.clock_),
        there_(known.segment_crcs.size()),
        bad_reads_(known.segment_crcs.size()) {
    for (std::uint64_t segment = 0; segment < there_.size(); ++segment) {
      there_[segment] = known.segment_crcs[segment].has_value();
      if (!there_[segment]) {
        missing_.push_back(segment);
      }
    }
    for (std::uint32_t slab = 0; slab < owner.options_.slabs; ++slab) {
      free_slabs_.push_back(slab);
    }
  }

  Result<StagedObject> run(const std::stop_token& stop) {
    {
      const std::jthread keeper = start_thread(
          owner_.clock_, [this](const std::stop_token& /*ended*/) { keep_until_done(); });
      bring(stop);
      auto lock = monitor_.lock();
      no_more_ = true;
      monitor_.notify_all(lock);
    }
    if (failure_) {
      return *failure_;
    }
    LIB_CHECK(hashed_ == there_.size());
    std::string sha256 = digest_.finish();
    return StagedObject{std::move(sha256), digest_.matches()};
  }

  JournalWriter& journal() { return journal_; }

 private:
  struct Arrived {
    std::uint64_t segment;
    std::uint32_t slab;
    Result<CrcRuns> result;
  };

  ByteRange range_of(std::uint64_t segment) const {
    return segment_range(segment, hold_.bytes(), owner_.options_.segment_bytes);
  }

  void fail(const std::unique_lock<std::mutex>& lock, Error error) {
    if (!failure_) {
      failure_ = std::move(error);
    }
    monitor_.notify_all(lock);
  }

  /// Until everything is hashed, or something failed and nothing is in flight any more.
  void bring(const std::stop_token& stop) {
    auto lock = monitor_.lock();
    while (true) {
      const bool awake = monitor_.wait(lock, failure_ ? std::stop_token() : stop, [&] {
        return !arrived_.empty() || (failure_ && in_flight_ == 0) || hashed_ == there_.size() ||
               (!failure_ && !missing_.empty() && !free_slabs_.empty());
      });
      if (!awake) {
        fail(lock, stopped());
        lock.unlock();
        cancel_requests();
        lock.lock();
        continue;
      }
      if (!arrived_.empty()) {
        Arrived next = std::move(arrived_.front());
        arrived_.pop_front();
        take_in(lock, std::move(next));
      } else if (failure_ || hashed_ == there_.size()) {
        return;
      } else {
        request(lock);
      }
    }
  }

  void request(std::unique_lock<std::mutex>& lock) {
    const std::uint64_t segment = missing_.front();
    missing_.pop_front();
    const std::uint32_t slab = free_slabs_.back();
    free_slabs_.pop_back();
    ++in_flight_;
    lock.unlock();
    const ByteRange range = range_of(segment);
    {
      auto count_lock = owner_.monitor_.lock();
      owner_.needed_bytes_ += range.size();
    }
    request_of_slab_[slab] =
        owner_.fetcher_.submit({object_, {{range, owner_.slab(slab).data()}}, 0},
                               [this, segment, slab](Result<CrcRuns> result) {
                                 auto done_lock = monitor_.lock();
                                 --in_flight_;
                                 arrived_.push_back({segment, slab, std::move(result)});
                                 monitor_.notify_all(done_lock);
                               });
    lock.lock();
  }

  void take_in(std::unique_lock<std::mutex>& lock, Arrived arrived) {
    const ByteRange range = range_of(arrived.segment);
    const std::span<const std::byte> bytes = owner_.slab(arrived.slab).first(range.size());
    std::optional<Error> error;
    if (arrived.result) {
      lock.unlock();
      // That of what arrived: what changes in the slab before it is written is seen when it is read
      // back.
      const std::optional<std::uint32_t> on_arrival = crc_of(*arrived.result, range);
      const std::uint32_t crc = on_arrival ? *on_arrival : crc32c(bytes);
      const Result<void> written = writing_->write_at(range.begin, bytes);
      lock.lock();
      if (!written) {
        error = written.error();
      } else {
        known_.segment_crcs[arrived.segment] = crc;
        there_[arrived.segment] = true;
        unsynced_.emplace_back(arrived.segment, crc);
      }
    } else {
      error = arrived.result.error();
    }
    free_slabs_.push_back(arrived.slab);
    if (error) {
      const bool first = !failure_;
      fail(lock, *std::move(error));
      if (first) {
        lock.unlock();
        cancel_requests();
        lock.lock();
      }
    }
    monitor_.notify_all(lock);
  }

  void cancel_requests() {
    for (const Fetcher::RequestId request : request_of_slab_) {
      owner_.fetcher_.cancel(request);  // One that has ended is not there any more.
    }
  }

  bool sync_is_due() const {
    return unsynced_.size() >= owner_.options_.segments_per_sync ||
           (!unsynced_.empty() && (no_more_ || (missing_.empty() && in_flight_ == 0)));
  }
  bool next_is_there() const { return !failure_ && hashed_ < there_.size() && there_[hashed_]; }

  void keep_until_done() {
    auto lock = monitor_.lock();
    while (true) {
      monitor_.wait(lock, {}, [&] { return no_more_ || sync_is_due() || next_is_there(); });
      if (!disk_failed_ && sync_is_due()) {
        sync(lock);
      } else if (next_is_there()) {
        hash_next(lock);
      } else if (no_more_ || disk_failed_) {
        return;
      }
    }
  }

  /// What was written becomes durable, then the journal says so.
  void sync(std::unique_lock<std::mutex>& lock) {
    const auto batch = std::exchange(unsynced_, {});
    lock.unlock();
    Result<void> result = keeping_->sync_data();
    if (result) {
      result = journal_.append(staging_segments_record(batch));
    }
    lock.lock();
    if (!result) {
      disk_failed_ = true;
      fail(lock, result.error());
    }
    monitor_.notify_all(lock);
  }

  void hash_next(std::unique_lock<std::mutex>& lock) {
    const std::uint64_t segment = hashed_;
    const std::uint32_t expected = *known_.segment_crcs[segment];
    const ByteRange range = range_of(segment);
    lock.unlock();
    const std::span<std::byte> bytes = owner_.slab(owner_.options_.slabs).first(range.size());
    const Result<void> read = read_exactly(*keeping_, hold_.data_path(), range.begin, bytes);
    const bool same = read && crc32c(bytes) == expected;
    if (same) {
      digest_.update(bytes);
    }
    lock.lock();
    if (!read) {
      fail(lock, read.error());
    } else if (same) {
      ++hashed_;
    } else if (++bad_reads_[segment] > 1) {
      fail(lock, Error(ErrorCode::io, hold_.data_path() + ": bytes " + std::to_string(range.begin) +
                                          " to " + std::to_string(range.end) +
                                          " are not what arrived, twice; use another disk, or "
                                          "test this machine's memory"));
    } else {
      log(LogLevel::warning, "staged_segment_damaged",
          {{"path", hold_.data_path()}, {"begin", range.begin}, {"end", range.end}});
      there_[segment] = false;
      missing_.push_front(segment);
    }
    monitor_.notify_all(lock);
  }

  FileStaging& owner_;
  const ObjectId object_;
  const StagingHold& hold_;
  StagingJournal& known_;
  JournalWriter journal_;
  const std::unique_ptr<File> writing_;  // The caller's.
  const std::unique_ptr<File> keeping_;  // The keeper's.
  StatedDigest digest_;
  std::vector<Fetcher::RequestId> request_of_slab_;  // The latest one; the caller's.
  Monitor monitor_;
  // Guarded by monitor_:
  std::vector<bool> there_;  // Written; maybe not durable yet.
  std::vector<std::uint8_t> bad_reads_;
  std::deque<std::uint64_t> missing_;
  std::vector<std::uint32_t> free_slabs_;
  std::deque<Arrived> arrived_;
  std::vector<std::pair<std::uint64_t, std::uint32_t>> unsynced_;
  std::uint64_t in_flight_ = 0;
  std::uint64_t hashed_ = 0;
  bool no_more_ = false;
  bool disk_failed_ = false;
  std::optional<Error> failure_;
};

FileStaging::FileStaging(Fetcher& fetcher, FileSystem& files, Clock& clock,
                         const FileStagingOptions& options)
    : fetcher_(fetcher),
      files_(files),
      clock_(clock),
      options_(options),
      memory_(new std::byte[memory_bytes(options)]),
      monitor_(clock) {
  LIB_CHECK(options.slabs > 0 && options.segments_per_sync > 0);
}

std::uint64_t FileStaging::needed_bytes() const {
  const auto lock = monitor_.lock();
  return needed_bytes_;
}

Result<StagedObject> FileStaging::stage(ObjectId object, const ObjectInfo& stated,
                                        const StagingHold& hold, const std::stop_token& stop) {
  StagingJournal nothing;
  nothing.segment_crcs.resize(segment_count(hold.bytes(), options_.segment_bytes));
  LIB_TRY(const auto before,
          read_staging_journal(files_, hold.journal_path(), hold.bytes(), options_.segment_bytes));
  StagingJournal known = before ? *before : nothing;
  LIB_TRY(StagedObject staged, stage_once(object, hold, known, stated, stop));
  if (!staged.matches) {
    log(LogLevel::warning, "staged_file_is_wrong",
        {{"path", hold.data_path()},
         {"stated", stated_digest_text(stated)},
         {"sha256", staged.sha256}});
    known = nothing;
    LIB_TRY(staged, stage_once(object, hold, known, stated, stop));
  }
  return staged;
}

Result<StagedObject> FileStaging::stage_once(ObjectId object, const StagingHold& hold,
                                             StagingJournal& known, const ObjectInfo& stated,
                                             const std::stop_token& stop) {
  std::vector<std::string> records{staging_header_record(hold.bytes(), options_.segment_bytes)};
  std::vector<std::pair<std::uint64_t, std::uint32_t>> durable;
  for (std::uint64_t segment = 0; segment < known.segment_crcs.size(); ++segment) {
    if (known.segment_crcs[segment]) {
      durable.emplace_back(segment, *known.segment_crcs[segment]);
    }
  }
  if (!durable.empty()) {
    records.push_back(staging_segments_record(durable));
  }
  LIB_TRY(std::unique_ptr<File> writing, files_.open_sparse(hold.data_path()));
  LIB_TRY(std::unique_ptr<File> keeping, files_.open_sparse(hold.data_path()));
  LIB_TRY(JournalWriter journal, JournalWriter::create(files_, hold.journal_path(), records));
  Staging staging(*this, object, stated, hold, known, std::move(journal), std::move(writing),
                  std::move(keeping));
  LIB_TRY(StagedObject staged, staging.run(stop));
  if (staged.matches) {
    LIB_TRY_VOID(staging.journal().append(staging_complete_record(staged.sha256)));
  }
  return staged;
}

Result<StagedObject> FileStaging::check(const StagingHold& hold, const std::stop_token& stop) {
  LIB_TRY(const auto journal,
          read_staging_journal(files_, hold.journal_path(), hold.bytes(), options_.segment_bytes));
  LIB_TRY(const std::unique_ptr<File> file, files_.open(hold.data_path()));
  StreamingSha256 sha256;
  for (std::uint64_t at = 0; at < hold.bytes(); at += options_.segment_bytes) {
    if (stop.stop_requested()) {
      return stopped();
    }
    const std::uint64_t bytes = std::min(options_.segment_bytes, hold.bytes() - at);
    const std::span<std::byte> into = slab(0).first(bytes);
    LIB_TRY_VOID(read_exactly(*file, hold.data_path(), at, into));
    sha256.update(into);
  }
  std::string digest = sha256.finish();
  const bool matches = journal && journal->sha256 == digest;
  return StagedObject{std::move(digest), matches};
}

}  // namespace librarian::weightmap::remote
