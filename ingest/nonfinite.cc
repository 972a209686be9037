#include "ingest/nonfinite.h"

#include <cstring>

namespace librarian::ingest {
namespace {

/// A whole run is looked at without branches before the element is searched for, so that the
/// usual answer costs one pass at memory speed.
template <typename Word>
std::optional<std::uint64_t> search(std::span<const std::byte> bytes, Word exponent) {
  constexpr std::uint64_t kRun = 4096;
  const std::uint64_t count = bytes.size() / sizeof(Word);
  const auto element = [&](std::uint64_t i) {
    Word word{};
    std::memcpy(&word, bytes.data() + i * sizeof(Word), sizeof(Word));
    return word;
  };
  for (std::uint64_t begin = 0; begin < count; begin += kRun) {
    const std::uint64_t end = begin + kRun < count ? begin + kRun : count;
    unsigned found = 0;
    for (std::uint64_t i = begin; i < end; ++i) {
      found |= static_cast<unsigned>((element(i) & exponent) == exponent);
    }
    for (std::uint64_t i = begin; found != 0 && i < end; ++i) {
      if ((element(i) & exponent) == exponent) {
        return i;
      }
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::uint64_t> first_nonfinite(std::span<const std::byte> elements,
                                             gpu_exec::DType type) {
  switch (type) {
    case gpu_exec::DType::bf16:
      return search<std::uint16_t>(elements, 0x7F80);
    case gpu_exec::DType::f16:
      return search<std::uint16_t>(elements, 0x7C00);
    case gpu_exec::DType::f32:
      return search<std::uint32_t>(elements, 0x7F800000);
  }
  return std::nullopt;
}

}  // namespace librarian::ingest
