#include "gpu_exec/row_transport.h"

#include <chrono>
#include <cstring>
#include <string>
#include <thread>

namespace librarian::gpu_exec {
namespace {

/// Short next to a block, long next to asking the driver.
constexpr std::chrono::microseconds kPollInterval(50);

}  // namespace

RowTransport::RowTransport(Device& device, const ExecutionPlan& plan, std::byte* arena,
                           std::byte* host)
    : device_(device),
      plan_(plan),
      arena_(arena),
      inbox_(host),
      outbox_host_(host + kInboxSlots * plan.rows_bytes),
      inbox_free_(kInboxSlots),
      state_free_(plan.state_slots) {}

void RowTransport::begin(std::span<const Block> blocks, std::uint64_t row_bytes, LayerIo& io,
                         const std::stop_token& stop) {
  blocks_ = blocks;
  row_bytes_ = row_bytes;
  io_ = &io;
  stop_ = stop;
  started_ = 0;
  left_ = 0;
  uploaded_.assign(blocks.size(), {});
  in_place_.assign(copies() ? 0 : blocks.size(), {});
  // A run that failed leaves some behind.
  departures_.clear();
}

std::byte* RowTransport::state_slot(std::size_t block) const {
  return arena_ + plan_.state + block % plan_.state_slots * plan_.rows_bytes;
}

std::byte* RowTransport::rows_of(std::size_t block) const {
  return copies() ? state_slot(block) : in_place_[block].data();
}

Result<std::byte*> RowTransport::enter(std::size_t block) {
  if (!copies()) {
    LIB_TRY(in_place_[block], load(block));
    return in_place_[block].data();
  }
  // The block itself, and the next one, if it has a place already.
  while (started_ < blocks_.size() && started_ <= block + 1 &&
         started_ < left_ + plan_.state_slots) {
    LIB_TRY_VOID(start_next());
  }
  LIB_CHECK(started_ > block);
  device_.wait(Queue::compute, uploaded_[block]);
  return state_slot(block);
}

Result<std::span<std::byte>> RowTransport::load(std::size_t block) {
  LIB_TRY(const std::span<std::byte> rows, io_->load(block));
  if (rows.size() != bytes_of(block)) {
    return Error(ErrorCode::invalid_argument, "block of " + std::to_string(blocks_[block].rows) +
                                                  " rows with " + std::to_string(rows.size()) +
                                                  " bytes of state");
  }
  return rows;
}

Result<void> RowTransport::start_next() {
  const std::size_t block = started_;
  const std::uint64_t slot = block % kInboxSlots;
  LIB_TRY_VOID(wait_for(inbox_free_[slot]));
  LIB_TRY(const std::span<std::byte> rows, load(block));
  std::byte* const from = inbox_ + slot * plan_.rows_bytes;
  std::memcpy(from, rows.data(), rows.size());
  device_.wait(Queue::upload, state_free_[block % plan_.state_slots]);
  device_.copy_in(from, state_slot(block), rows.size());
  uploaded_[block] = device_.mark(Queue::upload);
  inbox_free_[slot] = uploaded_[block];
  ++started_;
  return {};
}

Result<void> RowTransport::capture(CapturePoint point, std::size_t block,
                                   std::span<std::byte> rows) {
  if (!copies()) {
    return io_->wants(point) ? io_->capture(point, block, rows) : Result<void>();
  }
  // resid_post is what store() gets, wanted or not.
  if (point != CapturePoint::resid_post && !io_->wants(point)) {
    return {};
  }
  while (departures_.size() >= plan_.outbox_slots) {
    LIB_TRY_VOID(deliver_oldest());
  }
  const std::uint64_t slot = next_outbox_++ % plan_.outbox_slots;
  std::byte* const on_device = arena_ + plan_.outbox + slot * plan_.rows_bytes;
  // Copied aside first: what follows in the layer may overwrite the rows at once.
  device_.copy(rows.data(), on_device, rows.size());
  device_.wait(Queue::download, device_.mark(Queue::compute));
  device_.copy_out(on_device, outbox_host_ + slot * plan_.rows_bytes, rows.size());
  departures_.push_back({point, block, slot, rows.size(), device_.mark(Queue::download)});
  return {};
}

Result<void> RowTransport::leave(std::size_t block) {
  if (!copies()) {
    return io_->store(block, in_place_[block]);
  }
  state_free_[block % plan_.state_slots] = device_.mark(Queue::compute);
  ++left_;
  return {};
}

Result<void> RowTransport::finish() {
  while (!departures_.empty()) {
    LIB_TRY_VOID(deliver_oldest());
  }
  return {};
}

Result<void> RowTransport::idle() {
  while (!departures_.empty()) {
    LIB_TRY(const bool arrived, device_.reached(departures_.front().arrived));
    if (!arrived) {
      break;
    }
    LIB_TRY_VOID(deliver_oldest());
  }
  return io_->idle();
}

Result<void> RowTransport::deliver_oldest() {
  const Departure departure = departures_.front();
  LIB_TRY_VOID(wait_for(departure.arrived));
  const std::span<std::byte> rows(outbox_host_ + departure.slot * plan_.rows_bytes,
                                  departure.bytes);
  if (io_->wants(departure.point)) {
    LIB_TRY_VOID(io_->capture(departure.point, departure.block, rows));
  }
  if (departure.point == CapturePoint::resid_post) {
    LIB_TRY_VOID(io_->store(departure.block, rows));
  }
  departures_.pop_front();
  return {};
}

Result<void> RowTransport::wait_for(Ticket ticket) {
  while (true) {
    LIB_TRY(const bool reached, device_.reached(ticket));
    if (reached) {
      return {};
    }
    if (stop_.stop_requested()) {
      return Error(ErrorCode::cancelled, "stopped inside a layer");
    }
    LIB_TRY_VOID(io_->idle());
    std::this_thread::sleep_for(kPollInterval);
  }
}

}  // namespace librarian::gpu_exec
