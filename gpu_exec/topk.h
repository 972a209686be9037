#pragma once
/// Teacher logits of a row as they are gathered while the vocabulary passes in tiles: the k
/// largest, the sum of all exponentials, and the logit of the token that really came next. The
/// memory of a row is the same on every device, so it may wait on the host between two passes.

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "gpu_exec/row_functors.h"

namespace librarian::gpu_exec {

/// Rows of the head that are multiplied at a time. Sums are cut here, so it belongs to the numbers:
/// a constant, whatever the memory, the device or the model.
inline constexpr std::uint64_t kVocabularyTile = 2048;
/// Largest k. Devices keep so many candidates of a tile next to the arithmetic.
inline constexpr std::uint32_t kTopkMax = 2048;

/// Bytes of one row's memory: f32 logits[k], descending; i32 ids[k]; f32 maximum, sum, gold;
/// i32 count.
constexpr std::uint64_t topk_row_bytes(std::uint32_t k) {
  return (2 * std::uint64_t{k} + 4) * sizeof(float);
}

/// One row's memory by its parts.
struct TopkRow {
  float* logits;        ///< [k], the first `count` are there: descending, equal ones by id.
  std::int32_t* ids;    ///< [k]
  float* maximum;       ///< Of all logits so far.
  float* sum;           ///< Of e^(logit - maximum) over them.
  float* gold;          ///< NaN until its tile has passed.
  std::int32_t* count;  ///< At most k.
};
LIBRARIAN_ROW_FUNCTION TopkRow topk_row(std::byte* memory, std::uint32_t k) {
  auto* const logits = reinterpret_cast<float*>(memory);
  auto* const ids = reinterpret_cast<std::int32_t*>(logits + k);
  auto* const rest = reinterpret_cast<float*>(ids + k);
  return {logits, ids, rest, rest + 1, rest + 2, reinterpret_cast<std::int32_t*>(rest + 3)};
}

/// What the head's product becomes.
template <typename V>
LIBRARIAN_ROW_FUNCTION V logit_of(V product, V multiplier, float softcap) {
  const V scaled = product * multiplier;
  return softcap == 0 ? scaled : V(softcap) * tanh_of(scaled / V(softcap));
}

/// Rows of memory before the first tile.
/// @param memory  A multiple of topk_row_bytes(k), aligned to 4.
void clear_topk(std::span<std::byte> memory, std::uint32_t k);

/// What is stored of a row once every tile has passed.
struct TopkResult {
  std::span<std::int32_t> ids;        ///< [k]; -1 where fewer numbers than k were not NaN.
  std::span<std::uint16_t> log_prob;  ///< [k] f16 of f32(logit - logsumexp); NaN likewise.
  float* logsumexp;
  float* gold_log_prob;  ///< NaN if the row had no gold token.
};
/// @return  Whether all of it is finite, but for the gold log-probability of a row without one.
bool finish_topk(std::span<std::byte> memory, std::uint32_t k, bool has_gold,
                 const TopkResult& result);

}  // namespace librarian::gpu_exec
