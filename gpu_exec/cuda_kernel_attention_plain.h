#pragma once
/// Body of the CUDA attention kernel without tensor cores; see cuda_kernel_attention_core.h.
/// Private to gpu_exec.

#include "gpu_exec/cuda_kernel_attention_core.h"

namespace librarian::gpu_exec {

// NOLINTBEGIN(bugprone-implicit-widening-of-multiplication-result): places in shared memory are
// small numbers, and 64 bits of them would take twice the registers.

/// Attention without tensor cores, all in f32. Each thread has 4 rows by 4 columns: of a chunk's
/// scores, and then of every 64 dimensions of the output.
template <DType type, int value_max>
struct PlainAttention : AttentionCore {
  static constexpr unsigned kThreads = 256;
  static constexpr unsigned kBlocksMin = value_max <= 128 ? 2 : 1;
  static constexpr unsigned kKeys = 64;   ///< Per softmax step. Part of the arithmetic.
  static constexpr unsigned kDepth = 32;  ///< Dimensions in shared memory at a time, for scores,
  static constexpr unsigned kWidth = 64;  ///< and for the output.
  static constexpr unsigned kSlices = (value_max + kWidth - 1) / kWidth;
  static constexpr unsigned kRowFloats = 64 + 4;  ///< A row's end and the next one's begin.
  static constexpr std::size_t kSharedBytes = (kKeys + kKeys) * kRowFloats * sizeof(float);
  static_assert(2 * kDepth <= kKeys, "queries and keys lie where values do");

  static PlainAttention of(const CudaAttention& op) { return {AttentionCore::of(op)}; }
  unsigned blocks() const { return op.tile_count * op.heads; }

  LIBRARIAN_KERNEL_BODY void operator()(std::byte* shared) const {
    const Place at = place();
    const CudaAttentionTile& tile = at.tile;
    auto* const weights = reinterpret_cast<float*>(shared);  // [kKeys][64 rows]
    float* const values = weights + kKeys * kRowFloats;      // [kKeys][kWidth]
    float* const queries = values;                           // [kDepth][64 rows]
    float* const keys = values + kDepth * kRowFloats;        // [kDepth][kKeys]
    const std::uint64_t q_stride = static_cast<std::uint64_t>(op.heads) * op.head_dim;
    const std::byte* const q =
        op.q + (tile.q_row * q_stride + at.head * op.head_dim) * kElementBytes<type>;
    const std::uint32_t own_dim = op.head_dim - op.shared_dim;

    const unsigned row = simt::thread_index() / 16 * 4;
    const unsigned column = simt::thread_index() % 16 * 4;
    std::uint32_t positions[4];
    LIBRARIAN_UNROLL
    for (unsigned i = 0; i < 4; ++i) {
      positions[i] = tile.position + row + i;
    }
    const float slope = slope_of(at.head);
    float out[kSlices][4][4] = {};
    float top[4] = {kLowest, kLowest, kLowest, kLowest};
    float sum[4] = {0, 0, 0, 0};
    const std::uint32_t end = visible_keys(tile, tile.position + tile.rows - 1).hi;
    const std::uint32_t first = visible_keys(tile, tile.position).lo / kKeys * kKeys;
    for (std::uint32_t chunk = first; chunk < end; chunk += kKeys) {
      const std::uint64_t kv_row = std::uint64_t{tile.kv_row} + chunk;
      const std::byte* const k_rows =
          op.k + (kv_row * op.k_strides.row + at.kv_head * op.k_strides.head) * kElementBytes<type>;
      const std::byte* const v_rows =
          op.v + (kv_row * op.v_strides.row + at.kv_head * op.v_strides.head) * kElementBytes<type>;
      float scores[4][4] = {};
      for (std::uint32_t d = 0; d < op.head_dim; d += kDepth) {
        simt::sync_threads();  // All are done with what lies there.
        load_turned(queries, tile.rows, d, [&](unsigned i, std::uint32_t dim) {
          return load_element<type>(q, i * q_stride + dim);
        });
        load_turned(keys, end - chunk, d, [&](unsigned i, std::uint32_t dim) {
          return dim < own_dim ? load_element<type>(k_rows, i * op.k_strides.row + dim)
                               : load_element<type>(op.k_shared,
                                                    (kv_row + i) * op.shared_dim + dim - own_dim);
        });
        simt::sync_threads();
        for (unsigned i = 0; i < kDepth; ++i) {
          multiply(scores, queries + i * kRowFloats + row, keys + i * kRowFloats + column);
        }
      }
      const bool everything = sight(tile, tile.position, tile.rows, chunk, kKeys).everything(kKeys);
      KeyRange ranges[4];
      LIBRARIAN_UNROLL
      for (unsigned i = 0; i < 4; ++i) {
        ranges[i] = in_chunk(visible_keys(tile, positions[i]), chunk, kKeys);
      }
      to_scores(scores, slope, positions, ranges, everything, chunk,
                [column](int j) { return column + static_cast<std::uint32_t>(j); });
      LIBRARIAN_UNROLL
      for (unsigned i = 0; i < 4; ++i) {
        const float shrink = softmax<16>(scores[i], top[i], sum[i]);
        LIBRARIAN_UNROLL
        for (unsigned slice = 0; slice < kSlices; ++slice) {
          LIBRARIAN_UNROLL
          for (float& x : out[slice][i]) {
            x *= shrink;
          }
        }
      }
      LIBRARIAN_UNROLL
      for (unsigned j = 0; j < 4; ++j) {
        LIBRARIAN_UNROLL
        for (unsigned i = 0; i < 4; ++i) {
          weights[(column + j) * kRowFloats + row + i] = scores[i][j];
        }
      }
      LIBRARIAN_UNROLL
      for (unsigned slice = 0; slice < kSlices; ++slice) {
        if (slice * kWidth >= op.value_dim) {
          continue;
        }
        simt::sync_threads();  // As above.
        load_values(values, v_rows, op.v_strides.row, end - chunk, slice * kWidth);
        simt::sync_threads();
        if (everything) {
          for (unsigned key = 0; key < kKeys; ++key) {
            multiply(out[slice], weights + key * kRowFloats + row,
                     values + key * kRowFloats + column);
          }
        } else {
          for (unsigned key = 0; key < kKeys; ++key) {
            multiply_seen(out[slice], weights + key * kRowFloats + row,
                          values + key * kRowFloats + column, ranges, key);
          }
        }
      }
    }
    // Where the output comes in the queries' place, only this block reads these rows, and all of it
    // has, before the last barrier.
    std::byte* const y = output(at, kElementBytes<type>);
    LIBRARIAN_UNROLL
    for (unsigned i = 0; i < 4; ++i) {
      const float last = last_factor<16>(at.head, positions[i], top[i], sum[i]);
      LIBRARIAN_UNROLL
      for (unsigned slice = 0; slice < kSlices; ++slice) {
        LIBRARIAN_UNROLL
        for (unsigned j = 0; j < 4; ++j) {
          const std::uint32_t d = slice * kWidth + column + j;
          if (row + i < tile.rows && d < op.value_dim) {
            store_element<type>(finished(out[slice][i][j], last), y, (row + i) * op.y_stride + d);
          }
        }
      }
    }
  }

 private:
  struct alignas(16) Four {
    float at[4];
  };

  /// sums[i][j] += left[i] * right[j].
  LIBRARIAN_KERNEL_BODY static void multiply(float (&sums)[4][4], const float* left,
                                             const float* right) {
    const Four a = *reinterpret_cast<const Four*>(left);
    const Four b = *reinterpret_cast<const Four*>(right);
    LIBRARIAN_UNROLL
    for (unsigned i = 0; i < 4; ++i) {
      LIBRARIAN_UNROLL
      for (unsigned j = 0; j < 4; ++j) {
        sums[i][j] = simt::fused_multiply_add(a.at[i], b.at[j], sums[i][j]);
      }
    }
  }
  /// The same, for the rows that see the key.
  LIBRARIAN_KERNEL_BODY static void multiply_seen(float (&sums)[4][4], const float* left,
                                                  const float* right, const KeyRange (&ranges)[4],
                                                  std::uint32_t key) {
    float added[4][4];
    LIBRARIAN_UNROLL
    for (unsigned i = 0; i < 4; ++i) {
      LIBRARIAN_UNROLL
      for (unsigned j = 0; j < 4; ++j) {
        added[i][j] = sums[i][j];
      }
    }
    multiply(added, left, right);
    LIBRARIAN_UNROLL
    for (unsigned i = 0; i < 4; ++i) {
      const bool seen = ranges[i].has(key);
      LIBRARIAN_UNROLL
      for (unsigned j = 0; j < 4; ++j) {
        sums[i][j] = seen ? added[i][j] : sums[i][j];
      }
    }
  }

  /// to[i][row] = read(row, d + i), zeros beyond `rows` and head_dim.
  template <typename Read>
  LIBRARIAN_KERNEL_BODY void load_turned(float* to, std::uint32_t rows, std::uint32_t d,
                                         const Read& read) const {
    // A warp has 8 dimensions of 4 rows: whole sectors of memory, and every bank once.
    LIBRARIAN_ROLLED
    for (unsigned i = simt::thread_index(); i < kDepth * 64; i += kThreads) {
      const unsigned depth = i % 8 + i / 32 % (kDepth / 8) * 8;
      const unsigned row = i / 8 % 4 + i / (4 * kDepth) * 4;
      const bool valid = row < rows && d + depth < op.head_dim;
      to[depth * kRowFloats + row] = valid ? read(row, d + depth) : 0.0F;
    }
  }
  /// to[row][i] = element d + i of a row, zeros beyond `rows` and value_dim.
  LIBRARIAN_KERNEL_BODY void load_values(float* to, const std::byte* from, std::uint64_t stride,
                                         std::uint32_t rows, std::uint32_t d) const {
    LIBRARIAN_ROLLED
    for (unsigned i = simt::thread_index(); i < kKeys * kWidth; i += kThreads) {
      const unsigned row = i / kWidth;
      const bool valid = row < rows && d + i % kWidth < op.value_dim;
      to[row * kRowFloats + i % kWidth] =
          valid ? load_element<type>(from, row * stride + d + i % kWidth) : 0.0F;
    }
  }
};

// NOLINTEND(bugprone-implicit-widening-of-multiplication-result)

}  // namespace librarian::gpu_exec
