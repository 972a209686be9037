#pragma once
/// A running job as people see it: a live line on a terminal, else one line per layer, or JSON
/// events.

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "base/clock.h"
#include "ingest/job.h"
#include "ingest/job_events.h"

namespace librarian::cli {

enum class ProgressStyle : std::uint8_t { live, lines, json };

/// Thread-safe: events come from several of the job's threads.
class Progress final : public ingest::JobObserver {
 public:
  Progress(const ingest::PreparedJob& job, ProgressStyle style);
  ~Progress() override;

  void part_started(std::uint64_t part, std::uint64_t tokens, std::int32_t first_layer) override;
  void rows_done(std::uint64_t part, std::int32_t layer, std::uint64_t done,
                 std::uint64_t total) override;
  void layer_done(const ingest::LayerDone& event) override;
  void part_done(std::uint64_t part) override;
  void skeleton_started(std::uint64_t tensor_bytes) override;
  void skeleton_done(std::uint64_t fetched_bytes) override;
  void waiting(const std::string& holders) override;
  void warning(const std::string& text) override;
  /// Ends the live line, so that what follows begins on its own.
  void finish();

 private:
  void draw();
  void take_rate(TimePoint now);
  void clear();
  std::string layer_name(std::int32_t layer) const;
  double fraction_done() const;

  const ingest::PreparedJob& job_;
  const ProgressStyle style_;
  std::mutex mutex_;
  TimePoint begin_;
  TimePoint drawn_{};
  std::uint64_t part_ = 0;
  std::int32_t layer_ = 0;
  std::uint64_t rows_ = 0;
  std::uint64_t rows_total_ = 0;
  std::uint64_t stored_bytes_ = 0;
  double steps_done_ = 0;     ///< Layers times tokens, by this process.
  double steps_skipped_ = 0;  ///< Finished before this process began.
  double steps_total_ = 0;
  ingest::LayerTimes last_times_;
  std::string last_waiting_;
  bool line_shown_ = false;
  std::uint64_t seen_bytes_ = 0;  ///< Fetched when the rate was last taken.
  TimePoint seen_at_;
  double fetch_rate_ = 0;  ///< Bytes per second of late.
  std::jthread redraw_;    ///< While the line is live: weights may take minutes between events.
};

}  // namespace librarian::cli
