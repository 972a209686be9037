#pragma once
/// From a router's products to a row's experts and weights, written once for host and device; see
/// row_functors.h.

#include <cstddef>
#include <cstdint>

#include "gpu_exec/model_spec.h"
#include "gpu_exec/row_functors.h"

namespace librarian::gpu_exec {

LIBRARIAN_ROW_FUNCTION float sigmoid_of(float x) { return 1.0F / (1.0F + exp_of(0.0F - x)); }

/// Below everything that is ranked.
inline constexpr float kTaken = -__builtin_inff();
/// A value as it is ranked: NaN is below everything.
LIBRARIAN_ROW_FUNCTION float ranked(float value) {
  constexpr float kLeast = -3.40282346638528860e+38F;
  return value > kLeast ? value : kLeast;
}

/// values[0..n) -> the places of the `k` largest as ranked(), the largest first, equal ones by
/// place. `values` is destroyed.
LIBRARIAN_ROW_FUNCTION void take_largest(float* values, std::uint32_t n, std::uint32_t k,
                                         std::int32_t* places) {
  for (std::uint32_t i = 0; i < n; ++i) {
    values[i] = ranked(values[i]);
  }
  for (std::uint32_t taken = 0; taken < k; ++taken) {
    std::uint32_t best = 0;
    for (std::uint32_t i = 1; i < n; ++i) {
      best = values[i] > values[best] ? i : best;
    }
    values[best] = kTaken;
    places[taken] = static_cast<std::int32_t>(best);
  }
}

LIBRARIAN_ROW_FUNCTION float capped_product(const MoeSpec& moe, float product) {
  return moe.router_cap == 0 ? product : moe.router_cap * tanh_of(product / moe.router_cap);
}

/// Scores of a row's experts.
LIBRARIAN_ROW_FUNCTION void score_experts(const MoeSpec& moe, const float* products,
                                          float* scores) {
  const std::uint32_t n = moe.experts;
  for (std::uint32_t i = 0; i < n; ++i) {
    scores[i] = capped_product(moe, products[i]);
  }
  if (moe.score == RouterScore::sigmoid) {
    for (std::uint32_t i = 0; i < n; ++i) {
      scores[i] = sigmoid_of(scores[i]);
    }
    return;
  }
  float most = scores[0];
  for (std::uint32_t i = 1; i < n; ++i) {
    most = maximum(scores[i], most);
  }
  float sum = 0;
  for (std::uint32_t i = 0; i < n; ++i) {
    scores[i] = exp_of(scores[i] - most);
    sum += scores[i];
  }
  for (std::uint32_t i = 0; i < n; ++i) {
    scores[i] = scores[i] / sum;
  }
}

/// What a group of `size` experts, chosen by of[0..size), is ranked by.
LIBRARIAN_ROW_FUNCTION float group_rank(const MoeSpec& moe, const float* of, std::uint32_t size) {
  float best = of[0];
  float second = -__builtin_inff();
  for (std::uint32_t i = 1; i < size; ++i) {
    second = maximum(second, minimum(best, of[i]));
    best = maximum(best, of[i]);
  }
  return moe.group_rank == GroupRank::best || size == 1 ? best : best + second;
}
LIBRARIAN_ROW_FUNCTION bool is_among(const std::int32_t* places, std::uint32_t count,
                                     std::uint32_t place) {
  bool found = false;
  for (std::uint32_t i = 0; i < count; ++i) {
    found = found || places[i] == static_cast<std::int32_t>(place);
  }
  return found;
}

/// Puts experts outside the best groups below all others, whatever the bias in the choice.
/// @param ranks   Memory for a number for each group.
/// @param places  Memory for `top_groups` numbers.
LIBRARIAN_ROW_FUNCTION void keep_best_groups(const MoeSpec& moe, float* select, float* ranks,
                                             std::int32_t* places) {
  const std::uint32_t size = moe.experts / moe.groups;
  for (std::uint32_t group = 0; group < moe.groups; ++group) {
    ranks[group] = group_rank(moe, select + std::size_t{group} * size, size);
  }
  take_largest(ranks, moe.groups, moe.top_groups, places);
  for (std::uint32_t group = 0; group < moe.groups; ++group) {
    const bool kept = is_among(places, moe.top_groups, group);
    float* const of = select + std::size_t{group} * size;
    for (std::uint32_t i = 0; i < size && !kept; ++i) {
      of[i] = kTaken;
    }
  }
}

/// What expert `i` is chosen by.
LIBRARIAN_ROW_FUNCTION float selecting(const MoeSpec& moe, const float* products,
                                       const float* scores, const float* select_bias,
                                       std::uint32_t i) {
  // Products have the order of their scores, and do not saturate.
  const bool by_products = select_bias == nullptr && moe.groups == 1 && moe.router_cap == 0;
  return by_products              ? products[i]
         : select_bias == nullptr ? scores[i]
                                  : scores[i] + select_bias[i];
}
/// What the chosen experts' scores, which add up to `sum`, are divided by.
LIBRARIAN_ROW_FUNCTION float weight_divisor(const MoeSpec& moe, float sum) {
  constexpr float kTiny = 1e-20F;
  return moe.renormalise ? maximum(sum, maximum(moe.renormalise_floor, kTiny)) : 1.0F;
}

/// One row of RouteOp.
/// @param scores, select, ranks  Memory for a number for each expert.
LIBRARIAN_ROW_FUNCTION void route_row(const MoeSpec& moe, const float* products,
                                      const float* select_bias, float* scores, float* select,
                                      float* ranks, std::int32_t* ids, float* weights) {
  score_experts(moe, products, scores);
  for (std::uint32_t i = 0; i < moe.experts; ++i) {
    select[i] = selecting(moe, products, scores, select_bias, i);
  }
  if (moe.groups > 1) {
    keep_best_groups(moe, select, ranks, ids);
  }
  take_largest(select, moe.experts, moe.top_k, ids);
  float sum = 0;
  for (std::uint32_t i = 0; i < moe.top_k; ++i) {
    weights[i] = scores[ids[i]];
    sum += weights[i];
  }
  const float divisor = weight_divisor(moe, sum);
  for (std::uint32_t i = 0; i < moe.top_k; ++i) {
    weights[i] = weights[i] / divisor * moe.multiplier;
  }
}

}  // namespace librarian::gpu_exec
