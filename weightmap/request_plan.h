#pragma once
/// Which pieces of tensors a layer needs, and which requests bring them. Pure arithmetic.

#include <cstdint>
#include <vector>

#include "weightmap/checkpoint.h"

namespace librarian::weightmap {

/// A contiguous run of one tensor that is in memory at once.
struct Piece {
  std::uint32_t tensor = 0;  ///< Index into LayerPlan::tensors.
  remote::ByteRange bytes;   ///< Within the weight file.
};

/// Cuts a layer into pieces, in file order: whole tensors, except the embedding table, which comes
/// in runs of whole rows of at most `table_piece_bytes` (at least one row), and the head, which
/// comes in tiles of gpu_exec::kVocabularyTile rows.
std::vector<Piece> plan_pieces(const LayerPlan& layer, std::uint64_t table_piece_bytes);

/// Bytes of the largest piece over all layers: the smallest ring that works.
std::uint64_t largest_piece_bytes(const Checkpoint& checkpoint, std::uint64_t table_piece_bytes);

/// The most that requests may be; where they come from says what suits it within that.
struct RequestLimits {
  std::uint64_t hole_bytes_max = 1U << 20U;      ///< Unwanted bytes we accept to save a request.
  std::uint64_t request_bytes_max = 64U << 20U;  ///< One request, holes included.
  std::uint32_t together = 8;                    ///< Requests that are likely under way at a time.
};

}  // namespace librarian::weightmap
