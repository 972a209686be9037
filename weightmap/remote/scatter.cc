#include "weightmap/remote/scatter.h"

#include <emmintrin.h>

#include <algorithm>
#include <cstring>

namespace librarian::weightmap::remote {
namespace {

// As memcpy(). What arrives is used long after it would have left the cache; stores that go past
// it save reading the destination's lines first.
void copy_past_cache(std::byte* to, const std::byte* from, std::size_t bytes) {
  constexpr std::size_t kLine = 64;
  const std::size_t head =
      std::min<std::size_t>(bytes, (kLine - reinterpret_cast<std::uintptr_t>(to) % kLine) % kLine);
  std::memcpy(to, from, head);
  to += head;
  from += head;
  bytes -= head;
  for (; bytes >= kLine; bytes -= kLine, to += kLine, from += kLine) {
    const auto* source = reinterpret_cast<const __m128i*>(from);
    auto* target = reinterpret_cast<__m128i*>(to);
    const __m128i a = _mm_loadu_si128(source);
    const __m128i b = _mm_loadu_si128(source + 1);
    const __m128i c = _mm_loadu_si128(source + 2);
    const __m128i d = _mm_loadu_si128(source + 3);
    _mm_stream_si128(target, a);
    _mm_stream_si128(target + 1, b);
    _mm_stream_si128(target + 2, c);
    _mm_stream_si128(target + 3, d);
  }
  _mm_sfence();  // Before anybody is told that the bytes are there.
  std::memcpy(to, from, bytes);
}

}  // namespace

void Scatter::append(std::span<const std::byte> bytes) {
  const std::uint64_t end = position_ + bytes.size();
  while (next_ < pieces_.size()) {
    const FetchPiece& piece = pieces_[next_];
    const std::uint64_t from = std::max(position_, piece.range.begin);
    const std::uint64_t to = std::min(end, piece.range.end);
    if (from < to) {
      copy_past_cache(piece.destination + (from - piece.range.begin),
                      bytes.data() + (from - position_), to - from);
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
