// Running top k and sum of exponentials; part of cpu_kernel_bodies.h.
#include "gpu_exec/cpu_kernel_attention.h"

namespace librarian::gpu_exec {
namespace {

constexpr std::uint64_t kTopkGroup = 64;  // Logits that are passed over together.

/// Turns a row's products into logits in place and finds the largest of each group.
/// @return  The largest of all; NaN does not count.
inline float logits_of_row(const TopkTile& tile, float* logits, float* group_maximum) {
  const float lowest = -__builtin_inff();
  const Vec multiplier(tile.multiplier);
  float largest = lowest;
  for (std::uint64_t begin = 0; begin < tile.count; begin += kTopkGroup) {
    const std::uint64_t end = smaller(begin + kTopkGroup, tile.count);
    Vec maximum_so_far(lowest);
    alignas(64) float lane[kLanes];
    for (std::uint64_t i = begin; i < end; i += kLanes) {
      const std::uint64_t count = smaller(kLanes, end - i);
      auto* const at = reinterpret_cast<std::byte*>(logits + i);
      Vec value = count == kLanes ? load_f32(logits + i) : load_part<F32>(at, count);
      value = logit_of(value, multiplier, tile.softcap);
      if (count == kLanes) {
        store_f32(value, logits + i);
      } else {
        store_part<F32>(value, at, count);
        store_f32(value, lane);
        for (std::uint64_t j = count; j < kLanes; ++j) {
          lane[j] = lowest;
        }
        value = load_f32(lane);
      }
      maximum_so_far = maximum(value, maximum_so_far);  // NaN gives the second operand.
    }
    store_f32(maximum_so_far, lane);
    float of_group = lowest;
    for (const float value : lane) {
      of_group = value > of_group ? value : of_group;
    }
    group_maximum[begin / kTopkGroup] = of_group;
    largest = of_group > largest ? of_group : largest;
  }
  return largest;
}

/// Sum of e^(logit - shift).
inline float sum_of_exponentials(const float* logits, std::uint64_t count, float shift) {
  const Vec by(shift);
  Vec sum[2] = {Vec(0.0F), Vec(0.0F)};
  std::uint64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    sum[0] = sum[0] + exp_of(load_f32(logits + i) - by);
    sum[1] = sum[1] + exp_of(load_f32(logits + i + kLanes) - by);
  }
  for (; i < count; i += kLanes) {
    alignas(64) float lane[kLanes];
    for (std::uint64_t j = 0; j < kLanes; ++j) {
      lane[j] = i + j < count ? logits[i + j] : -__builtin_inff();
    }
    sum[0] = sum[0] + exp_of(load_f32(lane) - by);
  }
  return lane_sum(sum[0] + sum[1]);
}

/// Puts a logit where it belongs: ids come ascending, so it stands behind those that equal it.
inline void insert_logit(const TopkRow& row, std::uint32_t k, float logit, std::int32_t id) {
  const auto count = static_cast<std::uint32_t>(*row.count);
  if (logit != logit || (count == k && !(logit > row.logits[k - 1]))) {
    return;
  }
  std::uint32_t begin = 0;
  for (std::uint32_t end = count; begin < end;) {
    const std::uint32_t middle = (begin + end) / 2;
    if (row.logits[middle] >= logit) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  const std::uint32_t kept = count == k ? k - 1 : count;
  __builtin_memmove(row.logits + begin + 1, row.logits + begin, (kept - begin) * sizeof(float));
  __builtin_memmove(row.ids + begin + 1, row.ids + begin, (kept - begin) * sizeof(std::int32_t));
  row.logits[begin] = logit;
  row.ids[begin] = id;
  *row.count = static_cast<std::int32_t>(kept + 1);
}

inline void topk_tile(const TopkTile& tile) {
  float group_maximum[kVocabularyTile / kTopkGroup];
  for (std::uint64_t r = 0; r < tile.rows; ++r) {
    float* const logits = tile.logits + r * tile.count;
    const TopkRow row = topk_row(tile.memory + r * topk_row_bytes(tile.k), tile.k);
    const float here = logits_of_row(tile, logits, group_maximum);
    const float before = *row.maximum;
    const float now = here > before ? here : before;
    const float shift = now == -__builtin_inff() ? 0.0F : now;
    *row.sum = *row.sum * exp_of(before - shift) + sum_of_exponentials(logits, tile.count, shift);
    *row.maximum = now;
    for (std::uint64_t begin = 0; begin < tile.count; begin += kTopkGroup) {
      if (static_cast<std::uint32_t>(*row.count) == tile.k &&
          !(group_maximum[begin / kTopkGroup] > row.logits[tile.k - 1])) {
        continue;
      }
      for (std::uint64_t i = begin; i < smaller(begin + kTopkGroup, tile.count); ++i) {
        insert_logit(row, tile.k, logits[i], static_cast<std::int32_t>(tile.first_id + i));
      }
    }
    // A row without a gold token has -1, which is in no tile.
    const std::uint64_t gold = static_cast<std::uint64_t>(tile.gold_ids[r]) - tile.first_id;
    if (tile.gold_ids[r] >= 0 && gold < tile.count) {
      *row.gold = logits[gold];
    }
  }
}

}  // namespace
}  // namespace librarian::gpu_exec
