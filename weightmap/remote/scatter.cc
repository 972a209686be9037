#include "weightmap/remote/scatter.h"

#include <algorithm>
#include <cstring>

namespace librarian::weightmap::remote {

void Scatter::append(std::span<const std::byte> bytes) {
  const std::uint64_t end = position_ + bytes.size();
  while (next_ < pieces_.size()) {
    const FetchPiece& piece = pieces_[next_];
    const std::uint64_t from = std::max(position_, piece.range.begin);
    const std::uint64_t to = std::min(end, piece.range.end);
    if (from < to) {
      std::memcpy(piece.destination + (from - piece.range.begin), bytes.data() + (from - position_),
                  to - from);
      piece_bytes_ += to - from;
    }
    if (piece.range.end > end) {
      break;
    }
    ++next_;
  }
  position_ = end;
}

std::vector<FetchPiece> clip_pieces(const std::vector<FetchPiece>& pieces, std::uint64_t from,
                                    std::uint64_t to) {
  std::vector<FetchPiece> clipped;
  for (const FetchPiece& piece : pieces) {
    const ByteRange range{std::max(piece.range.begin, from), std::min(piece.range.end, to)};
    if (range.begin < range.end) {
      clipped.push_back({range, piece.destination + (range.begin - piece.range.begin)});
    }
  }
  return clipped;
}

}  // namespace librarian::weightmap::remote
