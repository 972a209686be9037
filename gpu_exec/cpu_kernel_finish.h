// What follows a matrix product: bias, activation and the one rounding; part of
// cpu_kernel_bodies.h.
#include "gpu_exec/cpu_kernel_vectors.h"

namespace librarian::gpu_exec {
namespace {

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
    case Activation::clamped_swish:
      return clamped_swish(x);
  }
  __builtin_unreachable();
}

/// Outputs [column, column + count) of one row, at `y`, from their sums in `first` (and, if the
/// tile is gated, `second`), which are readable up to the next multiple of kLanes.
template <typename Storage>
inline void finish_columns(const LinearTile& tile, std::uint64_t column, std::uint64_t count,
                           const float* first, const float* second, std::byte* y) {
  const auto value_at = [&](const WeightView& matrix, const float* sums, std::uint64_t i) {
    const Vec value = load_f32(sums + i);
    if (matrix.bias == nullptr) {
      return value;
    }
    const float* bias = matrix.bias + column + i;
    return value + (i + kLanes <= count
                        ? load_f32(bias)
                        : load_part<F32>(reinterpret_cast<const std::byte*>(bias), count - i));
  };
  for (std::uint64_t i = 0; i < count; i += kLanes) {
    Vec value = activated(tile.activation, value_at(tile.matrices[0], first, i));
    if (tile.glu) {
      const Vec up = value_at(tile.matrices[1], second, i);
      value = value * (tile.activation == Activation::clamped_swish ? clamped_up(up) : up);
    }
    std::byte* to = y + i * Storage::kBytes;
    if (i + kLanes <= count) {
      Storage::store(value, to);
    } else {
      store_part<Storage>(value, to, count - i);
    }
  }
}

}  // namespace
}  // namespace librarian::gpu_exec
