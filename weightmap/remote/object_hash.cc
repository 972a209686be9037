// FileStaging::hash(): an object's bytes through memory, in order, and away.
#include <string>
#include <utility>

#include "weightmap/remote/fetch_in_order.h"
#include "weightmap/remote/file_staging.h"
#include "weightmap/remote/stated_digest.h"

namespace librarian::weightmap::remote {

Result<StagedObject> FileStaging::hash_once(ObjectId object, const ObjectInfo& stated,
                                            const std::stop_token& stop) {
  {
    const auto lock = monitor_.lock();
    needed_bytes_ += stated.size;
  }
  const std::uint64_t piece = slab_bytes(options_);
  StatedDigest digest(stated);
  LIB_TRY_VOID(fetch_in_order(
      fetcher_, clock_, object, {0, stated.size}, {memory_.get(), options_.slabs * piece}, piece,
      [&](std::span<const std::byte> bytes) {
        digest.update(bytes);
        return Result<void>();
      },
      stop));
  std::string sha256 = digest.finish();
  return StagedObject{std::move(sha256), digest.matches()};
}

Result<StagedObject> FileStaging::hash(ObjectId object, const ObjectInfo& stated,
                                       const std::stop_token& stop) {
  LIB_TRY(StagedObject hashed, hash_once(object, stated, stop));
  if (!hashed.matches) {
    LIB_TRY(hashed, hash_once(object, stated, stop));
  }
  return hashed;
}

}  // namespace librarian::weightmap::remote
