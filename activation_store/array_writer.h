#pragma once
/// Rows in, shard files out: encoded on TBB, written in order by one thread, published by rename.

#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>
#include <string>

#include "activation_store/types.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/file_system.h"

namespace librarian::activation_store {

struct EncodePoolOptions {
  int threads = 1;                    ///< Most encode tasks at a time.
  std::uint64_t slots = 2;            ///< Chunks in flight, raw and encoded together.
  std::uint64_t chunk_bytes_max = 0;  ///< Raw bytes of the largest chunk.
};

/// Ring of chunk buffers, the encode tasks and the write thread that arrays share. The buffers
/// are allocated once, here. Its destruction drops what was not finished; writers that still exist
/// then report `cancelled`. Thread-safe.
class EncodePool {
 public:
  EncodePool(Clock& clock, const EncodePoolOptions& options);
  ~EncodePool();
  EncodePool(const EncodePool&) = delete;
  EncodePool& operator=(const EncodePool&) = delete;

  /// Every byte that a pool with these options allocates, zstd's contexts included; the planner
  /// counts it. Each array being written adds ArrayWriter::memory_bytes().
  static std::uint64_t memory_bytes(const EncodePoolOptions& options);

  struct Statistics {
    Duration encode_busy{};          ///< Summed over tasks.
    Duration write_busy{};           ///< The write thread inside file calls, checksums included.
    Duration append_wait{};          ///< Callers of append() waiting for a slot: back-pressure.
    std::uint64_t raw_bytes = 0;     ///< Rows written so far.
    std::uint64_t stored_bytes = 0;  ///< Bytes of shard files written so far.
  };
  Statistics statistics() const;

  class Impl;  // Shared with ArrayWriter.
  const std::shared_ptr<Impl>& impl() { return impl_; }

 private:
  std::shared_ptr<Impl> impl_;
};

/// Writes one array. Not thread-safe. The order of calls: append()* finish() publish(). If it is
/// destroyed before publish(), only files with temporary names (`*.partial-<nonce>`) stay.
class ArrayWriter {
 public:
  /// Bytes that one writer allocates beside its pool: a shard's index, paths, records.
  static std::uint64_t memory_bytes(const ArrayLayout& layout);

  /// @param directory  The part's directory; exists. The array's own directory is made here.
  /// @param name       Array name, e.g. "blocks.12.resid_post"; also attribute `capture`.
  /// @param nonce      Hex digits that make temporary names unique to this process.
  /// @param attributes Kept in zarr.json; a layout without rows needs their `rows`.
  /// @error invalid_argument  Bad name, nonce or layout, or a chunk above the pool's maximum.
  /// @error already_exists    Files are left in the array's directory: remove_array() first.
  /// @error io | no_space
  static Result<ArrayWriter> create(FileSystem& files, EncodePool& pool,
                                    const std::string& directory, const std::string& name,
                                    const ArrayLayout& layout, const std::string& nonce,
                                    const ArrayAttributes& attributes = {});
  ArrayWriter(ArrayWriter&&) noexcept;
  ArrayWriter& operator=(ArrayWriter&&) noexcept;
  ~ArrayWriter();

  /// Takes whole rows, [n, width] row-major; copies them. Waits while all slots are in flight.
  /// A pool needs at least one slot more than arrays that are written at the same time.
  /// After any error the array cannot be completed: later calls fail as well.
  /// @error invalid_argument  Not whole rows, or more than the layout has.
  /// @error cancelled | io | no_space   (errors of earlier writes surface here or in finish())
  Result<void> append(std::span<const std::byte> rows, const std::stop_token& stop);

  /// Waits until all rows are encoded, written and data-synced under temporary names, zarr.json
  /// included. The number of rows appended must equal the layout's. Called once.
  /// @error invalid_argument  Rows are missing.
  /// @error cancelled | io | no_space
  Result<ArrayRecord> finish(const std::stop_token& stop);

  /// Renames every file to its final name, zarr.json last, and syncs each directory touched, the
  /// part's included: once this returns, a power cut keeps the array.
  /// @error io
  Result<void> publish();

 private:
  class Impl;
  explicit ArrayWriter(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Removes an unpublished or rolled-back array: only names of our grammar, no links followed;
/// anything else below it stays and is an error. Not there is fine.
/// @error conflict  something that is not ours is inside; names it.
Result<void> remove_array(FileSystem& files, const std::string& directory, const std::string& name);

/// True for names that ArrayWriter gives to arrays: "embed", "blocks.<n>.<capture>",
/// "final.pre_norm", "final.post_norm", their ".scales", "logits.topk.<part>".
bool is_array_name(const std::string& name);

}  // namespace librarian::activation_store
