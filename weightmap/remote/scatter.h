#pragma once
/// Places a stream of bytes at the destinations of its pieces. Not thread-safe.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote {

/// Copies each byte once, straight to its place, and takes its CRC32C on the way; never writes
/// outside a piece.
class Scatter {
 public:
  /// @param pieces  Sorted, disjoint, none empty.
  Scatter(std::uint64_t begin, std::vector<FetchPiece> pieces)
      : pieces_(std::move(pieces)), position_(begin) {}

  /// Takes the next bytes, which begin at position(). Bytes in no piece are dropped.
  void append(std::span<const std::byte> bytes);

  std::uint64_t position() const { return position_; }        ///< Offset of the next byte.
  std::uint64_t piece_bytes() const { return piece_bytes_; }  ///< Written so far.
  /// Of what was written so far. The source of the bytes is summed, not the destination.
  const CrcRuns& crcs() const { return crcs_; }

 private:
  void copy(const FetchPiece& piece, std::uint64_t from, std::span<const std::byte> bytes);

  std::vector<FetchPiece> pieces_;
  std::size_t next_ = 0;  // First piece that does not end at or before position_.
  std::uint64_t position_;
  std::uint64_t piece_bytes_ = 0;
  CrcRuns crcs_;
};

/// The parts of `pieces` in [from, to), destinations moved along.
std::vector<FetchPiece> clip_pieces(const std::vector<FetchPiece>& pieces, std::uint64_t from,
                                    std::uint64_t to);

}  // namespace librarian::weightmap::remote
