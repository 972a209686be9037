#pragma once
/// Brings a layer's rows to the device and its results back, while the device computes: the only
/// place that knows whether rows are copied at all. Private to gpu_exec.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <stop_token>
#include <vector>

#include "base/error.h"
#include "gpu_exec/device.h"
#include "gpu_exec/execution_plan.h"
#include "gpu_exec/layer_executor.h"

namespace librarian::gpu_exec {

/// Copied rows go: load() -> inbox slot -> (upload) -> state slot -> computed in place -> copied
/// (compute) to an outbox slot -> (download) -> its host slot -> capture(), store(). Each slot is
/// used again when the ticket of its last use is reached. Not thread-safe.
class RowTransport {
 public:
  /// @param arena  Where `plan` holds.
  /// @param host   ExecutorMemory::host_bytes less the device's, or null if no rows are copied.
  /// Everything must outlive this.
  RowTransport(Device& device, const ExecutionPlan& plan, std::byte* arena, std::byte* host);

  /// Begins a run over blocks of rows of `row_bytes`.
  void begin(std::span<const Block> blocks, std::uint64_t row_bytes, LayerIo& io,
             const std::stop_token& stop);
  /// Where the block's rows are; work given to the compute queue afterwards finds them there. Call
  /// for blocks in order.
  Result<std::byte*> enter(std::size_t block);
  /// Where the rows of a block between enter() and leave() are.
  std::byte* rows_of(std::size_t block) const;
  /// Hands rows to io as they are at this place of the compute queue.
  Result<void> capture(CapturePoint point, std::size_t block, std::span<std::byte> rows);
  /// Stores a block's rows; resid_post was its last capture.
  Result<void> leave(std::size_t block);
  /// Waits until everything has left, and hands it over.
  Result<void> finish();
  /// Hands over what has arrived, without waiting, and lets io do something else.
  Result<void> idle();

 private:
  struct Departure {
    CapturePoint point;
    std::size_t block;
    std::uint64_t slot;
    std::uint64_t bytes;
    Ticket arrived;
  };

  bool copies() const { return plan_.state_slots != 0; }
  std::uint64_t bytes_of(std::size_t block) const { return blocks_[block].rows * row_bytes_; }
  std::byte* state_slot(std::size_t block) const;
  Result<std::span<std::byte>> load(std::size_t block);
  Result<void> start_next();
  Result<void> deliver_oldest();
  Result<void> wait_for(Ticket ticket);

  Device& device_;
  const ExecutionPlan& plan_;
  std::byte* const arena_;
  std::byte* const inbox_;
  std::byte* const outbox_host_;
  std::vector<Ticket> inbox_free_;  ///< By inbox slot: it was uploaded.
  std::vector<Ticket> state_free_;  ///< By state slot: computed and copied to the outbox.
  std::uint64_t next_outbox_ = 0;

  std::span<const Block> blocks_;
  std::uint64_t row_bytes_ = 0;
  LayerIo* io_ = nullptr;
  std::stop_token stop_;
  std::size_t started_ = 0;                     ///< Blocks whose upload was begun.
  std::size_t left_ = 0;                        ///< Blocks that have left their state slot.
  std::vector<Ticket> uploaded_;                ///< By block.
  std::vector<std::span<std::byte>> in_place_;  ///< By block, if no rows are copied.
  std::deque<Departure> departures_;            ///< Oldest first.
};

}  // namespace librarian::gpu_exec
