#include "tests/gpu_exec/emulated_amx.h"

#include <atomic>
#include <cmath>

namespace librarian::gpu_exec {
namespace {

constexpr std::uint64_t kLanes = 16;
constexpr int kMicroRows = 4;
constexpr int kRowsReadTwice = 0;
constexpr bool kBf16InPairs = true;

std::atomic<std::uint64_t> misuses = 0;

}  // namespace
}  // namespace librarian::gpu_exec

#include "gpu_exec/cpu_vector_portable.h"

namespace librarian::gpu_exec {
namespace {

/// As if by the processor; see cpu_kernel_amx.h.
/// @source Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS,
/// TILELOADD, TILESTORED, TILEZERO.
struct Tiles {
  struct Row {
    float lane[16];
  };
  struct State {
    bool configured = false;
    Row tile[8][16];
  };
  static State& state() {
    thread_local State mine;
    return mine;
  }
  static State& used() {
    if (!state().configured) {
      ++misuses;
    }
    return state();
  }

  static void configure() {
    if (state().configured) {
      ++misuses;
    }
    state() = {};
    state().configured = true;
  }
  static void release() { used().configured = false; }
  template <int T>
  static void zero() {
    for (Row& row : used().tile[T]) {
      row = {};
    }
  }
  template <int T>
  static void load(const void* from, std::uint64_t stride) {
    for (int r = 0; r < 16; ++r) {
      __builtin_memcpy(&used().tile[T][r], static_cast<const std::byte*>(from) + r * stride, 64);
    }
  }
  template <int T>
  static void store(void* to, std::uint64_t stride) {
    for (int r = 0; r < 16; ++r) {
      __builtin_memcpy(static_cast<std::byte*>(to) + r * stride, &used().tile[T][r], 64);
    }
  }
  template <int C, int A, int B>
  static void dot() {
    State& tiles = used();
    for (int m = 0; m < 16; ++m) {
      Row even{};
      Row odd{};
      for (int k = 0; k < 16; ++k) {
        const float a = tiles.tile[A][m].lane[k];
        for (int n = 0; n < 16; ++n) {
          const float b = tiles.tile[B][k].lane[n];
          even.lane[n] = flushed(std::fma(low(a), low(b), even.lane[n]));
          odd.lane[n] = flushed(std::fma(high(a), high(b), odd.lane[n]));
        }
      }
      for (int n = 0; n < 16; ++n) {
        float& c = tiles.tile[C][m].lane[n];
        c = flushed(flushed(c) + flushed(even.lane[n] + odd.lane[n]));
      }
    }
  }

 private:
  /// Subnormal numbers as zero.
  static float flushed(float value) {
    return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0F, value) : value;
  }
  static float low(float pair) { return flushed(float_of(bits_of(pair) << 16U)); }
  static float high(float pair) { return flushed(float_of(bits_of(pair) & 0xFFFF0000U)); }
};

}  // namespace
}  // namespace librarian::gpu_exec

#include "gpu_exec/cpu_kernel_amx.h"

namespace librarian::gpu_exec {
namespace {

void linear_tile_emulated(const LinearTile& tile) {
  takes_tiles(tile) ? multiply_in_tiles(tile) : linear_tile(tile);
}

LinearShape linear_shape_emulated(const LinearTile& whole) {
  return takes_tiles(whole) ? amx_shape(whole) : linear_shape(whole);
}

std::uint64_t peak_emulated(DType /*type*/, std::uint64_t rounds, float* sink) {
  return peak_of_tiles(rounds, sink);
}

}  // namespace

CpuKernels emulated_amx_kernels() {
  CpuKernels kernels = portable_kernels();
  kernels.panel_columns = kPanel;
  kernels.bf16_in_pairs = true;
  kernels.linear = linear_tile_emulated;
  kernels.linear_shape = linear_shape_emulated;
  kernels.linear_scratch_floats = larger(kLinearScratchFloats, kAmxScratchFloats);
  kernels.peak = peak_emulated;
  return kernels;
}

std::uint64_t misused_tiles() { return misuses.load(); }

}  // namespace librarian::gpu_exec
