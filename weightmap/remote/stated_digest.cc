#include "weightmap/remote/stated_digest.h"

#include <string_view>

namespace librarian::weightmap::remote {
namespace {

constexpr std::string_view kCrc32c = "crc32c:";
constexpr std::string_view kCrc64Nvme = "crc64nvme:";

std::string hex(std::uint64_t value, int digits) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (int digit = digits - 1; digit >= 0; --digit) {
    text += kDigits[value >> (4U * static_cast<unsigned>(digit)) & 15U];
  }
  return text;
}

}  // namespace

bool states_digest(const ObjectInfo& info) {
  return !info.sha256.empty() || info.crc.starts_with(kCrc32c) || info.crc.starts_with(kCrc64Nvme);
}

std::string stated_digest_text(const ObjectInfo& info) {
  return !info.sha256.empty() ? "SHA-256 " + info.sha256 : info.crc;
}

StatedDigest::StatedDigest(const ObjectInfo& stated)
    : stated_sha256_(stated.sha256), stated_crc_(stated.crc) {}

void StatedDigest::update(std::span<const std::byte> bytes) {
  sha256_.update(bytes);
  if (stated_crc_.starts_with(kCrc32c)) {
    crc32c_ = crc32c(bytes, crc32c_);
  } else if (stated_crc_.starts_with(kCrc64Nvme)) {
    crc64_ = crc64_nvme(bytes, crc64_);
  }
}

std::string StatedDigest::finish() {
  std::string sha256 = sha256_.finish();
  matches_ = stated_sha256_.empty() || stated_sha256_ == sha256;
  if (stated_crc_.starts_with(kCrc32c)) {
    matches_ = matches_ && stated_crc_ == std::string(kCrc32c) + hex(crc32c_, 8);
  } else if (stated_crc_.starts_with(kCrc64Nvme)) {
    matches_ = matches_ && stated_crc_ == std::string(kCrc64Nvme) + hex(crc64_, 16);
  }
  return sha256;
}

}  // namespace librarian::weightmap::remote
