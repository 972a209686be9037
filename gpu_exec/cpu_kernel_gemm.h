// Matrix products; part of cpu_kernel_bodies.h, which kernels_<path>.cc includes after it has
// defined Vec, its primitives, kMicroRows and load and store per storage type; see cpu_kernels.h.
// No include guard on purpose: one inclusion per file.
//
// Order of arithmetic of one output, the same whatever tile it is in: for each run of kDepth
// inputs a sum from zero, one multiply_add per input in order; these sums added in order to an
// f32 accumulator; then the bias, then the activation, then one rounding.

namespace librarian::gpu_exec {
namespace {

constexpr std::uint64_t kPanel = 2 * kLanes;  // Columns of the micro kernel.
constexpr std::uint64_t kDepth = 256;         // Inputs per sum: a widened panel stays in L1.
// Distance of f32 rows in scratch; 17 cache lines, so that consecutive rows use different sets.
constexpr std::uint64_t kRowStride = kDepth + 16;
constexpr std::uint64_t kTileRows = std::uint64_t{10} * kMicroRows;
constexpr std::uint64_t kTileColumns = 256;

constexpr std::uint64_t smaller(std::uint64_t a, std::uint64_t b) { return a < b ? a : b; }
constexpr std::uint64_t larger(std::uint64_t a, std::uint64_t b) { return a > b ? a : b; }
constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

/// Reads `count` < kLanes elements, the rest as zeros.
template <typename Storage>
inline Vec load_part(const std::byte* from, std::uint64_t count) {
  alignas(64) std::byte buffer[kLanes * sizeof(float)] = {};
  __builtin_memcpy(buffer, from, count * Storage::kBytes);
  return Storage::load(buffer);
}
template <typename Storage>
inline void store_part(Vec value, std::byte* to, std::uint64_t count) {
  alignas(64) std::byte buffer[kLanes * sizeof(float)];
  Storage::store(value, buffer);
  __builtin_memcpy(to, buffer, count * Storage::kBytes);
}
inline Vec load_f32(const float* from) {
  return F32::load(reinterpret_cast<const std::byte*>(from));
}
inline void store_f32(Vec value, float* to) { F32::store(value, reinterpret_cast<std::byte*>(to)); }

/// Calls function(storage tag) for `type`.
template <typename Function>
inline void with_storage(DType type, Function function) {
  switch (type) {
    case DType::bf16:
      return function(Bf16());
    case DType::f16:
      return function(F16());
    case DType::f32:
      return function(F32());
  }
}

/// Widens `count` elements into `to`, and zeros up to the next multiple of kLanes.
template <typename Storage>
inline void widen_row(const std::byte* from, std::uint64_t count, float* to) {
  std::uint64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store_f32(Storage::load(from + i * Storage::kBytes), to + i);
  }
  if (i < count) {
    store_f32(load_part<Storage>(from + i * Storage::kBytes, count - i), to + i);
  }
}
template <typename Storage>
inline void narrow_row(const float* from, std::uint64_t count, std::byte* to) {
  std::uint64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Storage::store(load_f32(from + i), to + i * Storage::kBytes);
  }
  if (i < count) {
    store_part<Storage>(load_f32(from + i), to + i * Storage::kBytes, count - i);
  }
}

/// c[R, kPanel] = a[R, depth] * b[depth, kPanel], or added to c. Rows of `a` are kRowStride apart.
template <int R>
void micro_kernel(const float* a, const float* b, std::uint64_t depth, float* c,
                  std::uint64_t c_stride, bool add) {
  Vec sum[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    sum[r][0] = Vec(0.0F);
    sum[r][1] = Vec(0.0F);
  }
  for (std::uint64_t k = 0; k < depth; ++k) {
    const Vec b0 = load_f32(b);
    const Vec b1 = load_f32(b + kLanes);
    b += kPanel;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec x = Vec(a[static_cast<std::uint64_t>(r) * kRowStride + k]);
      sum[r][0] = multiply_add(x, b0, sum[r][0]);
      sum[r][1] = multiply_add(x, b1, sum[r][1]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    float* row = c + static_cast<std::uint64_t>(r) * c_stride;
    if (add) {
      sum[r][0] = load_f32(row) + sum[r][0];
      sum[r][1] = load_f32(row + kLanes) + sum[r][1];
    }
    store_f32(sum[r][0], row);
    store_f32(sum[r][1], row + kLanes);
  }
}

template <int R>
inline void micro_remainder(std::uint64_t rows, const float* a, const float* b, std::uint64_t depth,
                            float* c, std::uint64_t c_stride, bool add) {
  if (rows == R) {
    return micro_kernel<R>(a, b, depth, c, c_stride, add);
  }
  if constexpr (R > 1) {
    micro_remainder<R - 1>(rows, a, b, depth, c, c_stride, add);
  }
}

/// The same for any number of rows; each row sees the operations of micro_kernel<1>.
inline void multiply_rows(std::uint64_t rows, const float* a, const float* b, std::uint64_t depth,
                          float* c, std::uint64_t c_stride, bool add) {
  std::uint64_t r = 0;
  for (; r + kMicroRows <= rows; r += kMicroRows) {
    micro_kernel<kMicroRows>(a + r * kRowStride, b, depth, c + r * c_stride, c_stride, add);
  }
  if (r < rows) {
    micro_remainder<kMicroRows - 1>(rows - r, a + r * kRowStride, b, depth, c + r * c_stride,
                                    c_stride, add);
  }
}

/// Scratch of one linear task.
struct LinearScratch {
  float* a;     // [kTileRows, kRowStride]
  float* b;     // [kDepth, kPanel]
  float* c[2];  // [kTileRows, kTileColumns] each
};
constexpr std::uint64_t kLinearScratchFloats =
    kTileRows * kRowStride + kDepth * kPanel + 2 * kTileRows * kTileColumns;

inline LinearScratch split_linear_scratch(float* scratch) {
  float* b = scratch + kTileRows * kRowStride;
  float* c = b + kDepth * kPanel;
  return {scratch, b, {c, c + kTileRows * kTileColumns}};
}

/// Adds inputs [k_begin, k_begin + depth) to the accumulators of one matrix.
template <typename Weight>
inline void multiply_panels(const LinearTile& tile, const WeightView& matrix, std::uint64_t k_begin,
                            std::uint64_t depth, const LinearScratch& scratch, float* c) {
  const std::uint64_t rows = tile.row_end - tile.row_begin;
  for (std::uint64_t n = tile.column_begin; n < tile.column_end; n += kPanel) {
    const std::byte* packed = matrix.packed + (n * tile.inputs + k_begin * kPanel) * Weight::kBytes;
    const float* b = scratch.b;
    if constexpr (Weight::kBytes == sizeof(float)) {
      b = reinterpret_cast<const float*>(packed);  // Panels begin at multiples of 32 bytes.
    } else {
      widen_row<Weight>(packed, depth * kPanel, scratch.b);
    }
    multiply_rows(rows, scratch.a, b, depth, c + (n - tile.column_begin), kTileColumns,
                  k_begin > 0);
  }
}

inline Vec activated(Activation activation, Vec x) {
  switch (activation) {
    case Activation::identity:
      return x;
    case Activation::silu:
      return silu(x);
    case Activation::gelu:
      return gelu(x);
    case Activation::gelu_tanh:
      return gelu_tanh(x);
    case Activation::relu:
      return relu(x);
    case Activation::relu_squared:
      return relu(x) * relu(x);
  }
  __builtin_unreachable();
}

/// Bias, activation and rounding of one row of the tile.
template <typename Storage>
inline void finish_row(const LinearTile& tile, const float* first, const float* second,
                       std::byte* y) {
  const std::uint64_t columns = tile.column_end - tile.column_begin;
  const auto value_at = [&](const WeightView& matrix, const float* c, std::uint64_t i) {
    Vec value = load_f32(c + i);
    if (matrix.bias != nullptr) {
      const float* bias = matrix.bias + tile.column_begin + i;
      value = value + (i + kLanes <= columns
                           ? load_f32(bias)
                           : load_part<F32>(reinterpret_cast<const std::byte*>(bias), columns - i));
    }
    return value;
  };
  for (std::uint64_t i = 0; i < columns; i += kLanes) {
    Vec value = activated(tile.activation, value_at(tile.matrices[0], first, i));
    if (tile.glu) {
      value = value * value_at(tile.matrices[1], second, i);
    }
    std::byte* to = y + i * Storage::kBytes;
    if (i + kLanes <= columns) {
      Storage::store(value, to);
    } else {
      store_part<Storage>(value, to, columns - i);
    }
  }
}

template <typename Storage>
void linear_rows(const LinearTile& tile) {
  const LinearScratch scratch = split_linear_scratch(tile.scratch);
  const std::uint64_t rows = tile.row_end - tile.row_begin;
  const int matrices = tile.glu ? 2 : 1;
  for (std::uint64_t k = 0; k < tile.inputs; k += kDepth) {
    const std::uint64_t depth = smaller(kDepth, tile.inputs - k);
    for (std::uint64_t r = 0; r < rows; ++r) {
      widen_row<Storage>(tile.x + ((tile.row_begin + r) * tile.inputs + k) * Storage::kBytes, depth,
                         scratch.a + r * kRowStride);
    }
    for (int m = 0; m < matrices; ++m) {
      with_storage(tile.matrices[m].type, [&](auto weight) {
        multiply_panels<decltype(weight)>(tile, tile.matrices[m], k, depth, scratch, scratch.c[m]);
      });
    }
  }
  for (std::uint64_t r = 0; r < rows; ++r) {
    finish_row<Storage>(
        tile, scratch.c[0] + r * kTileColumns, scratch.c[1] + r * kTileColumns,
        tile.y + ((tile.row_begin + r) * tile.outputs + tile.column_begin) * Storage::kBytes);
  }
}

void linear_tile(const LinearTile& tile) {
  with_storage(tile.dtype, [&](auto storage) { linear_rows<decltype(storage)>(tile); });
}

}  // namespace
}  // namespace librarian::gpu_exec
