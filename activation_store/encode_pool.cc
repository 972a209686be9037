#include <oneapi/tbb/global_control.h>

#include <algorithm>

#include "activation_store/encode_pool_impl.h"
#include "activation_store/store_names.h"

namespace librarian::activation_store {
namespace {

EncodePoolOptions at_least_one(EncodePoolOptions options) {
  options.threads = std::max(options.threads, 1);
  options.slots = std::max<std::uint64_t>(options.slots, 1);
  return options;
}

/// The scheduler has one worker less than it allows threads, and complains about arenas that ask
/// for more than that.
int arena_workers(int threads) {
  const std::size_t allowed =
      tbb::global_control::active_value(tbb::global_control::max_allowed_parallelism);
  return static_cast<int>(std::clamp<std::size_t>(static_cast<std::size_t>(threads), 1,
                                                  std::max<std::size_t>(2, allowed) - 1));
}

}  // namespace

EncodePool::EncodePool(Clock& clock, const EncodePoolOptions& options)
    : impl_(std::make_shared<Impl>(clock, options)) {}
EncodePool::~EncodePool() { impl_->close(); }

std::uint64_t EncodePool::memory_bytes(const EncodePoolOptions& asked) {
  const EncodePoolOptions options = at_least_one(asked);
  const std::uint64_t slot = options.chunk_bytes_max + encoded_bytes_max(options.chunk_bytes_max) +
                             sizeof(ChunkSlot) + 3 * sizeof(void*);
  const std::uint64_t encoder =
      ChunkEncoder::memory_bytes(options.chunk_bytes_max) + sizeof(ChunkEncoder) + sizeof(void*);
  return options.slots * slot + static_cast<std::uint64_t>(options.threads) * encoder;
}

EncodePool::Statistics EncodePool::statistics() const { return impl_->statistics(); }

EncodePool::Impl::Impl(Clock& clock, const EncodePoolOptions& options)
    : clock_(clock),
      options_(at_least_one(options)),
      arena_(arena_workers(options_.threads), 0),
      slots_(options_.slots),
      monitor_(clock) {
  for (ChunkSlot& slot : slots_) {
    slot.raw.reset(new std::byte[options_.chunk_bytes_max]);
    slot.encoded.reset(new std::byte[encoded_bytes_max(options_.chunk_bytes_max)]);
    free_.push_back(&slot);
  }
  encoders_.reserve(static_cast<std::size_t>(options_.threads));
  for (int i = 0; i < options_.threads; ++i) {
    encoders_.emplace_back(options_.chunk_bytes_max);
    free_encoders_.push_back(&encoders_.back());
  }
  write_thread_ = start_thread(clock_, [this](const std::stop_token& stop) { write_loop(stop); });
}

EncodePool::Impl::~Impl() = default;

void EncodePool::Impl::close() {
  {
    auto lock = monitor_.lock();
    closed_ = true;
    for (ChunkSlot* slot : to_encode_) {
      slot->activity.reset();
      free_slot(slot, lock);
    }
    to_encode_.clear();
    monitor_.notify_all(lock);
    monitor_.wait(lock, {}, [&] { return tasks_ == 0; });
  }
  write_thread_.request_stop();
  write_thread_.join();
}

Result<ChunkSlot*> EncodePool::Impl::take_slot(const std::shared_ptr<ArrayStream>& array,
                                               const std::stop_token& stop) {
  auto lock = monitor_.lock();
  const TimePoint begin = clock_.now();
  monitor_.wait(lock, stop, [&] { return closed_ || array->error || !free_.empty(); });
  statistics_.append_wait += clock_.now() - begin;
  if (array->error) {
    return *array->error;
  }
  if (closed_ || stop.stop_requested() || free_.empty()) {
    return Error(ErrorCode::cancelled,
                 "stopped while waiting for " + array->name + " to be written");
  }
  ChunkSlot* const slot = free_.back();
  free_.pop_back();
  slot->array = array;
  slot->rows = 0;
  return slot;
}

void EncodePool::Impl::submit(ChunkSlot* slot) {
  auto lock = monitor_.lock();
  if (closed_ || slot->array->dropped()) {
    free_slot(slot, lock);
    return;
  }
  slot->activity.emplace(clock_);
  to_encode_.push_back(slot);
  if (tasks_ < encoders_.size()) {
    ++tasks_;
    arena_.enqueue([this] { encode_next(); });
  }
}

void EncodePool::Impl::give_back(ChunkSlot* slot) {
  auto lock = monitor_.lock();
  free_slot(slot, lock);
}

// No more tasks than encoders exist, so that none ever waits for one; a task encodes one chunk and
// leaves the next to another task, so that other arenas get the worker in between.
void EncodePool::Impl::encode_next() {
  auto lock = monitor_.lock();
  if (to_encode_.empty()) {  // close() has dropped it
    --tasks_;
    monitor_.notify_all(lock);
    return;
  }
  ChunkSlot* const slot = to_encode_.front();
  to_encode_.pop_front();
  ChunkEncoder* const encoder = free_encoders_.back();
  free_encoders_.pop_back();
  lock.unlock();

  const TimePoint begin = clock_.now();
  const ArrayLayout& layout = slot->array->layout;
  const std::span<const std::byte> raw(slot->raw.get(), chunk_bytes(layout));
  slot->non_finite = count_non_finite(layout.type, raw.first(slot->rows * row_bytes(layout)));
  slot->encoded_bytes = encoder->encode(
      layout, raw, {slot->encoded.get(), encoded_bytes_max(options_.chunk_bytes_max)});
  const Duration busy = clock_.now() - begin;

  lock.lock();
  statistics_.encode_busy += busy;
  free_encoders_.push_back(encoder);
  enqueue_write(slot);
  if (to_encode_.empty()) {
    --tasks_;
  } else {
    arena_.enqueue([this] { encode_next(); });
  }
  monitor_.notify_all(lock);
  // Only now may virtual time pass again: the write thread is awake already. The slot may be
  // another's the moment the lock is gone.
  slot->activity.reset();
}

void EncodePool::Impl::enqueue_write(ChunkSlot* slot) {
  ArrayStream& array = *slot->array;
  array.non_finite.nan += slot->non_finite.nan;
  array.non_finite.inf += slot->non_finite.inf;
  if (slot->chunk == array.chunks_written) {
    to_write_.push_back(slot);
  } else {
    array.encoded[slot->chunk] = slot;
  }
}

void EncodePool::Impl::free_slot(ChunkSlot* slot, const Lock& lock) {
  slot->array.reset();
  free_.push_back(slot);
  monitor_.notify_all(lock);
}

void EncodePool::Impl::write_loop(const std::stop_token& stop) {
  auto lock = monitor_.lock();
  while (monitor_.wait(lock, stop, [&] { return !to_write_.empty(); })) {
    ChunkSlot* const slot = to_write_.front();
    to_write_.pop_front();
    const std::shared_ptr<ArrayStream> array = slot->array;
    Result<void> written;
    if (!array->dropped() && !closed_) {
      lock.unlock();
      const TimePoint begin = clock_.now();
      written = write_chunk(*slot);
      const Duration busy = clock_.now() - begin;
      lock.lock();
      statistics_.write_busy += busy;
      statistics_.raw_bytes += slot->rows * row_bytes(array->layout);
    }
    if (!written && !array->error) {
      array->error = std::move(written).error();
    }
    // A failed array goes through the same steps without writing, so that its slots come back.
    ++array->chunks_written;
    const auto next = array->encoded.find(array->chunks_written);
    if (next != array->encoded.end()) {
      to_write_.push_back(next->second);
      array->encoded.erase(next);
    }
    free_slot(slot, lock);
  }
}

Result<void> EncodePool::Impl::write_chunk(ChunkSlot& slot) {
  ArrayStream& array = *slot.array;
  const std::uint64_t chunks_per_shard = array.layout.shard_tokens / array.layout.chunk_tokens;
  if (slot.chunk % chunks_per_shard == 0) {
    LIB_TRY_VOID(begin_shard(array, slot.chunk / chunks_per_shard));
  }
  array.rows_xxh3.update({slot.raw.get(), slot.rows * row_bytes(array.layout)});
  array.shard_places.push_back({array.shard_record.size, slot.encoded_bytes});
  LIB_TRY_VOID(append_to_shard(array, {slot.encoded.get(), slot.encoded_bytes}));
  if ((slot.chunk + 1) % chunks_per_shard == 0 || slot.chunk + 1 == chunk_count(array.layout)) {
    LIB_TRY_VOID(end_shard(array));
  }
  return {};
}

Result<void> EncodePool::Impl::begin_shard(ArrayStream& array, std::uint64_t shard) {
  const std::string path = array.directory + "/" + shard_path(array.layout, shard);
  LIB_TRY_VOID(array.files->make_directory(parent_path(path)));
  LIB_TRY(array.shard, array.files->create(partial_path(path, array.nonce)));
  array.shard_record = {array.name + "/" + shard_path(array.layout, shard), 0, 0};
  array.shard_places.clear();
  return {};
}

Result<void> EncodePool::Impl::end_shard(ArrayStream& array) {
  const std::vector<std::byte> index =
      encode_shard_index(array.shard_places, array.layout.shard_tokens / array.layout.chunk_tokens);
  LIB_TRY_VOID(append_to_shard(array, index));
  // Synced here and not when all is written: the device works while later chunks are computed,
  // and no more than one shard per array is ever waiting for it.
  LIB_TRY_VOID(array.shard->sync_data());
  array.shard.reset();
  array.records.push_back(array.shard_record);
  return {};
}

Result<void> EncodePool::Impl::append_to_shard(ArrayStream& array,
                                               std::span<const std::byte> bytes) {
  LIB_TRY_VOID(array.shard->append(bytes));
  array.shard_record.size += bytes.size();
  array.shard_record.crc32c = crc32c(bytes, array.shard_record.crc32c);
  auto lock = monitor_.lock();
  statistics_.stored_bytes += bytes.size();
  return {};
}

Result<void> EncodePool::Impl::wait_written(ArrayStream& array, const std::stop_token& stop) {
  auto lock = monitor_.lock();
  const std::uint64_t chunks = chunk_count(array.layout);
  monitor_.wait(lock, stop,
                [&] { return closed_ || array.error || array.chunks_written == chunks; });
  if (array.error) {
    return *array.error;
  }
  if (array.chunks_written != chunks) {
    return Error(ErrorCode::cancelled, "stopped before " + array.name + " was written");
  }
  return {};
}

void EncodePool::Impl::abandon(ArrayStream& array) {
  auto lock = monitor_.lock();
  array.abandoned = true;
}

Result<void> EncodePool::Impl::status(ArrayStream& array) {
  auto lock = monitor_.lock();
  if (array.error) {
    return *array.error;
  }
  return {};
}

EncodePool::Statistics EncodePool::Impl::statistics() {
  auto lock = monitor_.lock();
  return statistics_;
}

}  // namespace librarian::activation_store
