#pragma once
/// What the CUDA attention kernels share: one block per tile of queries and head, an online softmax
/// in f32 over key chunks at fixed multiples from the sample's start. Private to gpu_exec.
///
/// A row's arithmetic depends on its position and on the keys that it sees, not on the tile: a
/// chunk that it sees nothing of leaves its numbers as they are, bit for bit, and keys that only
/// its neighbours see have probability zero, where adding them changes nothing but the sign of a
/// zero, which the end takes away. Zero times infinity is NaN: kernels look for values that are
/// not finite, and multiply those only for rows that see them.
/// @source Milakov and Gimelshein 2018; Dao 2023 (FlashAttention-2), algorithm 1

#include "gpu_exec/cuda_kernel_elements.h"
#include "gpu_exec/cuda_kernels.h"

// Before a loop: unrolling it would take registers for addresses that sums need.
#ifdef __CUDACC__
#define LIBRARIAN_ROLLED _Pragma("unroll 1")
#else
#define LIBRARIAN_ROLLED
#endif

namespace librarian::gpu_exec {

/// A float whose multiply_add() is fused, for the functions of row_functors.h.
struct FusedFloat {
  float value;
  LIBRARIAN_HOST_DEVICE explicit FusedFloat(float v) : value(v) {}
};
LIBRARIAN_ROW_FUNCTION FusedFloat operator+(FusedFloat a, FusedFloat b) {
  return FusedFloat(a.value + b.value);
}
LIBRARIAN_ROW_FUNCTION FusedFloat operator-(FusedFloat a, FusedFloat b) {
  return FusedFloat(a.value - b.value);
}
LIBRARIAN_ROW_FUNCTION FusedFloat operator*(FusedFloat a, FusedFloat b) {
  return FusedFloat(a.value * b.value);
}
LIBRARIAN_ROW_FUNCTION FusedFloat operator/(FusedFloat a, FusedFloat b) {
  return FusedFloat(a.value / b.value);
}
LIBRARIAN_ROW_FUNCTION FusedFloat multiply_add(FusedFloat a, FusedFloat b, FusedFloat c) {
#if defined(__CUDACC__) && !defined(__CUDA_ARCH__)
  return a * b + c;  // nvcc's pass for the host, where no kernel runs.
#else
  return FusedFloat(simt::fused_multiply_add(a.value, b.value, c.value));
#endif
}
LIBRARIAN_ROW_FUNCTION FusedFloat maximum(FusedFloat a, FusedFloat b) {
  return FusedFloat(maximum(a.value, b.value));
}
LIBRARIAN_ROW_FUNCTION FusedFloat minimum(FusedFloat a, FusedFloat b) {
  return FusedFloat(minimum(a.value, b.value));
}
LIBRARIAN_ROW_FUNCTION FusedFloat power_of_two(FusedFloat shifted) {
  return FusedFloat(power_of_two(shifted.value));
}
LIBRARIAN_KERNEL_BODY float fused_exp2(float x) { return exp2_of(FusedFloat(x)).value; }

/// What both kernels do, whatever multiplies.
struct AttentionCore {
  static constexpr float kLowest = -3.40282346638528860e+38F;
  static constexpr double kLog2E = 1.4426950408889634;

  /// Keys [lo, hi) of the sample, or of a chunk.
  struct KeyRange {
    std::uint32_t lo, hi;
    LIBRARIAN_KERNEL_BODY bool has(std::uint32_t key) const { return key - lo < hi - lo; }
  };

  /// What a block works on.
  struct Place {
    CudaAttentionTile tile;
    std::uint32_t head, kv_head;
  };

  CudaAttention op;
  float factor = 0;  ///< Of products: scores in units of log2, or what the cap is applied to.
  float cap = 0;     ///< In units of log2.

  /// The operation with numbers in place of what stands for them.
  static CudaAttention filled(CudaAttention op) {
    op.value_dim = op.value_dim != 0 ? op.value_dim : op.head_dim;
    op.k_strides = op.k_strides.or_dense(op.kv_heads, op.head_dim - op.shared_dim);
    op.v_strides = op.v_strides.or_dense(op.kv_heads, op.value_dim);
    op.y = op.y != nullptr ? op.y : op.q;
    op.y_stride = op.y_stride != 0 ? op.y_stride : std::uint64_t{op.heads} * op.value_dim;
    return op;
  }
  /// @param op  As filled() gives it.
  static AttentionCore of(const CudaAttention& op) {
    const double scale = op.scale;
    const double cap = op.softcap;
    return {op, static_cast<float>(cap != 0 ? scale / cap : scale * kLog2E),
            static_cast<float>(cap * kLog2E)};
  }

  /// Where the block's output begins.
  LIBRARIAN_KERNEL_BODY std::byte* output(const Place& at, std::uint64_t element_bytes) const {
    return op.y + (at.tile.q_row * op.y_stride + at.head * op.value_dim) * element_bytes;
  }

  /// Heads of one tile side by side, which share keys; the last tiles, which have most keys, first.
  LIBRARIAN_KERNEL_BODY Place place() const {
    const std::uint32_t block = simt::block_index_x();
    const std::uint32_t head = block % op.heads;
    return {op.tiles[op.tile_count - 1 - block / op.heads], head, head / (op.heads / op.kv_heads)};
  }

  /// What the query at `position` sees; both ends grow with the position.
  LIBRARIAN_KERNEL_BODY KeyRange visible_keys(const CudaAttentionTile& tile,
                                              std::uint32_t position) const {
    KeyRange see{0, op.causal || op.window != 0 ? position + 1 : tile.keys};
    if (op.window != 0 && position + 1 > op.window) {
      see.lo = position + 1 - op.window;
    }
    if (op.chunk != 0) {
      const std::uint32_t begin = position / op.chunk * op.chunk;
      see.lo = see.lo < begin ? begin : see.lo;
      see.hi = see.hi - begin > op.chunk ? begin + op.chunk : see.hi;
    }
    return see;
  }

  /// The part of a range in the chunk of `keys` keys at `begin`, relative to it.
  LIBRARIAN_KERNEL_BODY static KeyRange in_chunk(KeyRange see, std::uint32_t begin,
                                                 std::uint32_t keys) {
    const std::uint32_t lo = see.lo < begin ? 0 : see.lo - begin;
    const std::uint32_t hi = see.hi < begin ? 0 : see.hi - begin;
    return {lo < keys ? lo : keys, hi < keys ? hi : keys};
  }

  /// Of `rows` rows from `position` on: keys of the chunk that some of them see, and that all see.
  struct Sight {
    KeyRange some, all;
    LIBRARIAN_KERNEL_BODY bool nothing() const { return some.lo >= some.hi; }
    LIBRARIAN_KERNEL_BODY bool everything(std::uint32_t keys) const {
      return all.lo == 0 && all.hi == keys;
    }
  };
  LIBRARIAN_KERNEL_BODY Sight sight(const CudaAttentionTile& tile, std::uint32_t position,
                                    std::uint32_t rows, std::uint32_t begin,
                                    std::uint32_t keys) const {
    const KeyRange first = in_chunk(visible_keys(tile, position), begin, keys);
    const KeyRange last = in_chunk(visible_keys(tile, position + rows - 1), begin, keys);
    return {{first.lo, last.hi}, {last.lo, first.hi}};
  }

  LIBRARIAN_KERNEL_BODY float slope_of(std::uint32_t head) const {
    return op.slopes == nullptr ? 0.0F : op.slopes[head] * static_cast<float>(kLog2E);
  }

  /// products[i][j] of rows with positions[i] and keys key_of(j) into scores in units of log2;
  /// -infinity where the row does not see the key, `ranges` being relative to `chunk`.
  template <int rows, int columns, typename KeyOf>
  LIBRARIAN_KERNEL_BODY void to_scores(float (&products)[rows][columns], float slope,
                                       const std::uint32_t (&positions)[rows],
                                       const KeyRange (&ranges)[rows], bool everything,
                                       std::uint32_t chunk, const KeyOf& key_of) const {
    LIBRARIAN_UNROLL
    for (int i = 0; i < rows; ++i) {
      LIBRARIAN_UNROLL
      for (int j = 0; j < columns; ++j) {
        products[i][j] *= factor;
      }
    }
    if (op.softcap != 0) {
      LIBRARIAN_UNROLL
      for (int i = 0; i < rows; ++i) {
        LIBRARIAN_UNROLL
        for (int j = 0; j < columns; ++j) {
          products[i][j] = tanh_of(FusedFloat(products[i][j])).value * cap;
        }
      }
    }
    if (op.slopes != nullptr) {
      // Relative to the row's own position: small numbers, and the same softmax.
      LIBRARIAN_UNROLL
      for (int i = 0; i < rows; ++i) {
        const auto distance = static_cast<float>(static_cast<std::int32_t>(chunk - positions[i]));
        LIBRARIAN_UNROLL
        for (int j = 0; j < columns; ++j) {
          const float away = distance + static_cast<float>(key_of(j));
          products[i][j] = simt::fused_multiply_add(slope, away, products[i][j]);
        }
      }
    }
    if (!everything) {
      LIBRARIAN_UNROLL
      for (int i = 0; i < rows; ++i) {
        LIBRARIAN_UNROLL
        for (int j = 0; j < columns; ++j) {
          products[i][j] = ranges[i].has(key_of(j)) ? products[i][j] : -__builtin_inff();
        }
      }
    }
  }

  /// A row's scores into probabilities relative to the new maximum. The row lies in `lanes`
  /// neighbouring lanes, each of which keeps the sum of its own part.
  /// @return  What the sums so far are worth relative to the new maximum.
  template <unsigned lanes, int columns>
  LIBRARIAN_KERNEL_BODY static float softmax(float (&scores)[columns], float& top, float& sum) {
    const float before = top;
    LIBRARIAN_UNROLL
    for (int j = 0; j < columns; ++j) {
      top = maximum(top, scores[j]);
    }
    LIBRARIAN_UNROLL
    for (unsigned mask = 1; mask < lanes; mask *= 2) {
      top = maximum(top, simt::shuffle_xor(top, mask));
    }
    float total = 0;
    LIBRARIAN_UNROLL
    for (int j = 0; j < columns; ++j) {
      scores[j] = fused_exp2(scores[j] - top);
      total += scores[j];
    }
    const float shrink = fused_exp2(before - top);
    sum = simt::fused_multiply_add(sum, shrink, total);
    return shrink;
  }

  /// What a row's output is to be multiplied by in the end.
  template <unsigned lanes>
  LIBRARIAN_KERNEL_BODY float last_factor(std::uint32_t head, std::uint32_t position, float top,
                                          float sum) const {
    LIBRARIAN_UNROLL
    for (unsigned mask = 1; mask < lanes; mask *= 2) {
      sum += simt::shuffle_xor(sum, mask);
    }
    if (op.sinks == nullptr) {
      return 1.0F / sum;
    }
    // Relative to the row's position, as the scores are. Only now, because a large sink would
    // have made small numbers of the probabilities, with few bits left in 16.
    const float slope = op.slopes == nullptr ? 0.0F : op.slopes[head];
    const float sink =
        simt::fused_multiply_add(-slope, static_cast<float>(position), op.sinks[head]) *
        static_cast<float>(kLog2E);
    const float both = maximum(sink, top);
    const float shrink = fused_exp2(top - both);
    return shrink / simt::fused_multiply_add(sum, shrink, fused_exp2(sink - both));
  }

  /// An element of the output: there is one zero and one NaN, because a zero's sign, or which of
  /// several NaNs survived, could come from keys that the row does not see.
  LIBRARIAN_KERNEL_BODY static float finished(float sum, float last) {
    const float x = simt::fused_multiply_add(sum, last, 0.0F);
    return x == x ? x : __builtin_nanf("");
  }
};

}  // namespace librarian::gpu_exec
