#pragma once
/// Integers in files: little-endian, at any alignment.

#include <bit>
#include <cstddef>
#include <cstring>

namespace librarian::activation_store {

static_assert(std::endian::native == std::endian::little,
              "rows are kept as they lie in memory, and the format says little-endian");

template <typename T>
T load_le(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

template <typename T>
void store_le(std::byte* at, T value) {
  std::memcpy(at, &value, sizeof(T));
}

}  // namespace librarian::activation_store
