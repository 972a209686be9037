#pragma once
/// Private to StagedSource: what its threads share.

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "weightmap/layer_queue.h"
#include "weightmap/object_stager.h"
#include "weightmap/staged_source.h"

namespace librarian::weightmap {

class StagedSource::Impl {
 public:
  Impl(remote::Fetcher& fetcher, const Checkpoint& checkpoint, FileSystem& files, Clock& clock,
       remote::StagingDirectory& directory, const remote::FileStagingOptions& staging,
       const StagedSourceOptions& options);
  ~Impl();
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  void announce(std::int32_t layer, std::uint32_t readings);
  void submit(std::uint32_t file, std::vector<remote::FetchPiece> pieces,
              remote::Fetcher::Done done);
  void pass_over(std::uint64_t bytes);
  void cancel_all();
  void layer_is_durable(std::int32_t layer, const std::stop_token& stop);
  void expect_another_pass(bool expected);
  Verification verification(std::int32_t layer) const;
  std::uint64_t needed_bytes() const;

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
    std::optional<remote::StagingHold> hold;
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
    remote::Fetcher::Done done;
  };
  using Outcome = ObjectStager::Outcome;
  using Lock = std::unique_lock<std::mutex>;

  std::vector<std::size_t> find_objects();

  // Reading, in staged_source.cc. A `lock` may be given up in between.
  void read_jobs(const std::stop_token& stop);
  void finish(Lock& lock, const Job& job, const Result<remote::CrcRuns>& result,
              Verification verification);
  void read_direct(Lock& lock, const Job& job);

  // Staging, in stage_ahead.cc.
  void stage_ahead(const std::stop_token& stop);
  bool blocked_is_waited_for() const;
  bool has_candidate() const;
  static bool is_candidate(const Object& object) {
    return object.place == Place::away && !object.moving;
  }
  Result<bool> bring_next(Lock& lock, const std::stop_token& stop);
  bool gives_in(std::size_t index);
  Result<Outcome> bring(Lock& lock, Object& object, const std::stop_token& stop);
  Result<bool> let_one_go(Lock& lock, std::uint64_t distance, const std::stop_token& stop);
  bool give_up(Lock& lock, Object& object, bool keep, const std::stop_token& stop);

  remote::Fetcher& fetcher_;
  const Checkpoint& checkpoint_;
  Clock& clock_;
  remote::StagingDirectory& directory_;
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
  std::vector<remote::Fetcher::RequestId> direct_requests_;
  std::uint64_t direct_bytes_ = 0;
  std::uint64_t changes_ = 0;      // Counts what may give a blocked object its room.
  bool blocked_ = false;           // Something could not be had when it was last tried,
  bool waited_for_ = false;        // and somebody waits for it.
  bool no_room_for_long_ = false;  // Patience ended, and nothing was staged since.
  bool another_pass_ = false;
  std::vector<std::jthread> readers_;
  std::jthread staging_thread_;  // Last members: they end before anything they use.
};

}  // namespace librarian::weightmap
