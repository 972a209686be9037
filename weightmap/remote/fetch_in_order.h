#pragma once
/// A long run of an object's bytes through a little memory, in order.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <stop_token>

#include "base/clock.h"
#include "base/error.h"
#include "weightmap/remote/fetcher.h"

namespace librarian::weightmap::remote {

/// Fetches `range` in pieces, as many side by side as `window` holds, and hands each on when those
/// before it have been. Blocks; from its return on, `window` is the caller's again.
/// @param window  At least `piece_bytes`.
/// @param use     Called on this thread with the next bytes; its error ends the fetch.
/// @error cancelled, or as Fetcher::fetch() and `use`.
Result<void> fetch_in_order(Fetcher& fetcher, Clock& clock, ObjectId object, ByteRange range,
                            std::span<std::byte> window, std::uint64_t piece_bytes,
                            const std::function<Result<void>(std::span<const std::byte>)>& use,
                            const std::stop_token& stop);

}  // namespace librarian::weightmap::remote
