#pragma once
/// CUDA kernel bodies of what mixtures of experts do besides products: routes, rows to and from
/// experts. with_expert_kernel() chooses. Bits are the CPU device's on a path without fused
/// multiply-adds. Private to gpu_exec.

#include <cstddef>
#include <cstdint>

#include "gpu_exec/cuda_kernel_elements.h"
#include "gpu_exec/cuda_kernel_rows.h"
#include "gpu_exec/cuda_kernels.h"
#include "gpu_exec/cuda_simt.h"
#include "gpu_exec/expert_ops.h"
#include "gpu_exec/router_functors.h"

namespace librarian::gpu_exec {

/// route_row(), a warp per row. A lane has every 32nd expert; sums are in the order of experts, the
/// same in all lanes.
/// @tparam kMost  Experts at most.
template <std::uint32_t kMost>
struct RouteKernel {
  static constexpr unsigned kThreads = simt::kWarpThreads;
  static constexpr unsigned kBlocksMin = 8;
  struct Shared {
    float scores[kMost];
    float select[kMost];
    float ranks[kMost];
    std::int32_t places[kMost];
  };
  static constexpr unsigned kSharedBytes = sizeof(Shared);

  CudaRoute op;

  unsigned blocks() const { return static_cast<unsigned>(op.rows); }

  struct Candidate {
    float value;
    std::uint32_t place;
  };
  LIBRARIAN_KERNEL_BODY static Candidate first_of(const Candidate& a, const Candidate& b) {
    return b.value > a.value || (b.value == a.value && b.place < a.place) ? b : a;
  }

  /// This lane's best of values[0..n).
  LIBRARIAN_KERNEL_BODY static Candidate best_of_lane(const float* values, std::uint32_t n) {
    Candidate best{kTaken, n};
    for (std::uint32_t i = simt::thread_index(); i < n; i += kThreads) {
      best = first_of(best, {values[i], i});
    }
    return best;
  }
  /// The best of all lanes, the same in each.
  LIBRARIAN_KERNEL_BODY static Candidate best_of_warp(Candidate best) {
    LIBRARIAN_UNROLL
    for (unsigned mask = kThreads / 2; mask > 0; mask /= 2) {
      const Candidate other{simt::shuffle_xor(best.value, mask),
                            bits_of(simt::shuffle_xor(float_of(best.place), mask))};
      best = first_of(best, other);
    }
    return best;
  }

  /// As take_largest(); in `places` when all lanes are back.
  LIBRARIAN_KERNEL_BODY static void take_largest_together(float* values, std::uint32_t n,
                                                          std::uint32_t k, std::int32_t* places) {
    for (std::uint32_t i = simt::thread_index(); i < n; i += kThreads) {
      values[i] = ranked(values[i]);
    }
    Candidate own = best_of_lane(values, n);
    for (std::uint32_t taken = 0; taken < k; ++taken) {
      const Candidate best = best_of_warp(own);
      if (best.place % kThreads == simt::thread_index()) {
        places[taken] = static_cast<std::int32_t>(best.place);
        values[best.place] = kTaken;
        own = best_of_lane(values, n);
      }
    }
    simt::sync_warp();
  }

  /// As score_experts(), of this lane's experts.
  LIBRARIAN_KERNEL_BODY void score(const float* products, float* scores) const {
    const MoeSpec& moe = op.moe;
    const bool softmax = moe.score == RouterScore::softmax;
    // Where the first one is NaN, so is the maximum.
    float most = capped_product(moe, products[0]);
    for (std::uint32_t i = simt::thread_index(); i < moe.experts; i += kThreads) {
      const float value = capped_product(moe, products[i]);
      scores[i] = softmax ? value : sigmoid_of(value);
      most = maximum(value, most);
    }
    if (!softmax) {
      return;
    }
    LIBRARIAN_UNROLL
    for (unsigned mask = kThreads / 2; mask > 0; mask /= 2) {
      most = maximum(simt::shuffle_xor(most, mask), most);
    }
    for (std::uint32_t i = simt::thread_index(); i < moe.experts; i += kThreads) {
      scores[i] = exp_of(scores[i] - most);
    }
    simt::sync_warp();
    float sum = 0;
    for (std::uint32_t i = 0; i < moe.experts; ++i) {
      sum += scores[i];
    }
    simt::sync_warp();
    for (std::uint32_t i = simt::thread_index(); i < moe.experts; i += kThreads) {
      scores[i] = scores[i] / sum;
    }
  }

  /// As gpu_exec::keep_best_groups().
  LIBRARIAN_KERNEL_BODY void keep_best(Shared& at) const {
    const MoeSpec& moe = op.moe;
    const std::uint32_t size = moe.experts / moe.groups;
    for (std::uint32_t group = simt::thread_index(); group < moe.groups; group += kThreads) {
      at.ranks[group] = group_rank(moe, at.select + std::size_t{group} * size, size);
    }
    take_largest_together(at.ranks, moe.groups, moe.top_groups, at.places);
    for (std::uint32_t i = simt::thread_index(); i < moe.experts; i += kThreads) {
      at.select[i] = is_among(at.places, moe.top_groups, i / size) ? at.select[i] : kTaken;
    }
    simt::sync_warp();
  }

  LIBRARIAN_KERNEL_BODY void operator()(std::byte* shared) const {
    Shared& at = *reinterpret_cast<Shared*>(shared);
    const MoeSpec& moe = op.moe;
    const std::uint64_t row = simt::block_index_x();
    const float* const products = op.products + row * moe.experts;
    score(products, at.scores);
    for (std::uint32_t i = simt::thread_index(); i < moe.experts; i += kThreads) {
      at.select[i] = selecting(moe, products, at.scores, op.select_bias, i);
    }
    simt::sync_warp();
    if (moe.groups > 1) {
      keep_best(at);
    }
    take_largest_together(at.select, moe.experts, moe.top_k, at.places);
    float sum = 0;
    for (std::uint32_t i = 0; i < moe.top_k; ++i) {
      sum += at.scores[at.places[i]];
    }
    const float divisor = weight_divisor(moe, sum);
    for (std::uint32_t i = simt::thread_index(); i < moe.top_k; i += kThreads) {
      op.ids[row * moe.top_k + i] = at.places[i];
      op.weights[row * moe.top_k + i] = at.scores[at.places[i]] / divisor * moe.multiplier;
    }
    if (op.shared_products != nullptr && simt::thread_index() == 0) {
      op.shared_products[row] = sigmoid_of(op.shared_products[row]);
    }
  }
};

/// GatherOp; a block per row.
template <DType type>
struct GatherKernel {
  static constexpr unsigned kThreads = kUnitThreads;
  static constexpr unsigned kBlocksMin = 4;
  static constexpr unsigned kSharedBytes = 0;

  GatherOp op;
  bool aligned;

  static GatherKernel of(const GatherOp& op) {
    const std::uint64_t row_bytes = op.width * kElementBytes<type>;
    return {op, rows_aligned(op.x, row_bytes) && rows_aligned(op.y, row_bytes)};
  }
  unsigned blocks() const { return static_cast<unsigned>(op.count); }

  LIBRARIAN_KERNEL_BODY void operator()(std::byte* /*shared*/) const {
    const std::uint64_t i = simt::block_index_x();
    const std::uint64_t row_bytes = op.width * kElementBytes<type>;
    const std::byte* const x = op.x + static_cast<std::uint64_t>(op.rows[i]) * row_bytes;
    const float factor = op.factors == nullptr ? 1.0F : op.factors[i];
    for (std::uint64_t at = first_of_row(); at < op.width; at += kUnitsApart) {
      float values[kUnit];
      load_unit<type>(x, at, op.width, aligned, values);
      LIBRARIAN_UNROLL
      for (float& value : values) {
        value = value * factor;
      }
      store_unit<type>(values, op.y + i * row_bytes, at, op.width, aligned);
    }
  }
};

/// CombineOp; a block per row.
struct CombineKernel {
  static constexpr unsigned kThreads = kUnitThreads;
  static constexpr unsigned kBlocksMin = 4;
  static constexpr unsigned kSharedBytes = 0;

  CombineOp op;
  bool aligned;

  static CombineKernel of(const CombineOp& op) {
    const std::uint64_t row_bytes = op.width * sizeof(float);
    return {op, rows_aligned(op.sums, row_bytes) && rows_aligned(op.y, row_bytes)};
  }
  unsigned blocks() const { return static_cast<unsigned>(op.count); }

  LIBRARIAN_KERNEL_BODY void operator()(std::byte* /*shared*/) const {
    const std::uint64_t i = simt::block_index_x();
    const std::uint64_t row = op.rows == nullptr ? i : static_cast<std::uint64_t>(op.rows[i]);
    auto* const sums = reinterpret_cast<std::byte*>(op.sums + row * op.width);
    const auto* const y = reinterpret_cast<const std::byte*>(op.y + i * op.width);
    const float factor = op.factors == nullptr ? 1.0F : op.factors[i];
    for (std::uint64_t at = first_of_row(); at < op.width; at += kUnitsApart) {
      float values[kUnit];
      float terms[kUnit];
      load_unit<DType::f32>(sums, at, op.width, aligned, values);
      load_unit<DType::f32>(y, at, op.width, aligned, terms);
      LIBRARIAN_UNROLL
      for (unsigned j = 0; j < kUnit; ++j) {
        values[j] = terms[j] * factor + values[j];
      }
      store_unit<DType::f32>(values, sums, at, op.width, aligned);
    }
  }
};

template <DType type>
struct RoundKernel {
  static constexpr unsigned kThreads = kUnitThreads;
  static constexpr unsigned kBlocksMin = 4;
  static constexpr unsigned kSharedBytes = 0;

  RoundOp op;
  bool aligned;

  static RoundKernel of(const RoundOp& op) {
    return {op, rows_aligned(op.x, 0) && rows_aligned(op.y, 0)};
  }
  unsigned blocks() const { return blocks_of_units(op.count); }

  LIBRARIAN_KERNEL_BODY void operator()(std::byte* /*shared*/) const {
    const std::uint64_t i = first_of_unit();
    float values[kUnit];
    load_unit<DType::f32>(reinterpret_cast<const std::byte*>(op.x), i, op.count, aligned, values);
    store_unit<type>(values, op.y, i, op.count, aligned);
  }
};

/// Calls launch(kernel) with the kernel that computes `op`, as with_row_kernel() does.
template <typename Launch>
inline void with_expert_kernel(const CudaRoute& op, const Launch& launch) {
  constexpr std::uint32_t kFew = 128;
  op.moe.experts <= kFew ? launch(RouteKernel<kFew>{op}) : launch(RouteKernel<kExpertsMax>{op});
}
template <typename Launch>
inline void with_expert_kernel(const GatherOp& op, const Launch& launch) {
  with_element(op.dtype,
               [&](auto element) { launch(GatherKernel<decltype(element)::kType>::of(op)); });
}
template <typename Launch>
inline void with_expert_kernel(const CombineOp& op, const Launch& launch) {
  launch(CombineKernel::of(op));
}
template <typename Launch>
inline void with_expert_kernel(const RoundOp& op, const Launch& launch) {
  with_element(op.dtype,
               [&](auto element) { launch(RoundKernel<decltype(element)::kType>::of(op)); });
}

}  // namespace librarian::gpu_exec
