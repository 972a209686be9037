#pragma once
/// Rows of bf16, f16 or f32 as CUDA kernel bodies read and write them: eight elements at a time,
/// in accesses of 16 bytes where they may be. Private to gpu_exec.

#include <cstddef>
#include <cstdint>

#include "gpu_exec/cuda_simt.h"
#include "gpu_exec/model_spec.h"
#include "gpu_exec/row_functors.h"

// Before a loop: arrays that it indexes stay in registers.
#ifdef __CUDACC__
#define LIBRARIAN_UNROLL _Pragma("unroll")
#else
#define LIBRARIAN_UNROLL
#endif

namespace librarian::gpu_exec {

/// Elements that a thread reads or writes at once.
inline constexpr unsigned kUnit = 8;

/// 16 bytes in one access; any element types lie in them.
struct __attribute__((may_alias, aligned(16))) Words {
  std::uint32_t word[4];
};

/// Elements of each type: their bits, and f32 values.
template <DType type>
struct Element;
template <>
struct Element<DType::bf16> {
  using Bits = std::uint16_t;
  LIBRARIAN_KERNEL_BODY static float widen(Bits bits) { return bf16_to_f32(bits); }
  LIBRARIAN_KERNEL_BODY static Bits narrow(float value) { return f32_to_bf16(value); }
};
template <>
struct Element<DType::f16> {
  using Bits = std::uint16_t;
  LIBRARIAN_KERNEL_BODY static float widen(Bits bits) { return f16_to_f32(bits); }
  LIBRARIAN_KERNEL_BODY static Bits narrow(float value) { return f32_to_f16(value); }
};
template <>
struct Element<DType::f32> {
  using Bits = std::uint32_t;
  LIBRARIAN_KERNEL_BODY static float widen(Bits bits) { return float_of(bits); }
  LIBRARIAN_KERNEL_BODY static Bits narrow(float value) { return bits_of(value); }
};

template <DType type>
inline constexpr std::uint64_t kElementBytes = sizeof(typename Element<type>::Bits);

template <DType type>
LIBRARIAN_KERNEL_BODY float load_element(const std::byte* row, std::uint64_t i) {
  typename Element<type>::Bits bits;
  __builtin_memcpy(&bits, __builtin_assume_aligned(row + i * sizeof bits, sizeof bits),
                   sizeof bits);
  return Element<type>::widen(bits);
}
template <DType type>
LIBRARIAN_KERNEL_BODY void store_element(float value, std::byte* row, std::uint64_t i) {
  const typename Element<type>::Bits bits = Element<type>::narrow(value);
  __builtin_memcpy(__builtin_assume_aligned(row + i * sizeof bits, sizeof bits), &bits,
                   sizeof bits);
}

/// out = elements [i, i + kUnit) of a row, zeros from `width` on, where nothing is read.
/// @param i        A multiple of kUnit.
/// @param aligned  The row begins at a multiple of 16 bytes.
template <DType type>
LIBRARIAN_KERNEL_BODY void load_unit(const std::byte* row, std::uint64_t i, std::uint64_t width,
                                     bool aligned, float (&out)[kUnit]) {
  constexpr unsigned kBytes = kElementBytes<type>;
  if (aligned && i + kUnit <= width) {
    LIBRARIAN_UNROLL
    for (std::size_t part = 0; part < kUnit * kBytes / 16; ++part) {
      const Words in = reinterpret_cast<const Words*>(row + i * kBytes)[part];
      LIBRARIAN_UNROLL
      for (std::size_t j = 0; j < 4; ++j) {
        if constexpr (kBytes == 4) {
          out[4 * part + j] = float_of(in.word[j]);
        } else {
          out[2 * j] = Element<type>::widen(static_cast<std::uint16_t>(in.word[j]));
          out[2 * j + 1] = Element<type>::widen(static_cast<std::uint16_t>(in.word[j] >> 16U));
        }
      }
    }
    return;
  }
  LIBRARIAN_UNROLL
  for (unsigned j = 0; j < kUnit; ++j) {
    out[j] = i + j < width ? load_element<type>(row, i + j) : 0.0F;
  }
}

/// Writes elements [i, i + kUnit) of a row, each rounded once, and nothing from `width` on; as
/// load_unit() else.
template <DType type>
LIBRARIAN_KERNEL_BODY void store_unit(const float (&in)[kUnit], std::byte* row, std::uint64_t i,
                                      std::uint64_t width, bool aligned) {
  constexpr unsigned kBytes = kElementBytes<type>;
  if (aligned && i + kUnit <= width) {
    LIBRARIAN_UNROLL
    for (std::size_t part = 0; part < kUnit * kBytes / 16; ++part) {
      Words out;
      LIBRARIAN_UNROLL
      for (std::size_t j = 0; j < 4; ++j) {
        if constexpr (kBytes == 4) {
          out.word[j] = bits_of(in[4 * part + j]);
        } else {
          out.word[j] = Element<type>::narrow(in[2 * j]) |
                        static_cast<std::uint32_t>(Element<type>::narrow(in[2 * j + 1])) << 16U;
        }
      }
      reinterpret_cast<Words*>(row + i * kBytes)[part] = out;
    }
    return;
  }
  LIBRARIAN_UNROLL
  for (unsigned j = 0; j < kUnit; ++j) {
    if (i + j < width) {
      store_element<type>(in[j], row, i + j);
    }
  }
}

/// Whether rows `stride_bytes` apart from `pointer` on begin at multiples of 16 bytes.
inline bool rows_aligned(const void* pointer, std::uint64_t stride_bytes) {
  return (reinterpret_cast<std::uintptr_t>(pointer) | stride_bytes) % 16 == 0;
}

/// An element type as a value to infer template arguments from.
template <DType type>
struct ElementTag {
  static constexpr DType kType = type;
};
/// Calls function(tag) for `type`.
template <typename Function>
inline void with_element(DType type, const Function& function) {
  switch (type) {
    case DType::bf16:
      return function(ElementTag<DType::bf16>());
    case DType::f16:
      return function(ElementTag<DType::f16>());
    case DType::f32:
      return function(ElementTag<DType::f32>());
  }
}

}  // namespace librarian::gpu_exec
