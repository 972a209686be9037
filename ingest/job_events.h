#pragma once
/// What a job tells whoever watches it; the command line turns these into progress, lines or JSON.

#include <cstdint>
#include <string>

#include "base/clock.h"

namespace librarian::ingest {

/// Where a layer's time went. Stages overlap, so these do not add up to `wall`.
struct LayerTimes {
  Duration wall{};          ///< From the end of the layer before to the end of compute.
  Duration fetch_wait{};    ///< Compute waited for its weights.
  Duration load_busy{};     ///< Packing weights.
  Duration compute_busy{};  ///< Running blocks, captures handed over included.
  Duration capture_wait{};  ///< Compute waited for the encoder or the disk.
  Duration commit_wait{};   ///< Compute waited for an earlier commit or a durable state.
};

struct LayerDone {
  std::uint64_t part = 0;
  std::int32_t layer = 0;           ///< -1 the embedding, L the final norm.
  std::int32_t last_layer = 0;      ///< Of this job.
  std::uint64_t tokens = 0;         ///< Rows that went through.
  std::uint64_t fetched_bytes = 0;  ///< Weights that came for this layer.
  std::uint64_t stored_bytes = 0;   ///< Of its captures, encoded.
  std::uint64_t raw_bytes = 0;      ///< Of its captures, before encoding.
  LayerTimes times;
};

/// Called on the job's threads, one call at a time; must return quickly.
class JobObserver {
 public:
  virtual ~JobObserver() = default;
  virtual void part_started(std::uint64_t /*part*/, std::uint64_t /*tokens*/,
                            std::int32_t /*first_layer*/) {}
  /// After each block of a layer, for live progress.
  virtual void rows_done(std::uint64_t /*part*/, std::int32_t /*layer*/, std::uint64_t /*done*/,
                         std::uint64_t /*total*/) {}
  virtual void layer_done(const LayerDone& /*event*/) {}
  virtual void part_done(std::uint64_t /*part*/) {}
  /// The skeleton's bytes come now; and they are all there, durable.
  virtual void skeleton_started(std::uint64_t /*tensor_bytes*/) {}
  virtual void skeleton_done(std::uint64_t /*fetched_bytes*/) {}
  virtual void waiting(const std::string& /*holders*/) {}
  virtual void warning(const std::string& /*text*/) {}
};

}  // namespace librarian::ingest
