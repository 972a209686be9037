#pragma once
/// From the name of a model on a hub to one commit of it, which never changes.

#include <optional>
#include <stop_token>
#include <string>

#include "base/error.h"
#include "weightmap/remote/fetcher.h"
#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote {

struct PinnedModel {
  /// hf://org/name@COMMIT; any other place is itself.
  Uri uri;
  /// The same commit in the local cache of the hub's own client, if it has it; else `uri`.
  Uri read_from;
};

/// Asks the hub which commit `uri`'s revision is now, unless it is one or `known_commit` says so.
/// HF_HUB_OFFLINE=1: asks the cache instead.
/// @error bad_input (no such model or revision, gated, offline and not in the cache) | unavailable
/// |
///        cancelled
Result<PinnedModel> pin_model(Fetcher& fetcher, const Uri& uri,
                              const std::optional<std::string>& known_commit,
                              const Environment& environment, const std::stop_token& stop);

}  // namespace librarian::weightmap::remote
