#include "gpu_exec/cpu_isa.h"

#include <cpuid.h>

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

}  // namespace

const char* cpu_isa_name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::portable:
      return "portable";
    case CpuIsa::avx2:
      return "avx2";
    case CpuIsa::avx512:
      return "avx512";
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
  }
  LIB_CHECK(false);
}

CpuIsa best_cpu_isa() {
  for (const CpuIsa isa : {CpuIsa::avx512, CpuIsa::avx2}) {
    if (cpu_has_isa(isa)) {
      return isa;
    }
  }
  return CpuIsa::portable;
}

const CpuKernels& cpu_kernels(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::portable:
      return portable_kernels();
    case CpuIsa::avx2:
      return avx2_kernels();
    case CpuIsa::avx512:
      return avx512_kernels();
  }
  LIB_CHECK(false);
}

}  // namespace librarian::gpu_exec
