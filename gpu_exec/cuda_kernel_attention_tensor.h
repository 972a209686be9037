#pragma once
/// Body of the CUDA attention kernel on tensor cores; see cuda_kernel_attention_core.h. Private to
/// gpu_exec.

#include "gpu_exec/cuda_kernel_attention_core.h"

namespace librarian::gpu_exec {

/// Rounds two numbers to a register's elements. NaN stays NaN.
template <simt::MmaType type>
LIBRARIAN_KERNEL_BODY std::uint32_t round_pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  std::uint32_t pair = 0;
  if constexpr (type == simt::MmaType::bf16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
#else
  if constexpr (type == simt::MmaType::bf16) {
    return f32_to_bf16(low) | static_cast<std::uint32_t>(f32_to_bf16(high)) << 16U;
  } else {
    return f32_to_f16(low) | static_cast<std::uint32_t>(f32_to_f16(high)) << 16U;
  }
#endif
}

// NOLINTBEGIN(bugprone-implicit-widening-of-multiplication-result): places in shared memory are
// small numbers, and 64 bits of them would take twice the registers.

/// Attention with tensor cores, heads up to `head_max` (a multiple of 16). Each of four warps has
/// 16 queries: scores = queries * keys^T and output += probabilities * values, in fragments of
/// mma.m16n8k16, whose sums are at once the left fragments of the next product. Values arrive
/// while scores are computed, and the next keys during the rest.
/// @tparam general  Keys may have a part that heads share, and values other strides than keys: for
///                  kernels that have registers left for the addresses.
template <simt::MmaType type, int head_max, int value_max = head_max, bool general = false>
struct TensorAttention : AttentionCore {
  static constexpr unsigned kThreads = 128;
  static constexpr unsigned kBlocksMin = head_max <= 64 ? 3 : 2;
  /// Keys per softmax step. Part of the arithmetic.
  static constexpr int kKeys = value_max <= 128 ? 64 : 32;
  /// Large heads leave no registers for queries, which then stay in shared memory.
  static constexpr bool kQueriesStay = head_max > 128;
  /// Rows are an odd number of parts apart, so that 8 rows of a matrix lie in different banks.
  /// Where there is no memory for that, the parts of a row change places instead.
  static constexpr bool kSwizzled = kQueriesStay;

  /// A matrix in shared memory with rows of `width` elements.
  template <int width>
  struct Shared {
    static constexpr int kParts = width / 8;  ///< Of 16 bytes, in a row.
    static constexpr int kRowBytes = (kParts + (kSwizzled ? 0 : 1)) * 16;
    /// Where 8 elements of a row lie.
    template <typename Byte>
    LIBRARIAN_KERNEL_BODY static Byte* part_at(Byte* matrix, unsigned row, unsigned part) {
      if constexpr (!kSwizzled) {
        return matrix + row * kRowBytes + part * 16;
      } else if constexpr (kRowBytes % 512 == 0) {
        return matrix + ((row * kRowBytes + row % 8 * 16) ^ (part * 16));
      } else {
        return matrix + row * kRowBytes + ((row % 8 * 16) ^ (part * 16));
      }
    }
  };
  using Heads = Shared<head_max>;    ///< Queries and keys,
  using Values = Shared<value_max>;  ///< values and output, which comes in the queries' place.

  static constexpr std::size_t kSharedBytes =
      static_cast<std::size_t>(kKeys) * (Heads::kRowBytes + Values::kRowBytes) +
      (kQueriesStay ? kCudaAttentionRows * std::size_t{Heads::kRowBytes} : 0);
  static_assert(kSharedBytes <= 64 * 1024, "no block of compute capability 7.5 has more");
  static_assert(value_max <= head_max, "the output comes in the queries' place");
  static_assert(kQueriesStay || (kKeys == kCudaAttentionRows && value_max == head_max),
                "queries pass through the values");

  bool aligned = false;  ///< All rows of heads begin at multiples of 16 bytes, and end there.

  static TensorAttention of(const CudaAttention& op) {
    const auto all_aligned = [](const std::byte* rows, const HeadStrides& strides,
                                std::uint64_t width) {
      return rows_aligned(rows, 2 * (strides.row | strides.head | width));
    };
    return {AttentionCore::of(op),
            all_aligned(op.q, {}, op.head_dim) &&
                all_aligned(op.k, op.k_strides, op.head_dim - op.shared_dim) &&
                all_aligned(op.k_shared, {}, op.shared_dim) &&
                all_aligned(op.v, op.v_strides, op.value_dim) &&
                all_aligned(op.y, {op.y_stride, 0}, op.value_dim)};
  }
  unsigned blocks() const { return op.tile_count * op.heads; }

  LIBRARIAN_KERNEL_BODY void operator()(std::byte* shared) const {
    const Place at = place();
    const CudaAttentionTile& tile = at.tile;
    std::byte* const keys = shared;
    std::byte* const values = shared + kKeys * Heads::kRowBytes;
    std::byte* const queries = kQueriesStay ? values + kKeys * Values::kRowBytes : values;
    const std::uint64_t q_stride = static_cast<std::uint64_t>(op.heads) * op.head_dim;
    const std::uint64_t kv = (tile.kv_row * op.k_strides.row + at.kv_head * op.k_strides.head) * 2;
    const std::uint32_t end = visible_keys(tile, tile.position + tile.rows - 1).hi;
    const auto load_keys = [&](std::uint32_t chunk) {
      const std::byte* const from = op.k + kv + chunk * op.k_strides.row * 2;
      if constexpr (general) {
        load_parted(keys, from, std::uint64_t{tile.kv_row} + chunk, end - chunk);
      } else {
        load_rows<kKeys, Heads>(keys, from, op.k_strides.row, end - chunk, op.head_dim);
      }
    };
    const auto load_values_of = [&](std::uint32_t chunk) {
      const std::uint64_t begin =
          general ? (tile.kv_row * op.v_strides.row + at.kv_head * op.v_strides.head) * 2 : kv;
      const std::uint64_t stride = general ? op.v_strides.row : op.k_strides.row;
      load_rows<kKeys, Values>(values, op.v + begin + chunk * stride * 2, stride, end - chunk,
                               op.value_dim);
    };

    const std::uint32_t first = visible_keys(tile, tile.position).lo / kKeys * kKeys;
    load_rows<kCudaAttentionRows, Heads>(queries,
                                         op.q + (tile.q_row * q_stride + at.head * op.head_dim) * 2,
                                         q_stride, tile.rows, op.head_dim);
    load_keys(first);
    simt::copies_commit();
    simt::copies_wait<0>();
    simt::sync_threads();

    const unsigned warp_row = simt::thread_index() / 32 * 16;
    const unsigned lane = simt::thread_index() % 32;
    // The lane's two rows, and their sums: of columns {0, 1} + 2 * (lane % 4) in each 8.
    const std::uint32_t position = tile.position + warp_row + lane / 4;
    const std::uint32_t positions[2] = {position, position + 8};
    const float slope = slope_of(at.head);
    std::uint32_t q_parts[kQueriesStay ? 1 : head_max / 16][4];
    if constexpr (!kQueriesStay) {
      LIBRARIAN_UNROLL
      for (int d = 0; d < head_max / 16; ++d) {
        load_queries(q_parts[d], queries, d);
      }
    }
    float out[value_max / 8][4] = {};
    float top[2] = {kLowest, kLowest};
    float sum[2] = {0, 0};

    for (std::uint32_t chunk = first; chunk < end; chunk += kKeys) {
      // What the warp's rows see. Rows beyond the tile's take part, and are dropped in the end.
      // Worked out twice: registers are scarcer than instructions.
      const bool works = warp_row < tile.rows;
      const auto see = [&] {
        const std::uint32_t rows = works && tile.rows - warp_row < 16 ? tile.rows - warp_row : 16;
        return sight(tile, tile.position + warp_row, rows, chunk, kKeys);
      };
      const bool nothing = !works || see().nothing();
      float scores[2][kKeys / 4];
      simt::copies_wait<0>();
      simt::sync_threads();  // The keys are there; all are done with the values before.
      load_values_of(chunk);
      simt::copies_commit();
      if (!nothing) {
        multiply_keys(scores, q_parts, queries, keys);
      }
      simt::copies_wait<0>();
      simt::sync_threads();  // The values are there; all are done with the keys.
      if (chunk + kKeys < end) {
        load_keys(chunk + kKeys);
      }
      simt::copies_commit();
      if (nothing) {
        continue;
      }
      const bool everything = see().everything(kKeys);
      const KeyRange ranges[2] = {in_chunk(visible_keys(tile, positions[0]), chunk, kKeys),
                                  in_chunk(visible_keys(tile, positions[1]), chunk, kKeys)};
      to_scores(scores, slope, positions, ranges, everything, chunk, [lane](int j) {
        return static_cast<std::uint32_t>(j / 2 * 8 + j % 2) + lane % 4 * 2;
      });
      const float shrink[2] = {softmax<4>(scores[0], top[0], sum[0]),
                               softmax<4>(scores[1], top[1], sum[1])};
      LIBRARIAN_UNROLL
      for (int n = 0; n < value_max / 8; ++n) {
        LIBRARIAN_UNROLL
        for (int i = 0; i < 4; ++i) {
          out[n][i] *= shrink[i / 2];
        }
      }
      std::uint32_t p[kKeys / 16][4];
      LIBRARIAN_UNROLL
      for (int k = 0; k < kKeys / 16; ++k) {
        LIBRARIAN_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int j = k * 4 + i / 2 * 2;
          p[k][i] = round_pair<type>(scores[i % 2][j], scores[i % 2][j + 1]);
        }
      }
      if (everything || all_finite(values)) {
        add_values(out, p, values);
      } else {
        add_seen_values(out, p, values, tile, tile.position + warp_row, chunk);
      }
    }
    simt::copies_wait<0>();
    simt::sync_threads();  // Some may still read values.
    const float last[2] = {last_factor<4>(at.head, positions[0], top[0], sum[0]),
                           last_factor<4>(at.head, positions[1], top[1], sum[1])};
    LIBRARIAN_UNROLL
    for (int n = 0; n < value_max / 8; ++n) {
      LIBRARIAN_UNROLL
      for (int half = 0; half < 2; ++half) {
        // NaN as the element type's own rounding has it, not as the instruction does.
        using To = Element<type == simt::MmaType::bf16 ? DType::bf16 : DType::f16>;
        const std::uint16_t pair[2] = {To::narrow(finished(out[n][2 * half], last[half])),
                                       To::narrow(finished(out[n][2 * half + 1], last[half]))};
        std::byte* const part =
            Values::part_at(queries, warp_row + lane / 4 + 8 * static_cast<unsigned>(half),
                            static_cast<unsigned>(n));
        __builtin_memcpy(__builtin_assume_aligned(part + lane % 4 * 4, 4), pair, 4);
      }
    }
    simt::sync_warp();
    if (warp_row < tile.rows) {
      store_rows(output(at, 2), queries, warp_row, tile.rows);
    }
  }

 private:
  /// Rows of elements at source(row, element) into a shared matrix of kCount rows, zeros beyond
  /// `rows` and `width`. There after a wait and a barrier.
  /// @param somewhere  May be read.
  template <int kCount, typename Matrix, typename Source>
  LIBRARIAN_KERNEL_BODY void load_from(std::byte* to, const std::byte* somewhere,
                                       std::uint32_t rows, std::uint32_t width,
                                       const Source& source) const {
    constexpr unsigned kParts = Matrix::kParts;
    if (aligned) {
      LIBRARIAN_ROLLED
      for (unsigned i = simt::thread_index(); i < kCount * kParts; i += kThreads) {
        const unsigned row = i / kParts;
        const unsigned part = i % kParts;
        const bool valid = row < rows && part * 8 < width;
        simt::copy_async_16(Matrix::part_at(to, row, part),
                            valid ? source(row, part * 8) : somewhere, valid);
      }
      return;
    }
    LIBRARIAN_ROLLED
    for (unsigned i = simt::thread_index(); i < kCount * kParts * 8; i += kThreads) {
      const unsigned row = i / (kParts * 8);
      const unsigned d = i % (kParts * 8);
      std::uint16_t bits = 0;
      if (row < rows && d < width) {
        __builtin_memcpy(&bits, __builtin_assume_aligned(source(row, d), 2), 2);
      }
      __builtin_memcpy(__builtin_assume_aligned(Matrix::part_at(to, row, d / 8) + d % 8 * 2, 2),
                       &bits, 2);
    }
  }
  /// Row 0 of `from` and on.
  template <int kCount, typename Matrix>
  LIBRARIAN_KERNEL_BODY void load_rows(std::byte* to, const std::byte* from, std::uint64_t stride,
                                       std::uint32_t rows, std::uint32_t width) const {
    load_from<kCount, Matrix>(to, from, rows, width, [from, stride](unsigned row, unsigned d) {
      return from + (row * stride + d) * 2;
    });
  }
  /// Keys whose last part heads share: that of row 0 is row `shared_row`.
  LIBRARIAN_KERNEL_BODY void load_parted(std::byte* to, const std::byte* from,
                                         std::uint64_t shared_row, std::uint32_t rows) const {
    const std::uint32_t own_dim = op.head_dim - op.shared_dim;
    load_from<kKeys, Heads>(to, from, rows, op.head_dim, [&](unsigned row, unsigned d) {
      return d < own_dim ? from + (row * op.k_strides.row + d) * 2
                         : op.k_shared + ((shared_row + row) * op.shared_dim + d - own_dim) * 2;
    });
  }

  /// A warp's 16 rows of output to where they belong.
  LIBRARIAN_KERNEL_BODY void store_rows(std::byte* to, const std::byte* from, unsigned warp_row,
                                        std::uint32_t rows) const {
    constexpr unsigned kParts = Values::kParts;
    const std::uint64_t stride = op.y_stride;
    const unsigned lane = simt::thread_index() % 32;
    if (aligned) {
      LIBRARIAN_ROLLED
      for (unsigned i = lane; i < 16 * kParts; i += 32) {
        const unsigned row = warp_row + i / kParts;
        const unsigned part = i % kParts;
        if (row < rows && part * 8 < op.value_dim) {
          *reinterpret_cast<Words*>(to + (row * stride + part * 8) * 2) =
              *reinterpret_cast<const Words*>(Values::part_at(from, row, part));
        }
      }
      return;
    }
    LIBRARIAN_ROLLED
    for (unsigned i = lane; i < 16 * value_max; i += 32) {
      const unsigned row = warp_row + i / value_max;
      const unsigned d = i % value_max;
      if (row < rows && d < op.value_dim) {
        __builtin_memcpy(__builtin_assume_aligned(to + (row * stride + d) * 2, 2),
                         __builtin_assume_aligned(Values::part_at(from, row, d / 8) + d % 8 * 2, 2),
                         2);
      }
    }
  }

  /// The left fragment of the warp's queries at dimensions [16 * d, 16 * d + 16).
  LIBRARIAN_KERNEL_BODY static void load_queries(std::uint32_t (&a)[4], const std::byte* queries,
                                                 int d) {
    const unsigned lane = simt::thread_index() % 32;
    simt::load_matrices(a, Heads::part_at(queries, simt::thread_index() / 32 * 16 + lane % 16,
                                          (static_cast<unsigned>(d) * 2) ^ (lane / 16)));
  }

  /// scores[i][j] = products of the lane's row i: j counts the columns that it has.
  template <int steps>
  LIBRARIAN_KERNEL_BODY static void multiply_keys(float (&scores)[2][kKeys / 4],
                                                  const std::uint32_t (&q_parts)[steps][4],
                                                  const std::byte* queries, const std::byte* keys) {
    const unsigned lane = simt::thread_index() % 32;
    float c[kKeys / 8][4] = {};
    const auto step = [&](const std::uint32_t(&a)[4], int d) {
      LIBRARIAN_UNROLL
      for (int n = 0; n < kKeys / 16; ++n) {
        std::uint32_t b[4];
        simt::load_matrices(
            b, Heads::part_at(keys, static_cast<unsigned>(n) * 16 + lane / 16 * 8 + lane % 8,
                              (static_cast<unsigned>(d) * 2) ^ (lane / 8 % 2)));
        simt::multiply_accumulate<type>(c[2 * n], a, b[0], b[1]);
        simt::multiply_accumulate<type>(c[2 * n + 1], a, b[2], b[3]);
      }
    };
    if constexpr (kQueriesStay) {
      LIBRARIAN_ROLLED
      for (int d = 0; d < head_max / 16; ++d) {
        std::uint32_t a[4];
        load_queries(a, queries, d);
        step(a, d);
      }
    } else {
      LIBRARIAN_UNROLL
      for (int d = 0; d < head_max / 16; ++d) {
        step(q_parts[d], d);
      }
    }
    LIBRARIAN_UNROLL
    for (int n = 0; n < kKeys / 8; ++n) {
      LIBRARIAN_UNROLL
      for (int i = 0; i < 4; ++i) {
        scores[i / 2][n * 2 + i % 2] = c[n][i];
      }
    }
  }

  /// The right fragments of keys [16 * k, 16 * k + 16) at dimensions [16 * n, 16 * n + 16).
  LIBRARIAN_KERNEL_BODY static void load_values(std::uint32_t (&b)[4], const std::byte* values,
                                                int k, int n) {
    const unsigned lane = simt::thread_index() % 32;
    simt::load_matrices_transposed(
        b, Values::part_at(values, static_cast<unsigned>(k) * 16 + lane % 16,
                           (static_cast<unsigned>(n) * 2) ^ (lane / 16)));
  }

  /// out += p * values.
  LIBRARIAN_KERNEL_BODY static void add_values(float (&out)[value_max / 8][4],
                                               const std::uint32_t (&p)[kKeys / 16][4],
                                               const std::byte* values) {
    LIBRARIAN_UNROLL
    for (int k = 0; k < kKeys / 16; ++k) {
      LIBRARIAN_UNROLL
      for (int n = 0; n < value_max / 16; ++n) {
        std::uint32_t b[4];
        load_values(b, values, k, n);
        simt::multiply_accumulate<type>(out[2 * n], p[k], b[0], b[1]);
        simt::multiply_accumulate<type>(out[2 * n + 1], p[k], b[2], b[3]);
      }
    }
  }

  /// The same, row by row with zeros for the values that the row does not see. Rare: its loops stay
  /// loops over sums in memory, so that it takes no registers from what surrounds it.
  LIBRARIAN_KERNEL_BODY void add_seen_values(float (&out)[value_max / 8][4],
                                             const std::uint32_t (&p)[kKeys / 16][4],
                                             const std::byte* values, const CudaAttentionTile& tile,
                                             std::uint32_t position, std::uint32_t chunk) const {
    float sums[value_max / 8][4];
    std::uint32_t weights[kKeys / 16][4];
    copy_fragments(sums, out);
    copy_fragments(weights, p);
    const unsigned lane = simt::thread_index() % 32;
    LIBRARIAN_ROLLED
    for (unsigned row = 0; row < 16; ++row) {
      const KeyRange range = in_chunk(visible_keys(tile, position + row), chunk, kKeys);
      const bool mine[2] = {row == lane / 4, row == lane / 4 + 8};
      LIBRARIAN_ROLLED
      for (int k = 0; k < kKeys / 16; ++k) {
        std::uint32_t seen[2];  // Bits of the elements, of the first 8 keys and of the others.
        LIBRARIAN_UNROLL
        for (unsigned i = 0; i < 2; ++i) {
          const std::uint32_t key = static_cast<unsigned>(k) * 16 + i * 8 + lane % 4 * 2;
          seen[i] = (range.has(key) ? 0xFFFFU : 0U) | (range.has(key + 1) ? 0xFFFF0000U : 0U);
        }
        LIBRARIAN_ROLLED
        for (int n = 0; n < value_max / 16; ++n) {
          std::uint32_t b[4];
          load_values(b, values, k, n);
          LIBRARIAN_UNROLL
          for (int half = 0; half < 2; ++half) {
            float(&to)[4] = sums[2 * n + half];
            float c[4] = {to[0], to[1], to[2], to[3]};
            simt::multiply_accumulate<type>(c, weights[k], b[2 * half] & seen[0],
                                            b[2 * half + 1] & seen[1]);
            LIBRARIAN_UNROLL
            for (int i = 0; i < 4; ++i) {
              to[i] = mine[i / 2] ? c[i] : to[i];
            }
          }
        }
      }
    }
    copy_fragments(out, sums);
  }
  template <typename Number, int count>
  LIBRARIAN_KERNEL_BODY static void copy_fragments(Number (&to)[count][4],
                                                   const Number (&from)[count][4]) {
    LIBRARIAN_UNROLL
    for (int n = 0; n < count; ++n) {
      LIBRARIAN_UNROLL
      for (int i = 0; i < 4; ++i) {
        to[n][i] = from[n][i];
      }
    }
  }

  /// Whether no value of the chunk is infinite or NaN; the warp's lanes agree.
  LIBRARIAN_KERNEL_BODY static bool all_finite(const std::byte* values) {
    // One more than the largest exponent carries into the sign's place.
    constexpr std::uint32_t kExponent = type == simt::MmaType::bf16 ? 0x7F807F80U : 0x7C007C00U;
    constexpr std::uint32_t kOne = type == simt::MmaType::bf16 ? 0x00800080U : 0x04000400U;
    std::uint32_t carries = 0;
    LIBRARIAN_ROLLED
    for (unsigned i = simt::thread_index() % 32; i < kKeys * Values::kParts; i += 32) {
      const Words words = *reinterpret_cast<const Words*>(
          Values::part_at(values, i / Values::kParts, i % Values::kParts));
      LIBRARIAN_UNROLL
      for (const std::uint32_t word : words.word) {
        carries |= (word & kExponent) + kOne;
      }
    }
    float found = (carries & 0x80008000U) != 0 ? 1.0F : 0.0F;
    LIBRARIAN_UNROLL
    for (unsigned mask = 1; mask < 32; mask *= 2) {
      found += simt::shuffle_xor(found, mask);
    }
    return found == 0;
  }
};

// NOLINTEND(bugprone-implicit-widening-of-multiplication-result)

}  // namespace librarian::gpu_exec
