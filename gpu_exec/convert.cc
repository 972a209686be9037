#include <cstring>

#include "gpu_exec/layer_executor.h"
#include "gpu_exec/row_functors.h"

namespace librarian::gpu_exec {
namespace {

float load_element(DType type, const std::byte* at) {
  if (type == DType::f32) {
    float value = 0;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  std::uint16_t half = 0;
  std::memcpy(&half, at, sizeof half);
  return type == DType::bf16 ? bf16_to_f32(half) : f16_to_f32(half);
}

void store_element(DType type, float value, std::byte* at) {
  if (type == DType::f32) {
    std::memcpy(at, &value, sizeof value);
    return;
  }
  const std::uint16_t half = type == DType::bf16 ? f32_to_bf16(value) : f32_to_f16(value);
  std::memcpy(at, &half, sizeof half);
}

/// The types as constants, so that the loop over elements has no branches on them.
template <DType from, DType to>
void convert_loop(const std::byte* in, std::byte* out, std::uint64_t count) {
  for (std::uint64_t i = 0; i < count; ++i) {
    store_element(to, load_element(from, in + i * (from == DType::f32 ? 4 : 2)),
                  out + i * (to == DType::f32 ? 4 : 2));
  }
}

template <DType from>
void convert_from(const std::byte* in, DType to, std::byte* out, std::uint64_t count) {
  switch (to) {
    case DType::bf16:
      return convert_loop<from, DType::bf16>(in, out, count);
    case DType::f16:
      return convert_loop<from, DType::f16>(in, out, count);
    case DType::f32:
      return convert_loop<from, DType::f32>(in, out, count);
  }
}

}  // namespace

void convert_elements(DType from, std::span<const std::byte> in, DType to,
                      std::span<std::byte> out) {
  const std::uint64_t count = in.size() / dtype_bytes(from);
  LIB_CHECK(in.size() % dtype_bytes(from) == 0 && out.size() == count * dtype_bytes(to));
  if (from == to) {
    if (count > 0) {
      std::memcpy(out.data(), in.data(), in.size());
    }
    return;
  }
  switch (from) {
    case DType::bf16:
      return convert_from<DType::bf16>(in.data(), to, out.data(), count);
    case DType::f16:
      return convert_from<DType::f16>(in.data(), to, out.data(), count);
    case DType::f32:
      return convert_from<DType::f32>(in.data(), to, out.data(), count);
  }
}

}  // namespace librarian::gpu_exec
