#pragma once
/// Which addresses belong to the public Internet. A server out there must not send us to one of our
/// own network: it would make us ask machines that only we can reach.

#include <string>

#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote {

/// @param address  IPv4 or IPv6 as text, without brackets; anything else is not public.
/// @source the IANA special-purpose address registries (RFC 6890 and its updates).
bool is_public_address(const std::string& address);

/// The URL's host is "localhost" or an address that is not public. Nothing is looked up.
bool names_private_host(const Uri& url);

/// The environment names a proxy: the addresses that we connect to may be the proxy's.
bool proxy_is_set(const Environment& environment);

}  // namespace librarian::weightmap::remote
