#pragma once
/// Which layers a pass still needs and so when each staged object is needed next. Pure bookkeeping;
/// the caller locks.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "weightmap/checkpoint.h"
#include "weightmap/weight_source.h"

namespace librarian::weightmap {

class LayerQueue {
 public:
  /// @param object_of_file  For each weight file the object that holds it; two files with the same
  ///                        contents may be one object.
  /// @param last_layer      Where a pass ends: layers up to it are expected behind those announced.
  LayerQueue(const Checkpoint& checkpoint, std::vector<std::size_t> object_of_file,
             std::int32_t last_layer);

  /// Layer `layer` will be read `readings` times; it and those expected behind it are queued.
  void announce(std::int32_t layer, std::uint32_t readings);
  /// Some bytes of the first announced layer that was not asked for in full were asked for.
  /// @return  The layer's number in the queue, for arrived().
  std::uint64_t asked_for(std::uint64_t bytes);
  /// Some bytes of that layer will not be asked for.
  void pass_over(std::uint64_t bytes);
  void arrived(std::uint64_t number, std::uint64_t bytes, Verification verification);
  /// Takes the oldest layer, which must be this one, out of the queue.
  /// @return  Objects that it needed and that no queued layer needs.
  std::vector<std::size_t> durable(std::int32_t layer);

  /// Objects that layers still have to read, in order.
  std::vector<std::size_t> wanted() const;
  /// How far away the next reading of an object is, in layers; for one that no layer has to read,
  /// its place in another pass if there is one, else `never`. An object that a layer has read which
  /// is not durable yet comes before others of that distance.
  std::uint64_t distance(std::size_t object, bool another_pass) const;
  static constexpr std::uint64_t kNever = ~std::uint64_t{0};
  /// Whether somebody is waiting for bytes of the object now.
  bool is_waited_for(std::size_t object) const;
  Verification verification(std::int32_t layer) const;

 private:
  struct Layer {
    std::int32_t layer;
    std::uint64_t number;
    std::uint64_t bytes;  // Of all readings.
    std::vector<std::size_t> objects;
    bool announced = false;
    std::uint64_t asked_bytes = 0;
    std::uint64_t arrived_bytes = 0;
    Verification verification = Verification::sha256;
    bool is_read() const { return announced && arrived_bytes == bytes; }
    bool needs(std::size_t object) const;
  };
  Layer make_layer(std::int32_t layer);

  const Checkpoint& checkpoint_;
  const std::vector<std::size_t> object_of_file_;
  const std::int32_t last_layer_;
  std::deque<Layer> layers_;
  std::uint64_t next_number_ = 0;
};

}  // namespace librarian::weightmap
