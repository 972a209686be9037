#pragma once
/// How far two rows of activations are apart.

#include <cstdint>
#include <span>

#include "activation_store/types.h"

namespace librarian::activation_store {

struct RowDifference {
  std::uint64_t elements = 0;  ///< Elements that differ, by bits or, over two types, by value.
  double relative_error = 0;   ///< |a - b| / |a|; infinite where that has no finite value.
  double cosine = 1;           ///< 0 where it has no value.
};

/// @param a, b  `width` elements of their types each.
RowDifference compare_rows(std::span<const std::byte> a, StoredType type_a,
                           std::span<const std::byte> b, StoredType type_b, std::uint64_t width);

/// The number that an element of `type` at `at` stands for.
float element_value(StoredType type, const std::byte* at);

}  // namespace librarian::activation_store
