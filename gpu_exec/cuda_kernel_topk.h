#pragma once
/// CUDA kernel body of TopkOp: a block takes a row. Candidates of the tile come out one by one,
/// largest first, as long as they are among the k, and are merged with those of the tiles before.
/// Private to gpu_exec.

#include <cstddef>
#include <cstdint>

#include "gpu_exec/cuda_kernel_elements.h"
#include "gpu_exec/cuda_kernels.h"
#include "gpu_exec/cuda_simt.h"
#include "gpu_exec/row_functors.h"
#include "gpu_exec/topk.h"

namespace librarian::gpu_exec {

struct TopkKernel {
  static constexpr unsigned kThreads = 256;
  static constexpr unsigned kBlocksMin = 2;
  static constexpr unsigned kWarps = kThreads / simt::kWarpThreads;

  /// A logit with its id; id -1: none.
  struct Candidate {
    float logit;
    std::int32_t id;
  };
  struct Shared {
    float logits[kVocabularyTile];
    Candidate found[kTopkMax];   ///< Of this tile, descending.
    Candidate before[kTopkMax];  ///< Of the tiles before.
    Candidate warps[2][kWarps];  ///< They take turns, so that one barrier a round is enough.
    float sums[2][kWarps];
  };
  static constexpr unsigned kSharedBytes = sizeof(Shared);

  TopkOp op;

  unsigned blocks() const { return static_cast<unsigned>(op.rows); }

  /// Whether a stands before b.
  LIBRARIAN_KERNEL_BODY static bool precedes(const Candidate& a, const Candidate& b) {
    return a.id >= 0 && (b.id < 0 || a.logit > b.logit || (a.logit == b.logit && a.id < b.id));
  }
  LIBRARIAN_KERNEL_BODY static Candidate first_of(const Candidate& a, const Candidate& b) {
    return precedes(b, a) ? b : a;
  }

  /// This thread's first candidate behind `last`. Ids within the tile.
  LIBRARIAN_KERNEL_BODY Candidate next_of_thread(const Shared& at, const Candidate& last) const {
    Candidate best{0, -1};
    for (unsigned i = simt::thread_index(); i < op.count; i += kThreads) {
      const Candidate here{at.logits[i], static_cast<std::int32_t>(i)};
      // A NaN is behind nothing and equals nothing.
      if (here.logit == here.logit && (last.id < 0 || precedes(last, here)) &&
          precedes(here, best)) {
        best = here;
      }
    }
    return best;
  }

  /// The first candidate of all threads, the same in each.
  LIBRARIAN_KERNEL_BODY static Candidate first_of_block(Candidate own, Candidate* warps) {
    for (unsigned mask = simt::kWarpThreads / 2; mask > 0; mask /= 2) {
      const Candidate other{simt::shuffle_xor(own.logit, mask),
                            static_cast<std::int32_t>(bits_of(simt::shuffle_xor(
                                float_of(static_cast<std::uint32_t>(own.id)), mask)))};
      own = first_of(own, other);
    }
    if (simt::thread_index() % simt::kWarpThreads == 0) {
      warps[simt::thread_index() / simt::kWarpThreads] = own;
    }
    simt::sync_threads();
    Candidate best = warps[0];
    for (unsigned warp = 1; warp < kWarps; ++warp) {
      best = first_of(best, warps[warp]);
    }
    return best;
  }

  /// What `combine` makes of one value of each thread, the same in each.
  template <typename Combine>
  LIBRARIAN_KERNEL_BODY static float over_block(float value, float* warps, const Combine& combine) {
    for (unsigned mask = simt::kWarpThreads / 2; mask > 0; mask /= 2) {
      value = combine(value, simt::shuffle_xor(value, mask));
    }
    if (simt::thread_index() % simt::kWarpThreads == 0) {
      warps[simt::thread_index() / simt::kWarpThreads] = value;
    }
    simt::sync_threads();
    float all = warps[0];
    for (unsigned warp = 1; warp < kWarps; ++warp) {
      all = combine(all, warps[warp]);
    }
    return all;
  }

  /// How many of `sorted`, which descends, stand before `value`: those above it, and with `equals`
  /// those that equal it.
  LIBRARIAN_KERNEL_BODY static unsigned count_before(const Candidate* sorted, unsigned count,
                                                     float value, bool equals) {
    unsigned begin = 0;
    for (unsigned end = count; begin < end;) {
      const unsigned middle = (begin + end) / 2;
      const float there = sorted[middle].logit;
      if (there > value || (equals && there == value)) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    return begin;
  }

  LIBRARIAN_KERNEL_BODY void operator()(std::byte* shared) const {
    auto& at = *reinterpret_cast<Shared*>(shared);
    const unsigned thread = simt::thread_index();
    const std::uint64_t index = simt::block_index_x();
    const TopkRow row = topk_row(op.memory + index * topk_row_bytes(op.k), op.k);
    const auto count = static_cast<unsigned>(op.count);
    const auto known = static_cast<unsigned>(*row.count);

    float largest = -__builtin_inff();
    for (unsigned i = thread; i < count; i += kThreads) {
      const float logit = logit_of(op.logits[index * op.count + i], op.multiplier, op.softcap);
      at.logits[i] = logit;
      largest = maximum(logit, largest);
    }
    for (unsigned i = thread; i < known; i += kThreads) {
      at.before[i] = {row.logits[i], row.ids[i]};
    }
    // Its barrier shows everybody's logits and candidates to all.
    const float here =
        over_block(largest, at.sums[0], [](float a, float b) { return maximum(a, b); });
    const float before = *row.maximum;
    const float now = maximum(here, before);
    const float shift = now == -__builtin_inff() ? 0.0F : now;
    float sum = 0;
    for (unsigned i = thread; i < count; i += kThreads) {
      sum = sum + exp_of(at.logits[i] - shift);
    }
    sum = over_block(sum, at.sums[1], [](float a, float b) { return a + b; });

    unsigned found = 0;
    Candidate own = next_of_thread(at, {0, -1});
    for (; found < op.k; ++found) {
      const Candidate next = first_of_block(own, at.warps[found % 2]);
      // It is too late if k candidates, of this tile or before, stand before it.
      const unsigned rival = op.k - 1 - found;
      if (next.id < 0 || (rival < known && !(next.logit > at.before[rival].logit))) {
        break;
      }
      if (thread == 0) {
        at.found[found] = {next.logit, next.id + static_cast<std::int32_t>(op.first_id)};
      }
      if (own.id == next.id) {
        own = next_of_thread(at, next);
      }
    }
    simt::sync_threads();

    // Equal ones of the tiles before have lower ids.
    for (unsigned i = thread; i < known; i += kThreads) {
      const unsigned place = i + count_before(at.found, found, at.before[i].logit, false);
      if (place < op.k) {
        row.logits[place] = at.before[i].logit;
        row.ids[place] = at.before[i].id;
      }
    }
    for (unsigned i = thread; i < found; i += kThreads) {
      const unsigned place = i + count_before(at.before, known, at.found[i].logit, true);
      if (place < op.k) {
        row.logits[place] = at.found[i].logit;
        row.ids[place] = at.found[i].id;
      }
    }
    if (thread == 0) {
      *row.sum = *row.sum * exp_of(before - shift) + sum;
      *row.maximum = now;
      *row.count = static_cast<std::int32_t>(known + found < op.k ? known + found : op.k);
      const std::int32_t gold = op.gold_ids[index];
      if (gold >= 0 && static_cast<std::uint64_t>(gold) >= op.first_id &&
          static_cast<std::uint64_t>(gold) - op.first_id < op.count) {
        *row.gold = at.logits[static_cast<std::uint64_t>(gold) - op.first_id];
      }
    }
  }
};

}  // namespace librarian::gpu_exec
