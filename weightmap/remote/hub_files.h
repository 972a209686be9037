#pragma once
/// Files that a hub's own tools keep on this machine: the token, and models already downloaded.

#include <optional>
#include <string>

#include "base/error.h"
#include "weightmap/remote/hub_place.h"
#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote {

/// HF_TOKEN, else the file HF_TOKEN_PATH, HF_HOME/token or ~/.cache/huggingface/token; empty if
/// there is none.
/// @error invalid_argument  A token that no header can carry; says where, never what.
Result<std::string> find_hub_token(const Environment& environment);

/// The commit that the cache knows `place`'s revision by; for working without a network.
std::optional<std::string> cached_commit(const Environment& environment, const HubPlace& place);

/// The directory of `place`, which is pinned, in the cache of the hub's own client (HF_HUB_CACHE,
/// HF_HOME/hub, ~/.cache/huggingface/hub), if config.json and all weight files are there: who only
/// looked at a model has some of it. Nothing is written there, ever.
std::optional<std::string> cached_snapshot(const Environment& environment, const HubPlace& place);

}  // namespace librarian::weightmap::remote
