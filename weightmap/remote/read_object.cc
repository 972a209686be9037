#include <algorithm>

#include "weightmap/remote/fetcher.h"

namespace librarian::weightmap::remote {
namespace {

constexpr std::uint64_t kFirstRequestBytes = 1U << 20U;  // config.json has a few KiB.

}  // namespace

Result<std::string> read_object(Fetcher& fetcher, const Uri& uri, std::uint64_t bytes_max,
                                const std::stop_token& stop) {
  LIB_TRY(Fetcher::Opened opened, fetcher.open(uri, std::min(bytes_max, kFirstRequestBytes), stop));
  if (opened.info.size > bytes_max) {
    return Error(ErrorCode::bad_input, uri.display() + " has " + std::to_string(opened.info.size) +
                                           " bytes, more than the " + std::to_string(bytes_max) +
                                           " that make sense here; check the URL");
  }
  const std::uint64_t have = opened.head.size();
  if (have < opened.info.size) {
    opened.head.resize(opened.info.size);
    auto* rest = reinterpret_cast<std::byte*>(opened.head.data() + have);
    LIB_TRY_VOID(fetcher.fetch({opened.id, {{{have, opened.info.size}, rest}}}, stop));
  }
  return std::move(opened.head);
}

}  // namespace librarian::weightmap::remote
