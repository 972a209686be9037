#pragma once
/// CRC32C with the SSE4.2 instruction; only digest.cc calls it, after asking the CPU.

#include <cstddef>
#include <cstdint>
#include <span>

namespace librarian {

/// @param state  The register, i.e. the inverted running checksum.
std::uint32_t crc32c_sse42(std::span<const std::byte> bytes, std::uint32_t state);

/// The same of `from`, which it copies to `to`; see copy_with_crc32c().
std::uint32_t copy_with_crc32c_sse42(std::byte* to, std::span<const std::byte> from,
                                     std::uint32_t state);

}  // namespace librarian
