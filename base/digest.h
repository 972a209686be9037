#pragma once
/// Checksums and digests over bytes: CRC32C (stored files), XXH3-128 (array and tensor contents),
/// SHA-256 (identities). Values are independent of the machine that computed them.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"

struct evp_md_ctx_st;  // OpenSSL's EVP_MD_CTX

namespace librarian {

/// CRC-32C (Castagnoli, reflected, as iSCSI and Zarr's `crc32c` codec use it) of `bytes`,
/// continuing from `previous`, so that crc(ab) == crc32c(b, crc32c(a)).
/// @source RFC 3720 appendix B.4 gives the test vectors.
std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t previous = 0);

/// CRC-32C of a followed by b, from crc32c(a), crc32c(b) and the number of b's bytes alone; either
/// may be empty. Takes the same short time whatever the length.
/// @source M. Adler, zlib's crc32_combine_op(): the register after n zero bytes is the register
///         times x^(8n) modulo the polynomial.
std::uint32_t crc32c_combine(std::uint32_t of_a, std::uint32_t of_b, std::uint64_t bytes_of_b);

/// Copies `from` to `to` as memcpy() does and takes the CRC-32C of what it copies in the same pass,
/// continuing as crc32c() does. For bytes that are used long after: they are written past the
/// cache, which saves reading the destination's lines first.
std::uint32_t copy_with_crc32c(std::byte* to, std::span<const std::byte> from,
                               std::uint32_t previous = 0);

/// CRC-64/NVME of `bytes`, continuing from `previous` as crc32c() does: what S3 computes of
/// uploads.
/// @source NVM Express NVM Command Set specification 1.0, 5.2.1.3.4; S3's data integrity guide.
std::uint64_t crc64_nvme(std::span<const std::byte> bytes, std::uint64_t previous = 0);

/// 128 bits, compared and printed as 32 lower-case hex digits, high half first.
struct Digest128 {
  std::uint64_t high = 0;
  std::uint64_t low = 0;
  bool operator==(const Digest128&) const = default;
  std::string hex() const;
  /// @error invalid_argument  not 32 lower-case hex digits.
  static Result<Digest128> from_hex(std::string_view text);
};

/// XXH3 with 128 bits and no seed.
Digest128 xxh3_128(std::span<const std::byte> bytes);
Digest128 xxh3_128(std::string_view bytes);

/// XXH3-128 of bytes that arrive in order, in pieces. Not thread-safe.
class StreamingXxh3 {
 public:
  StreamingXxh3();
  ~StreamingXxh3();
  StreamingXxh3(StreamingXxh3&&) noexcept;
  StreamingXxh3& operator=(StreamingXxh3&&) noexcept;

  void update(std::span<const std::byte> bytes);
  /// Digest of everything so far; more may follow.
  Digest128 digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// SHA-256 as 64 lower-case hex digits.
std::string sha256_hex(std::string_view bytes);

/// SHA-256 of bytes that arrive in order, in pieces; at the speed of the processor's own
/// instructions where it has them. Not thread-safe.
class StreamingSha256 {
 public:
  StreamingSha256();

  void update(std::span<const std::byte> bytes);
  /// Digest of everything so far, as sha256_hex() writes it; nothing may follow.
  std::string finish();

 private:
  struct Free {
    void operator()(evp_md_ctx_st* context) const noexcept;
  };
  std::unique_ptr<evp_md_ctx_st, Free> context_;
};

}  // namespace librarian
