#pragma once
/// Brings the layers' weights from the weight map to the executor: before a layer runs, or, where
/// the device has room, while the layer before runs.

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "gpu_exec/layer_executor.h"
#include "ingest/job_events.h"
#include "weightmap/virtual_weight_map.h"

namespace librarian::ingest {

/// Holds one lease at a time. Pieces go back to the weight map when the device is done with them.
/// Not thread-safe.
class WeightLoader {
 public:
  /// @param on_begun  Called when a layer's lease begins, so that those behind it can be fetched.
  WeightLoader(weightmap::VirtualWeightMap& weights, gpu_exec::LayerExecutor& executor,
               Clock& clock, const weightmap::Checkpoint& checkpoint,
               std::function<Result<void>(std::int32_t layer)> on_begun);
  /// Waits until the device reads no piece any more.
  ~WeightLoader();
  WeightLoader(const WeightLoader&) = delete;
  WeightLoader& operator=(const WeightLoader&) = delete;

  /// Loads all of a layer (L: the final norm), or what is still missing of it.
  /// @return  XXH3-128 of each of its tensors, by name.
  Result<std::map<std::string, std::string>> load(std::int32_t layer, LayerTimes& times,
                                                  const std::stop_token& stop);
  /// For an executor that streams(): begins a layer without loading anything, loads its next
  /// tensors whose stage_order() is below `order_end`, and ends it when all were loaded. All this
  /// `readings` times, of which `reading` is the number from 0.
  Result<void> begin_stages(std::int32_t layer, std::uint32_t reading, std::uint32_t readings,
                            LayerTimes& times, const std::stop_token& stop);
  /// What has not begun to come of these experts is not fetched, this time.
  void skip_experts(const std::vector<bool>& unneeded);
  /// @return  Bytes of what it loaded.
  Result<std::uint64_t> load_stage(std::uint32_t order_end, LayerTimes& times,
                                   const std::stop_token& stop);
  /// @return  As load(), without the experts that were not needed.
  Result<std::map<std::string, std::string>> end_stages(const std::stop_token& stop);
  /// Loads what has arrived of `layer`, the one after the layer that runs, if the executor can take
  /// it now. Does not wait.
  Result<void> load_ahead(std::int32_t layer);
  /// The layer that load() loaded has run: its tensors are not needed any more.
  void layer_done();
  /// Waits until the device reads no piece any more and gives the lease back, so that somebody else
  /// may take the next layer's weights.   @error cancelled | internal
  Result<void> end_lease(const std::stop_token& stop);

 private:
  void begin_lease(std::int32_t layer, std::uint32_t readings);
  Result<void> begin(std::int32_t layer, std::uint32_t readings = 1);
  Result<std::optional<weightmap::ArrivedPiece>> next_piece(const std::stop_token& stop);
  std::map<std::string, std::string> digests();
  Result<void> take(const weightmap::ArrivedPiece& piece);
  Result<gpu_exec::Ticket> take_quantised(const weightmap::ArrivedPiece& piece);
  Result<void> give_back_reached();
  bool is_unneeded(const weightmap::WeightTensor& tensor) const;

  weightmap::VirtualWeightMap& weights_;
  gpu_exec::LayerExecutor& executor_;
  Clock& clock_;
  const weightmap::Checkpoint& checkpoint_;
  std::function<Result<void>(std::int32_t)> on_begun_;
  std::optional<std::int32_t> layer_;  ///< Whose lease it is.
  std::optional<weightmap::Lease> lease_;
  std::vector<bool> unneeded_experts_;   ///< Of this lease; empty: all may be needed.
  std::deque<gpu_exec::Ticket> pieces_;  ///< Taken and not given back, oldest first.
  /// Scales and the like of the layer's quantised matrices, by suffix, until it has run.
  std::map<gpu_exec::WeightKey, std::map<std::string, std::vector<std::byte>>> tables_;
};

}  // namespace librarian::ingest
