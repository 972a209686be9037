#pragma once
/// Memory for arrays that CUDA kernels read and write in tests.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "tests/gpu_exec/exec_testing.h"

namespace librarian::gpu_exec {

inline constexpr DType kTypes[] = {DType::bf16, DType::f16, DType::f32};

/// Elements in memory of their own: `offset` odd ones before them, nothing behind, where sanitizers
/// see every access.
class Buffer {
 public:
  explicit Buffer(const Bytes& bytes, std::uint64_t offset_bytes = 0)
      : offset_(offset_bytes),
        size_(bytes.size()),
        memory_(aligned_memory(offset_bytes + bytes.size())) {
    std::memset(memory_.get(), 0x5A, offset_);
    std::copy(bytes.begin(), bytes.end(), at());
  }
  Buffer(const std::vector<float>& values, DType type, std::uint64_t offset = 0)
      : Buffer(to_bytes(values, type), offset * dtype_bytes(type)) {}

  std::byte* at() const { return memory_.get() + offset_; }
  float* floats() const { return reinterpret_cast<float*>(at()); }
  Bytes bytes() const {
    EXPECT_EQ(Bytes(memory_.get(), at()), Bytes(offset_, std::byte{0x5A})) << "written before";
    return {at(), at() + size_};
  }

 private:
  std::uint64_t offset_, size_;
  DeviceMemory memory_;
};

/// Sets of arrays, a bit for each, that lie at odd addresses: a kernel may read 16 bytes at once
/// only where all its arrays allow it. Sanitizers see misaligned accesses.
inline constexpr unsigned kOddArrays[] = {0, 31, 1, 2, 4, 8, 16};
/// Elements before array `index`.
constexpr std::uint64_t offset_of(unsigned odd_arrays, unsigned index) {
  return odd_arrays >> index & 1U;
}

}  // namespace librarian::gpu_exec
