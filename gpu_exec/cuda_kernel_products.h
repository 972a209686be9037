#pragma once
/// CUDA kernel bodies of matrix products, with tensor cores and without. with_product_kernel()
/// chooses; see there. Private to gpu_exec.
/// @source CUTLASS's default multistage GEMM, for the shape of the tensor core kernel's pipeline

#include <cstddef>
#include <cstdint>

#include "gpu_exec/cuda_kernel_elements.h"
#include "gpu_exec/cuda_kernels.h"
#include "gpu_exec/cuda_simt.h"

namespace librarian::gpu_exec {

// Places in a tile are 32 bits wide: they are small, and addresses take few registers.
// NOLINTBEGIN(bugprone-implicit-widening-of-multiplication-result)

/// A tile of y.
struct ProductTile {
  std::uint64_t row = 0, output = 0;  ///< Its first ones.
};

/// Tiles of `tile_rows` rows and `tile_outputs` outputs, a block each.
struct ProductGrid {
  unsigned row_tiles, output_tiles;
  static ProductGrid of(const CudaProduct& op, unsigned tile_rows, unsigned tile_outputs) {
    return {static_cast<unsigned>((op.rows + tile_rows - 1) / tile_rows),
            static_cast<unsigned>((op.outputs + tile_outputs - 1) / tile_outputs)};
  }
  unsigned blocks() const { return row_tiles * output_tiles; }
  /// This block's tile. Blocks that run at one time lie in a square rather than in a line, so that
  /// they share more of what they read.
  LIBRARIAN_KERNEL_BODY ProductTile tile(unsigned tile_rows, unsigned tile_outputs) const {
    constexpr unsigned kGroup = 8;
    const unsigned group = simt::block_index_x() / (kGroup * output_tiles);
    const unsigned place = simt::block_index_x() % (kGroup * output_tiles);
    const unsigned first = group * kGroup;
    const unsigned rows = row_tiles - first < kGroup ? row_tiles - first : kGroup;
    return {static_cast<std::uint64_t>(first + place % rows) * tile_rows,
            static_cast<std::uint64_t>(place / rows) * tile_outputs};
  }
};

/// A matrix [rows, inputs] that a product reads.
struct ProductOperand {
  const std::byte* elements;
  std::uint64_t rows;
  std::uint64_t row_step, input_step;  ///< In elements, to the next row and to the next input.

  LIBRARIAN_KERNEL_BODY static ProductOperand x_of(const CudaProduct& op) {
    return {op.x, op.rows, op.x_stride, 1};
  }
  LIBRARIAN_KERNEL_BODY static ProductOperand w_of(const CudaProduct& op) {
    return {op.w, op.outputs, op.w_transposed ? 1 : op.w_stride, op.w_transposed ? op.w_stride : 1};
  }
};

/// Writes kUnit consecutive outputs of a row.
/// @param aligned  y's rows begin at multiples of 16 bytes.
template <DType type>
LIBRARIAN_KERNEL_BODY void store_outputs(const CudaProduct& op, std::uint64_t row,
                                         std::uint64_t output, bool aligned,
                                         const float (&values)[kUnit]) {
  if (row >= op.rows) {
    return;
  }
  if (op.out == DType::f32) {
    store_unit<DType::f32>(values, op.y + row * op.y_stride * kElementBytes<DType::f32>, output,
                           op.outputs, aligned);
  } else {
    store_unit<type>(values, op.y + row * op.y_stride * kElementBytes<type>, output, op.outputs,
                     aligned);
  }
}

/// Products of 16-bit elements with tensor cores. A block computes a tile of 128 rows and 128
/// outputs, 32 inputs a step, with 3 steps of copies under way; a warp has 64 rows and 32 outputs
/// of it.
/// @tparam aligned  Rows of x and w begin at multiples of 16 bytes and `inputs` is a multiple of 8,
///                  so that tiles are copied 16 bytes at a time; else element by element.
template <simt::MmaType mma_type, bool aligned>
struct TensorProduct {
  static constexpr DType kType = mma_type == simt::MmaType::bf16 ? DType::bf16 : DType::f16;
  static constexpr unsigned kThreads = 256;
  static constexpr unsigned kBlocksMin = 2;  ///< Per multiprocessor: limits the registers.
  static constexpr unsigned kTile = 128;
  static constexpr unsigned kDepth = 32;
  static constexpr unsigned kStages = 3;
  static constexpr unsigned kRowBytes = kDepth * 2;
  static constexpr unsigned kChunks = kRowBytes / 16;  ///< Of 16 bytes, a row.
  static constexpr unsigned kTileBytes = kTile * kRowBytes;
  static constexpr unsigned kSharedBytes = kStages * 2 * kTileBytes;

  CudaProduct op;
  ProductGrid grid;
  bool y_aligned;

  static TensorProduct of(const CudaProduct& op, bool y_aligned) {
    return {op, ProductGrid::of(op, kTile, kTile), y_aligned};
  }
  unsigned blocks() const { return grid.blocks(); }

  /// The chunks of a matrix's tiles that this thread copies.
  ///
  /// Chunks of a row change places in shared memory by a number of two bits that depends on the
  /// row, so that ldmatrix finds 8 rows in different banks. The 8 rows are consecutive in tiles of
  /// x; in tiles of w they are pairs, 8 apart: see multiply(). Hence the number: bits from
  /// `swizzle_shift` on of the row's.
  struct Copies {
    static constexpr unsigned kCount = kTile * kChunks / kThreads;
    static constexpr unsigned kRowsApart = kThreads / kChunks;
    const std::byte* from[kCount];
    unsigned inputs[kCount];  ///< From there on in the row; 0 beyond the rows.
    unsigned to;              ///< Offset in the tile of the first; the rows' numbers agree.
    std::uint64_t input_step;

    LIBRARIAN_KERNEL_BODY Copies(const ProductOperand& in, std::uint64_t first_row,
                                 unsigned row_inputs, unsigned swizzle_shift)
        : input_step(in.input_step) {
      const unsigned row = simt::thread_index() / kChunks;
      const unsigned chunk = simt::thread_index() % kChunks;
      to = row * kRowBytes + (chunk ^ (row >> swizzle_shift) % kChunks) * 16;
      LIBRARIAN_UNROLL
      for (unsigned n = 0; n < kCount; ++n) {
        const std::uint64_t matrix_row = first_row + row + n * kRowsApart;
        const bool there = matrix_row < in.rows && chunk * kUnit < row_inputs;
        from[n] = in.elements;
        if (there) {
          from[n] += 2 * (matrix_row * in.row_step + std::uint64_t{chunk} * kUnit * in.input_step);
        }
        inputs[n] = there ? row_inputs - chunk * kUnit : 0;
      }
    }

    /// Starts the copy of inputs [input, input + kDepth) of every row of the tile.
    LIBRARIAN_KERNEL_BODY void start(unsigned input, std::byte* tile) const {
      LIBRARIAN_UNROLL
      for (unsigned n = 0; n < kCount; ++n) {
        std::byte* const chunk = tile + to + n * kRowsApart * kRowBytes;
        if constexpr (aligned) {
          const bool valid = input < inputs[n];
          simt::copy_async_16(chunk, from[n] + (valid ? 2 * std::uint64_t{input} : 0), valid);
        } else {
          Words copied;
          LIBRARIAN_UNROLL
          for (unsigned j = 0; j < 4; ++j) {
            copied.word[j] = bits_at(n, input + 2 * j) | bits_at(n, input + 2 * j + 1) << 16U;
          }
          *reinterpret_cast<Words*>(chunk) = copied;
        }
      }
    }
    LIBRARIAN_KERNEL_BODY std::uint32_t bits_at(unsigned n, unsigned input) const {
      return input < inputs[n] ? reinterpret_cast<const std::uint16_t*>(from[n])[input * input_step]
                               : 0U;
    }
  };

  /// Sums of a thread: of its warp's 4 tiles of 16 rows by 4 tiles of 8 outputs.
  using Sums = float[4][4][4];

  /// sums += x * w^T for one step. Column c of the warp's output tile j is output
  /// 8 * (c / 2) + 2 * j + c % 2 of the warp's 32: that makes the sums of a thread in one row,
  /// columns 2t and 2t + 1 of each j, consecutive outputs from 8t on.
  /// @param x_row, w_row  Where this thread's rows begin in the tiles; see operator().
  LIBRARIAN_KERNEL_BODY static void multiply(const std::byte* x_tile, const std::byte* w_tile,
                                             unsigned x_row, unsigned w_row, Sums& sums) {
    LIBRARIAN_UNROLL
    for (unsigned half = 0; half < kDepth / 16; ++half) {
      const unsigned flip = half * 32;  // Two chunks further on, wherever they are.
      std::uint32_t w[2][4];
      LIBRARIAN_UNROLL
      for (unsigned pair = 0; pair < 2; ++pair) {
        simt::load_matrices(w[pair], w_tile + (w_row ^ flip) + pair * 4 * kRowBytes);
      }
      LIBRARIAN_UNROLL
      for (unsigned i = 0; i < 4; ++i) {
        std::uint32_t x[4];
        simt::load_matrices(x, x_tile + (x_row ^ flip) + i * 16 * kRowBytes);
        LIBRARIAN_UNROLL
        for (unsigned j = 0; j < 4; ++j) {
          simt::multiply_accumulate<mma_type>(sums[i][j], x, w[j / 2][j % 2 * 2],
                                              w[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }

  LIBRARIAN_KERNEL_BODY void operator()(std::byte* shared) const {
    const ProductTile tile = grid.tile(kTile, kTile);
    const auto inputs = static_cast<unsigned>(op.inputs);
    const Copies x(ProductOperand::x_of(op), tile.row, inputs, 1);
    const Copies w(ProductOperand::w_of(op), tile.output, inputs, 3);
    const unsigned lane = simt::thread_index() % simt::kWarpThreads;
    const unsigned warp = simt::thread_index() / simt::kWarpThreads;
    const unsigned warp_row = warp / 4 * 64;
    const unsigned warp_output = warp % 4 * 32;
    // The row whose address this thread gives to load_matrices(): of x, 16 rows by two chunks; of
    // w, two tiles of 8 outputs by two chunks each.
    const unsigned x_row = warp_row + lane % 16;
    const unsigned w_row = warp_output + lane % 8 / 2 * 8 + lane / 16 * 2 + lane % 2;
    const unsigned x_at = x_row * kRowBytes + (lane / 16 ^ x_row / 2 % kChunks) * 16;
    const unsigned w_at = w_row * kRowBytes + (lane / 8 % 2 ^ w_row / 8 % kChunks) * 16;

    const unsigned steps = (inputs + kDepth - 1) / kDepth;
    const auto start = [&](unsigned step, unsigned stage) {
      if (step < steps) {
        std::byte* const tiles = shared + stage * 2 * kTileBytes;
        x.start(step * kDepth, tiles);
        w.start(step * kDepth, tiles + kTileBytes);
      }
      simt::copies_commit();  // Also of nothing: what copies_wait() counts stays the same.
    };
    LIBRARIAN_UNROLL
    for (unsigned step = 0; step < kStages - 1; ++step) {
      start(step, step);
    }
    Sums sums = {};
    unsigned stage = 0;
    for (unsigned step = 0; step < steps; ++step) {
      simt::copies_wait<kStages - 2>();
      simt::sync_threads();
      // Into the stage of the step before, which every thread has left.
      start(step + kStages - 1, stage == 0 ? kStages - 1 : stage - 1);
      const std::byte* const tiles = shared + stage * 2 * kTileBytes;
      multiply(tiles, tiles + kTileBytes, x_at, w_at, sums);
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }

    const std::uint64_t output = tile.output + warp_output + lane % 4 * kUnit;
    LIBRARIAN_UNROLL
    for (unsigned i = 0; i < 4; ++i) {
      LIBRARIAN_UNROLL
      for (unsigned half = 0; half < 2; ++half) {
        float values[kUnit];
        LIBRARIAN_UNROLL
        for (unsigned j = 0; j < kUnit; ++j) {
          values[j] = sums[i][j / 2][2 * half + j % 2];
        }
        store_outputs<kType>(op, tile.row + warp_row + 16 * i + 8 * half + lane / 4, output,
                             y_aligned, values);
      }
    }
  }
};

/// Products in f32 without tensor cores, of elements widened on the way. A block computes a tile of
/// 128 rows and 64 outputs, 16 inputs a step; a thread 8 x 8 of it.
template <DType type>
struct PlainProduct {
  static constexpr unsigned kThreads = 128;
  static constexpr unsigned kBlocksMin = 3;  ///< Per multiprocessor: limits the registers.
  static constexpr unsigned kRows = 128;
  static constexpr unsigned kOutputs = 64;
  static constexpr unsigned kDepth = 16;
  static constexpr unsigned kUnits = kDepth / kUnit;  ///< A row.
  /// Shared memory has a row per input; one more unit of 16 bytes moves its columns to other banks.
  static constexpr unsigned kXFloats = kRows + 4;
  static constexpr unsigned kWFloats = kOutputs + 4;
  static constexpr unsigned kStageFloats = kDepth * (kXFloats + kWFloats);
  static constexpr unsigned kSharedBytes = 2 * kStageFloats * sizeof(float);

  CudaProduct op;
  ProductGrid grid;
  bool x_aligned, w_aligned, y_aligned;  ///< Rows begin at multiples of 16 bytes.

  static PlainProduct of(const CudaProduct& op, bool y_aligned) {
    return {op, ProductGrid::of(op, kRows, kOutputs),
            rows_aligned(op.x, op.x_stride * kElementBytes<type>),
            rows_aligned(op.w, op.w_stride * kElementBytes<type>), y_aligned};
  }
  unsigned blocks() const { return grid.blocks(); }

  /// Units of a matrix's tile of `tile_rows` rows that this thread loads.
  template <unsigned tile_rows>
  struct Part {
    static constexpr unsigned kCount = tile_rows * kUnits / kThreads;
    float value[kCount][kUnit];

    LIBRARIAN_KERNEL_BODY static unsigned row_of(unsigned n) {
      return (n * kThreads + simt::thread_index()) / kUnits;
    }
    LIBRARIAN_KERNEL_BODY static unsigned input_of() {
      return simt::thread_index() % kUnits * kUnit;
    }

    LIBRARIAN_KERNEL_BODY void load(const ProductOperand& in, std::uint64_t first_row,
                                    std::uint64_t first_input, std::uint64_t inputs,
                                    bool rows_are_aligned) {
      const std::uint64_t input = first_input + input_of();
      LIBRARIAN_UNROLL
      for (unsigned n = 0; n < kCount; ++n) {
        const std::uint64_t row = first_row + row_of(n);
        const bool there = row < in.rows;
        if (in.input_step == 1) {
          const std::byte* const from =
              in.elements + (there ? row * in.row_step * kElementBytes<type> : 0);
          load_unit<type>(from, input, there ? inputs : 0, rows_are_aligned, value[n]);
          continue;
        }
        LIBRARIAN_UNROLL
        for (unsigned j = 0; j < kUnit; ++j) {
          value[n][j] =
              there && input + j < inputs
                  ? load_element<type>(in.elements, row * in.row_step + (input + j) * in.input_step)
                  : 0.0F;
        }
      }
    }
    /// @param column  Where in its rows `tile` has a row of the matrix.
    template <typename Column>
    LIBRARIAN_KERNEL_BODY void store(float* tile, unsigned row_floats, const Column& column) const {
      LIBRARIAN_UNROLL
      for (unsigned n = 0; n < kCount; ++n) {
        LIBRARIAN_UNROLL
        for (unsigned j = 0; j < kUnit; ++j) {
          tile[(input_of() + j) * row_floats + column(row_of(n))] = value[n][j];
        }
      }
    }
  };

  LIBRARIAN_KERNEL_BODY static void load_four(const float* from, float* to) {
    const Words in = *reinterpret_cast<const Words*>(from);
    LIBRARIAN_UNROLL
    for (unsigned i = 0; i < 4; ++i) {
      to[i] = float_of(in.word[i]);
    }
  }

  LIBRARIAN_KERNEL_BODY void operator()(std::byte* shared) const {
    const ProductTile tile = grid.tile(kRows, kOutputs);
    const ProductOperand x_in = ProductOperand::x_of(op);
    const ProductOperand w_in = ProductOperand::w_of(op);
    auto* const stages = reinterpret_cast<float*>(shared);
    const unsigned thread_row = simt::thread_index() / 8 * 4;     // And the 3 after, and 64 on.
    const unsigned thread_output = simt::thread_index() % 8 * 4;  // So too in the tile, 32 on.
    Part<kRows> x;
    Part<kOutputs> w;
    const auto load = [&](std::uint64_t input) {
      x.load(x_in, tile.row, input, op.inputs, x_aligned);
      w.load(w_in, tile.output, input, op.inputs, w_aligned);
    };
    const auto store = [&](float* stage) {
      x.store(stage, kXFloats, [](unsigned row) { return row; });
      // Outputs [8n, 8n + 8) come apart into columns 4n and 32 + 4n: each thread has 8 in a row.
      w.store(stage + kDepth * kXFloats, kWFloats, [](unsigned output) {
        return output / 8 * 4 + output % 4 + output / 4 % 2 * (kOutputs / 2);
      });
    };

    float sums[8][8] = {};
    const auto steps = static_cast<unsigned>((op.inputs + kDepth - 1) / kDepth);
    if (steps != 0) {
      load(0);
      store(stages);
      simt::sync_threads();
    }
    for (unsigned step = 0; step < steps; ++step) {
      const bool more = step + 1 < steps;
      if (more) {
        load(static_cast<std::uint64_t>(step + 1) * kDepth);
      }
      const float* const stage = stages + step % 2 * kStageFloats;
      LIBRARIAN_UNROLL
      for (unsigned k = 0; k < kDepth; ++k) {
        const float* const x_row = stage + k * kXFloats + thread_row;
        const float* const w_row = stage + kDepth * kXFloats + k * kWFloats + thread_output;
        float a[8];
        float b[8];
        load_four(x_row, a);
        load_four(x_row + kRows / 2, a + 4);
        load_four(w_row, b);
        load_four(w_row + kOutputs / 2, b + 4);
        LIBRARIAN_UNROLL
        for (unsigned i = 0; i < 8; ++i) {
          LIBRARIAN_UNROLL
          for (unsigned j = 0; j < 8; ++j) {
            sums[i][j] = simt::fused_multiply_add(a[i], b[j], sums[i][j]);
          }
        }
      }
      if (more) {
        // The other stage: every thread left it before the last barrier.
        store(stages + (step + 1) % 2 * kStageFloats);
        simt::sync_threads();
      }
    }
    LIBRARIAN_UNROLL
    for (unsigned i = 0; i < 8; ++i) {
      store_outputs<type>(op, tile.row + thread_row + i % 4 + i / 4 * (kRows / 2),
                          tile.output + thread_output * 2, y_aligned, sums[i]);
    }
  }
};

// NOLINTEND(bugprone-implicit-widening-of-multiplication-result)

/// Calls launch(kernel) with the kernel that computes `op`: a value to pass to the device, with
/// blocks() and the constants kThreads, kBlocksMin and kSharedBytes, whose operator()(shared) each
/// thread of each block calls; `shared` is aligned to 16. Tests run the same kernels.
/// @param op            `rows` and `outputs` above 0, `inputs` below 2^31, and below 2^31 blocks.
/// @param tensor_cores  Multiply 16-bit elements with them; of f32 there is one kernel only.
template <typename Launch>
inline void with_product_kernel(const CudaProduct& op, bool tensor_cores, const Launch& launch) {
  const bool y_aligned = rows_aligned(op.y, op.y_stride * dtype_bytes(op.out));
  if (!tensor_cores || op.type == DType::f32) {
    with_element(op.type, [&](auto element) {
      launch(PlainProduct<decltype(element)::kType>::of(op, y_aligned));
    });
    return;
  }
  const bool aligned = !op.w_transposed && op.inputs % kUnit == 0 &&
                       rows_aligned(op.x, op.x_stride * 2) && rows_aligned(op.w, op.w_stride * 2);
  if (op.type == DType::bf16) {
    aligned ? launch(TensorProduct<simt::MmaType::bf16, true>::of(op, y_aligned))
            : launch(TensorProduct<simt::MmaType::bf16, false>::of(op, y_aligned));
  } else {
    aligned ? launch(TensorProduct<simt::MmaType::f16, true>::of(op, y_aligned))
            : launch(TensorProduct<simt::MmaType::f16, false>::of(op, y_aligned));
  }
}

}  // namespace librarian::gpu_exec
