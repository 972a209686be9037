#include "weightmap/remote/scatter.h"

#include <algorithm>

#include "base/digest.h"

namespace librarian::weightmap::remote {

/// Bytes of one piece, which begin at offset `from` of the object.
void Scatter::copy(const FetchPiece& piece, std::uint64_t from, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const std::uint64_t in_run = std::min(bytes.size(), kCrcRunBytes - from % kCrcRunBytes);
    const bool goes_on = !crcs_.empty() && crcs_.back().range.end == from &&
                         from != piece.range.begin && from % kCrcRunBytes != 0;
    if (!goes_on) {
      crcs_.push_back({{from, from}, 0});
    }
    CrcRun& run = crcs_.back();
    run.crc32c = copy_with_crc32c(piece.destination + (from - piece.range.begin),
                                  bytes.first(in_run), run.crc32c);
    from += in_run;
    run.range.end = from;
    bytes = bytes.subspan(in_run);
  }
}

void Scatter::append(std::span<const std::byte> bytes) {
  const std::uint64_t end = position_ + bytes.size();
  while (next_ < pieces_.size()) {
    const FetchPiece& piece = pieces_[next_];
    const std::uint64_t from = std::max(position_, piece.range.begin);
    const std::uint64_t to = std::min(end, piece.range.end);
    if (from < to) {
      copy(piece, from, bytes.subspan(from - position_, to - from));
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
