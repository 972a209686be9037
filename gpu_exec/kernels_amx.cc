// Compiled with -mamx-tile -mamx-bf16 and the flags of kernels_avx512.cc: nothing here may run
// before the CPU and the operating system were asked. What is not bf16 goes to that path.
#include "gpu_exec/cpu_vector_avx512.h"

namespace librarian::gpu_exec {
namespace {

constexpr int kMicroRows = 14;  // As kernels_avx512.cc, for what is common.
constexpr int kRowsReadTwice = 0;

/// See cpu_kernel_amx.h. Assembly: GCC's intrinsics are macros that want literal numbers, and the
/// one for the configuration tells the compiler of its first eight bytes only.
struct Tiles {
  static void configure() {
    struct alignas(64) Config {
      std::uint8_t palette = 1;
      std::uint8_t start_row = 0;
      std::uint8_t reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static_assert(sizeof(Config) == 64);
    const Config config;
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  static void release() { asm volatile("tilerelease"); }
  template <int T>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(T));
  }
  template <int T>
  static void load(const void* from, std::uint64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(T), "r"(from), "r"(stride) : "memory");
  }
  template <int T>
  static void store(void* to, std::uint64_t stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(T), "r"(to), "r"(stride) : "memory");
  }
  template <int C, int A, int B>
  static void dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  }
};

}  // namespace
}  // namespace librarian::gpu_exec

#include "gpu_exec/cpu_kernel_amx.h"

namespace librarian::gpu_exec {
namespace {

void linear_tile_amx(const LinearTile& tile) {
  takes_tiles(tile) ? multiply_in_tiles(tile) : avx512_kernels().linear(tile);
}

LinearShape linear_shape_amx(const LinearTile& whole) {
  return takes_tiles(whole) ? amx_shape(whole) : avx512_kernels().linear_shape(whole);
}

std::uint64_t peak_amx(DType type, std::uint64_t rounds, float* sink) {
  return type == DType::bf16 ? peak_of_tiles(rounds, sink)
                             : avx512_kernels().peak(type, rounds, sink);
}

}  // namespace

CpuKernels amx_kernels() {
  CpuKernels kernels = avx512_kernels();
  kernels.linear = linear_tile_amx;
  kernels.linear_shape = linear_shape_amx;
  kernels.linear_scratch_floats = larger(kernels.linear_scratch_floats, kAmxScratchFloats);
  kernels.peak = peak_amx;
  return kernels;
}

}  // namespace librarian::gpu_exec
