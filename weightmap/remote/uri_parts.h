#pragma once
/// What the http transport asks of URIs beyond transport.h. Pure functions.

#include <string>

#include "base/error.h"
#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote {

/// Where a redirect from `base` leads: absolute or relative to it, http or https only, never from
/// https to http.
/// @error bad_input  an unusable or refused target.
Result<Uri> resolve_location(const Uri& base, const std::string& location);

/// The host is this machine by its literal name or address; nothing is looked up.
bool is_loopback(const Uri& uri);

/// The host, lower case; IPv6 in brackets. Empty if there is none.
std::string host_of(const Uri& uri);

}  // namespace librarian::weightmap::remote
