#pragma once
/// Inside of EncodePool, which ArrayWriter works on: slots, encode tasks and the write thread.

#include <oneapi/tbb/task_arena.h>

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "activation_store/array_writer.h"
#include "activation_store/blosc_chunk.h"
#include "activation_store/shard_index.h"

namespace librarian::activation_store {

struct ChunkSlot;

/// One array on its way to disk. Members without a note belong to the pool's monitor.
struct ArrayStream {
  // Constant after creation.
  FileSystem* files = nullptr;
  std::string directory;  // the array's own
  std::string name;
  ArrayLayout layout;
  ArrayAttributes attributes;
  std::string nonce;

  std::optional<Error> error;                   // the first; nothing is written after it
  bool abandoned = false;                       // its writer is gone
  std::uint64_t chunks_written = 0;             // also the chunk that is written next
  std::map<std::uint64_t, ChunkSlot*> encoded;  // done before their turn
  NonFiniteCounts non_finite;

  // Belong to the write thread until chunks_written reaches the last chunk.
  std::unique_ptr<File> shard;
  FileRecord shard_record;
  std::vector<ChunkPlace> shard_places;
  std::vector<FileRecord> records;  // finished shards; paths relative to the part
  StreamingXxh3 rows_xxh3;

  bool dropped() const { return abandoned || error.has_value(); }
};

/// Buffers of one chunk. Whoever holds the pointer owns the buffers: the writer while it fills
/// them, then one encode task, then the write thread.
struct ChunkSlot {
  std::unique_ptr<std::byte[]> raw;
  std::unique_ptr<std::byte[]> encoded;
  std::shared_ptr<ArrayStream> array;
  std::uint64_t chunk = 0;
  std::uint64_t rows = 0;  // filled so far, without padding
  std::uint64_t encoded_bytes = 0;
  NonFiniteCounts non_finite;
  std::optional<Activity> activity;  // from submit() to the end of the encode task
};

class EncodePool::Impl {
 public:
  Impl(Clock& clock, const EncodePoolOptions& options);
  ~Impl();

  /// Drops what is queued, waits for running tasks and the write thread. Later calls find the
  /// pool closed. Called once.
  void close();

  /// A free slot for the next chunk of `array`. @error cancelled | the array's own error
  Result<ChunkSlot*> take_slot(const std::shared_ptr<ArrayStream>& array,
                               const std::stop_token& stop);
  /// Hands a filled and padded slot over to be encoded and written.
  void submit(ChunkSlot* slot);
  void give_back(ChunkSlot* slot);
  /// Waits until every chunk of `array` is in a synced file. @error cancelled | its own
  Result<void> wait_written(ArrayStream& array, const std::stop_token& stop);
  /// The writer of `array` is gone: its chunks need no writing.
  void abandon(ArrayStream& array);

  /// Result of the writes that were asked for so far.
  Result<void> status(ArrayStream& array);
  Statistics statistics();
  std::uint64_t chunk_bytes_max() const { return options_.chunk_bytes_max; }

 private:
  using Lock = std::unique_lock<std::mutex>;

  void encode_next();                   // a TBB task
  void enqueue_write(ChunkSlot* slot);  // with the monitor held
  void free_slot(ChunkSlot* slot, const Lock& lock);
  void write_loop(const std::stop_token& stop);
  Result<void> write_chunk(ChunkSlot& slot);
  Result<void> begin_shard(ArrayStream& array, std::uint64_t shard);
  Result<void> end_shard(ArrayStream& array);
  Result<void> append_to_shard(ArrayStream& array, std::span<const std::byte> bytes);

  Clock& clock_;
  const EncodePoolOptions options_;
  tbb::task_arena arena_;
  std::vector<ChunkSlot> slots_;
  std::vector<ChunkEncoder> encoders_;

  Monitor monitor_;  // guards what follows, and ArrayStream
  std::vector<ChunkSlot*> free_;
  std::vector<ChunkEncoder*> free_encoders_;
  std::size_t tasks_ = 0;  // started or running; at most one per encoder
  std::deque<ChunkSlot*> to_encode_;
  std::deque<ChunkSlot*> to_write_;  // each the next of its array
  bool closed_ = false;
  Statistics statistics_;

  std::jthread write_thread_;  // Last: it ends before what it uses.
};

}  // namespace librarian::activation_store
