#pragma once
/// A part of an object.

#include <cstdint>

namespace librarian::weightmap::remote {

/// Half-open interval of byte offsets within one object.
struct ByteRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::uint64_t size() const { return end - begin; }
  bool operator==(const ByteRange&) const = default;
};

}  // namespace librarian::weightmap::remote
