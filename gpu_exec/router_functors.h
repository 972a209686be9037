#pragma once
/// From a router's products to a row's experts and weights, written once for host and device; see
/// row_functors.h.

#include <cstdint>

#include "gpu_exec/model_spec.h"
#include "gpu_exec/row_functors.h"

namespace librarian::gpu_exec {

LIBRARIAN_ROW_FUNCTION float sigmoid_of(float x) { return 1.0F / (1.0F + exp_of(0.0F - x)); }

/// values[0..n) -> the places of the `k` largest, the largest first, equal ones by place. NaN is
/// below everything. `values` is destroyed.
LIBRARIAN_ROW_FUNCTION void take_largest(float* values, std::uint32_t n, std::uint32_t k,
                                         std::int32_t* places) {
  constexpr float kTaken = -__builtin_inff();
  for (std::uint32_t i = 0; i < n; ++i) {
    values[i] = values[i] > -3.40282346638528860e+38F ? values[i] : -3.40282346638528860e+38F;
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

/// Scores of a row's experts.
LIBRARIAN_ROW_FUNCTION void score_experts(const MoeSpec& moe, const float* products,
                                          float* scores) {
  const std::uint32_t n = moe.experts;
  for (std::uint32_t i = 0; i < n; ++i) {
    scores[i] =
        moe.router_cap == 0 ? products[i] : moe.router_cap * tanh_of(products[i] / moe.router_cap);
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

/// Sets what experts are chosen by to 0 outside the best groups.
/// @param ranks   Memory for a number for each group.
/// @param places  Memory for `top_groups` numbers.
LIBRARIAN_ROW_FUNCTION void keep_best_groups(const MoeSpec& moe, float* select, float* ranks,
                                             std::int32_t* places) {
  const std::uint32_t size = moe.experts / moe.groups;
  for (std::uint32_t group = 0; group < moe.groups; ++group) {
    const float* of = select + group * size;
    float best = of[0];
    float second = -__builtin_inff();
    for (std::uint32_t i = 1; i < size; ++i) {
      second = maximum(second, minimum(best, of[i]));
      best = maximum(best, of[i]);
    }
    ranks[group] = moe.group_rank == GroupRank::best || size == 1 ? best : best + second;
  }
  take_largest(ranks, moe.groups, moe.top_groups, places);
  for (std::uint32_t group = 0; group < moe.groups; ++group) {
    bool kept = false;
    for (std::uint32_t i = 0; i < moe.top_groups; ++i) {
      kept = kept || places[i] == static_cast<std::int32_t>(group);
    }
    for (std::uint32_t i = 0; i < size && !kept; ++i) {
      select[group * size + i] = 0.0F;
    }
  }
}

/// One row of RouteOp.
/// @param scores, select, ranks  Memory for a number for each expert.
LIBRARIAN_ROW_FUNCTION void route_row(const MoeSpec& moe, const float* products,
                                      const float* select_bias, float* scores, float* select,
                                      float* ranks, std::int32_t* ids, float* weights) {
  score_experts(moe, products, scores);
  // Products have the order of their scores, and do not saturate.
  const bool by_products = select_bias == nullptr && moe.groups == 1 && moe.router_cap == 0;
  for (std::uint32_t i = 0; i < moe.experts; ++i) {
    select[i] = by_products              ? products[i]
                : select_bias == nullptr ? scores[i]
                                         : scores[i] + select_bias[i];
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
  constexpr float kTiny = 1e-20F;
  const float divisor =
      moe.renormalise ? maximum(sum, maximum(moe.renormalise_floor, kTiny)) : 1.0F;
  for (std::uint32_t i = 0; i < moe.top_k; ++i) {
    weights[i] = weights[i] / divisor * moe.multiplier;
  }
}

}  // namespace librarian::gpu_exec
