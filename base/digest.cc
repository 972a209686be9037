#include "base/digest.h"

#include <openssl/evp.h>

#define XXH_INLINE_ALL  // the streaming state's size is then known here and nowhere else
#include <xxhash.h>

#include <cstring>

#include "base/crc32c_sse42.h"
#include "base/text.h"

namespace librarian {
namespace {

constexpr std::string_view kHexDigits = "0123456789abcdef";

constexpr std::uint32_t kCrc32cPolynomial = 0x82F63B78;  // Reflected: bit 31 is the power 0 of x.

constexpr std::array<std::uint32_t, 256> make_crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < table.size(); ++i) {
    std::uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) {
      value = (value >> 1U) ^ ((value & 1U) != 0 ? kCrc32cPolynomial : 0U);
    }
    table[i] = value;
  }
  return table;
}

std::uint32_t crc32c_portable(std::span<const std::byte> bytes, std::uint32_t state) {
  static constexpr std::array<std::uint32_t, 256> kTable = make_crc_table();
  for (const std::byte byte : bytes) {
    state = kTable[(state ^ static_cast<std::uint32_t>(byte)) & 0xFFU] ^ (state >> 8U);
  }
  return state;
}

constexpr std::uint32_t multiply_modulo(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product = 0;
  for (std::uint32_t power = 1U << 31U; power != 0; power >>= 1U) {
    product ^= (a & power) != 0 ? b : 0U;
    b = (b >> 1U) ^ ((b & 1U) != 0 ? kCrc32cPolynomial : 0U);
  }
  return product;
}

/// x^(8 * 2^k) modulo the polynomial: 2^k zero bytes.
constexpr std::array<std::uint32_t, 64> make_zeros_table() {
  std::array<std::uint32_t, 64> table{};
  table[0] = 1U << (31U - 8U);
  for (std::size_t k = 1; k < table.size(); ++k) {
    table[k] = multiply_modulo(table[k - 1], table[k - 1]);
  }
  return table;
}

bool has_sse42() {
  static const bool has = __builtin_cpu_supports("sse4.2") != 0;
  return has;
}

// Eight bytes at a time: table k holds the CRC of a byte that has k bytes behind it.
using Crc64Tables = std::array<std::array<std::uint64_t, 256>, 8>;

constexpr Crc64Tables make_crc64_tables() {
  constexpr std::uint64_t kPolynomial = 0x9A6C9329AC4BC9B5;
  Crc64Tables tables{};
  for (std::uint64_t i = 0; i < 256; ++i) {
    std::uint64_t value = i;
    for (int bit = 0; bit < 8; ++bit) {
      value = (value >> 1U) ^ ((value & 1U) != 0 ? kPolynomial : 0U);
    }
    tables[0][i] = value;
  }
  for (std::size_t k = 1; k < tables.size(); ++k) {
    for (std::size_t i = 0; i < 256; ++i) {
      tables[k][i] = (tables[k - 1][i] >> 8U) ^ tables[0][tables[k - 1][i] & 0xFFU];
    }
  }
  return tables;
}

std::uint64_t parse_hex64(std::string_view text, bool& ok) {
  std::uint64_t value = 0;
  for (const char c : text) {
    const std::size_t digit = kHexDigits.find(c);
    ok = ok && digit != std::string_view::npos;
    value = (value << 4U) | (digit & 0xFU);
  }
  return value;
}

Digest128 from_xxh(XXH128_hash_t hash) { return {hash.high64, hash.low64}; }

}  // namespace

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t previous) {
  const std::uint32_t state = ~previous;
  return ~(has_sse42() ? crc32c_sse42(bytes, state) : crc32c_portable(bytes, state));
}

std::uint32_t crc32c_combine(std::uint32_t of_a, std::uint32_t of_b, std::uint64_t bytes_of_b) {
  static constexpr std::array<std::uint32_t, 64> kZeros = make_zeros_table();
  for (std::size_t k = 0; bytes_of_b != 0; ++k, bytes_of_b >>= 1U) {
    if ((bytes_of_b & 1U) != 0) {
      of_a = multiply_modulo(kZeros[k], of_a);
    }
  }
  return of_a ^ of_b;
}

std::uint32_t copy_with_crc32c(std::byte* to, std::span<const std::byte> from,
                               std::uint32_t previous) {
  if (has_sse42()) {
    return ~copy_with_crc32c_sse42(to, from, ~previous);
  }
  std::memcpy(to, from.data(), from.size());
  return ~crc32c_portable(from, ~previous);
}

std::string Digest128::hex() const {
  std::string text;
  text.reserve(32);
  for (const std::uint64_t half : {high, low}) {
    for (int shift = 60; shift >= 0; shift -= 4) {
      text += kHexDigits[(half >> static_cast<unsigned>(shift)) & 0xFU];
    }
  }
  return text;
}

Result<Digest128> Digest128::from_hex(std::string_view text) {
  bool ok = text.size() == 32;
  Digest128 digest;
  if (ok) {
    digest.high = parse_hex64(text.substr(0, 16), ok);
    digest.low = parse_hex64(text.substr(16), ok);
  }
  if (!ok) {
    return Error(ErrorCode::invalid_argument,
                 "not a 128-bit digest in hex: '" + std::string(text.substr(0, 64)) + "'");
  }
  return digest;
}

std::uint64_t crc64_nvme(std::span<const std::byte> bytes, std::uint64_t previous) {
  static constexpr Crc64Tables kTables = make_crc64_tables();
  std::uint64_t state = ~previous;
  while (bytes.size() >= 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data(), 8);  // Little-endian, as every machine this runs on.
    state ^= word;
    std::uint64_t next = 0;
    for (unsigned k = 0; k < 8; ++k) {
      next ^= kTables[7 - k][state >> (8 * k) & 0xFFU];
    }
    state = next;
    bytes = bytes.subspan(8);
  }
  for (const std::byte byte : bytes) {
    state = kTables[0][(state ^ static_cast<std::uint64_t>(byte)) & 0xFFU] ^ (state >> 8U);
  }
  return ~state;
}

Digest128 xxh3_128(std::span<const std::byte> bytes) {
  return from_xxh(XXH3_128bits(bytes.data(), bytes.size()));
}

Digest128 xxh3_128(std::string_view bytes) { return xxh3_128(std::as_bytes(std::span(bytes))); }

struct StreamingXxh3::State {
  XXH3_state_t xxh;
};

StreamingXxh3::StreamingXxh3() : state_(std::make_unique<State>()) {
  XXH3_128bits_reset(&state_->xxh);
}
StreamingXxh3::~StreamingXxh3() = default;
StreamingXxh3::StreamingXxh3(StreamingXxh3&&) noexcept = default;
StreamingXxh3& StreamingXxh3::operator=(StreamingXxh3&&) noexcept = default;

void StreamingXxh3::update(std::span<const std::byte> bytes) {
  XXH3_128bits_update(&state_->xxh, bytes.data(), bytes.size());
}

Digest128 StreamingXxh3::digest() const { return from_xxh(XXH3_128bits_digest(&state_->xxh)); }

std::string sha256_hex(std::string_view bytes) {
  std::array<unsigned char, 32> digest{};
  unsigned int digest_bytes = 0;
  LIB_CHECK(EVP_Digest(bytes.data(), bytes.size(), digest.data(), &digest_bytes, EVP_sha256(),
                       nullptr) == 1);
  return hex(std::as_bytes(std::span(digest)));
}

StreamingSha256::StreamingSha256() : context_(EVP_MD_CTX_new()) {
  LIB_CHECK(context_ && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
}

void StreamingSha256::Free::operator()(EVP_MD_CTX* context) const noexcept {
  EVP_MD_CTX_free(context);
}

void StreamingSha256::update(std::span<const std::byte> bytes) {
  LIB_CHECK(EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()) == 1);
}

std::string StreamingSha256::finish() {
  std::array<unsigned char, 32> digest{};
  unsigned int digest_bytes = 0;
  LIB_CHECK(EVP_DigestFinal_ex(context_.get(), digest.data(), &digest_bytes) == 1);
  return hex(std::as_bytes(std::span(digest)));
}

}  // namespace librarian
