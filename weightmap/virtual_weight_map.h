#pragma once
/// The model's weights as if they were all in memory, one layer at a time: what is asked for next
/// is already on its way, and what was used is gone.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/digest.h"
#include "base/error.h"
#include "gpu_exec/device.h"
#include "weightmap/checkpoint.h"
#include "weightmap/request_plan.h"
#include "weightmap/weight_source.h"

namespace librarian::weightmap {

struct WeightMapOptions {
  std::uint64_t ring_bytes = 0;         ///< Host slots; at least the largest piece.
  std::uint64_t table_piece_bytes = 0;  ///< See plan_pieces().
  RequestLimits requests;
  /// `ring_bytes` to be the host slots, for devices that want them in memory of their own kind;
  /// null: the map takes them itself.
  gpu_exec::DeviceMemory ring = nullptr;
};

/// Bytes that arrived, valid until they are given back.
struct ArrivedPiece {
  const WeightTensor* tensor = nullptr;
  std::uint64_t offset = 0;  ///< Of the bytes within the tensor.
  std::span<const std::byte> bytes;
};

struct TensorDigest {
  std::string name;
  Digest128 xxh3;  ///< XXH3-128 of the tensor's bytes as they lie in the file.
};

struct WeightMapStatistics {
  std::uint64_t needed_bytes = 0;  ///< Asked for so far.
  Duration acquire_wait{};         ///< Consumers waiting: the prefetch was behind.
  Duration ring_wait{};            ///< The fetch waiting for a free slot: consumers were behind.
};

class VirtualWeightMap;

/// The right to use one layer's weights, which come piece by piece in file order. Used by one
/// thread. Its end gives everything back, also what it never looked at. Ending it before its last
/// piece is for jobs that stop: requests under way, also of layers behind it, are cancelled.
class Lease {
 public:
  Lease(Lease&& other) noexcept;
  Lease& operator=(Lease&&) = delete;
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  ~Lease();

  /// Waits for the next piece; nothing means the layer is complete.
  /// What came over the network is compared with the CRC32C that was taken when it arrived; local
  /// and staged files are read to their slots directly and have none. Once it failed it stays so.
  /// @error unavailable | source_changed | bad_input | cancelled | corrupt (bytes changed in memory
  ///        since they arrived; names the tensor); from staged files also corrupt (the origin's
  ///        file is not what it states) | no_space | io
  Result<std::optional<ArrivedPiece>> next(const std::stop_token& stop);
  /// The next piece if it is there already.
  Result<std::optional<ArrivedPiece>> next_if_there();
  /// Whether next() has given every piece.
  bool complete() const;
  /// The tensor of the piece that comes next; null once the layer is complete.
  const WeightTensor* upcoming() const;
  /// Passes over tensors that turned out not to be needed, as far as no byte of them was asked for
  /// yet: next() gives none of their bytes, and they have no digest. For layers, whose pieces are
  /// whole tensors.
  void skip(const std::function<bool(const WeightTensor&)>& is_unneeded);
  /// Gives the oldest piece back: its memory is the next one's that is fetched.
  void give_back_oldest();
  /// One per tensor, in file order, once next() returned nothing.
  std::vector<TensorDigest> take_digests() { return std::move(digests_); }

 private:
  friend class VirtualWeightMap;
  struct Stream;
  Lease(VirtualWeightMap& map, std::shared_ptr<Stream> stream);
  Result<ArrivedPiece> take_next();
  void pass_over_skipped();

  VirtualWeightMap* map_;
  std::shared_ptr<Stream> stream_;
  std::size_t next_piece_ = 0;
  StreamingXxh3 hash_;
  std::vector<TensorDigest> digests_;
};

/// Owns the ring of host slots and the thread that fills it. acquire() and prefetch() are for one
/// consumer thread; statistics() for any. Destruction stops the fetching.
class VirtualWeightMap {
 public:
  /// @param source, checkpoint  Must outlive the map.
  VirtualWeightMap(WeightSource& source, Clock& clock, const Checkpoint& checkpoint,
                   WeightMapOptions options);
  ~VirtualWeightMap();
  VirtualWeightMap(const VirtualWeightMap&) = delete;
  VirtualWeightMap& operator=(const VirtualWeightMap&) = delete;

  /// Queues a layer to be fetched behind those already queued, `readings` times, as far as the ring
  /// has room. Layers must be acquired in the order they were queued, each for every reading.
  void prefetch(std::int32_t layer, std::uint32_t readings = 1);
  /// The layer's weights; queues it if prefetch() did not, for this and so many readings less one
  /// to follow. The lease before must have ended.
  Lease acquire(std::int32_t layer, std::uint32_t readings = 1);

  WeightMapStatistics statistics() const;

 private:
  friend class Lease;
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace librarian::weightmap
