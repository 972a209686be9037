#include "gpu_exec/cpu_isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>

namespace librarian::gpu_exec {
namespace {

bool has_f16c() {
  unsigned int eax = 0;
  unsigned int ebx = 0;
  unsigned int ecx = 0;
  unsigned int edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

// The compiler's support routine also asks whether the operating system saves the registers.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 && has_f16c();
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") != 0 &&
         __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
         __builtin_cpu_supports("avx512dq") != 0;
}

// GCC 12's support routine knows AMX, clang 14's does not.
bool cpu_has_amx() {
  constexpr unsigned int kOsSavesRegisters = 1U << 27U;  // Leaf 1, ecx.
  constexpr unsigned int kAmxBf16 = 1U << 22U;           // Leaf 7, edx.
  constexpr unsigned int kAmxTile = 1U << 24U;
  constexpr unsigned int kTileState = 3U << 17U;  // XCR0: tile configuration and data.
  unsigned int eax = 0;
  unsigned int ebx = 0;
  unsigned int ecx = 0;
  unsigned int edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & kOsSavesRegisters) == 0 ||
      __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 ||
      (edx & (kAmxBf16 | kAmxTile)) != (kAmxBf16 | kAmxTile)) {
    return false;
  }
  asm("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return (eax & kTileState) == kTileState;
}

/// Linux lets a process use tiles, with their 8 KiB of state per thread, only after it asked.
bool may_use_tiles() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM, of asm/prctl.h since 5.16.
  constexpr int kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool has_amx() {
  static const bool has = has_avx512() && cpu_has_amx() && may_use_tiles();
  return has;
}

}  // namespace

const char* cpu_isa_name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::portable:
      return "portable";
    case CpuIsa::avx2:
      return "avx2";
    case CpuIsa::avx512:
      return "avx512";
    case CpuIsa::amx:
      return "amx";
  }
  LIB_CHECK(false);
}

bool cpu_has_isa(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::portable:
      return true;
    case CpuIsa::avx2:
      return has_avx2();
    case CpuIsa::avx512:
      return has_avx512();
    case CpuIsa::amx:
      return has_amx();
  }
  LIB_CHECK(false);
}

CpuIsa best_cpu_isa() {
  return *std::find_if(std::rbegin(kCpuIsas), std::rend(kCpuIsas), cpu_has_isa);
}

CpuKernels cpu_kernels(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::portable:
      return portable_kernels();
    case CpuIsa::avx2:
      return avx2_kernels();
    case CpuIsa::avx512:
      return avx512_kernels();
    case CpuIsa::amx:
      return amx_kernels();
  }
  LIB_CHECK(false);
}

}  // namespace librarian::gpu_exec
