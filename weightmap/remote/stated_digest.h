#pragma once
/// What an object's origin states of its bytes, and whether they are so.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/digest.h"
#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote {

/// The origin states something of the whole object that its bytes can be held against.
bool states_digest(const ObjectInfo& info);
/// "SHA-256 <hex>" or "crc64nvme:<hex>", for messages; empty if nothing is stated.
std::string stated_digest_text(const ObjectInfo& info);

/// Takes an object's bytes in order. Not thread-safe.
class StatedDigest {
 public:
  explicit StatedDigest(const ObjectInfo& stated);

  void update(std::span<const std::byte> bytes);
  /// Of all bytes, 64 lower-case hex digits. Call it once.
  std::string finish();
  /// After finish(): everything that is stated agrees; true also if nothing is.
  bool matches() const { return matches_; }

 private:
  std::string stated_sha256_;
  std::string stated_crc_;
  StreamingSha256 sha256_;
  std::uint32_t crc32c_ = 0;
  std::uint64_t crc64_ = 0;
  bool matches_ = true;
};

}  // namespace librarian::weightmap::remote
