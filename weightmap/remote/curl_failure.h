#pragma once
/// What libcurl's failures mean for a request.

#include <curl/curl.h>

#include <string>

#include "base/error.h"

namespace librarian::weightmap::remote {

/// @param code  Why a transfer ended; not CURLE_OK.
/// @param text  libcurl's own words, for the message.
/// @return bad_input (nothing vouches for the server) | invalid_argument (no such place) |
///         unavailable (all else: worth another try)
Error curl_failure(CURLcode code, const std::string& text);

}  // namespace librarian::weightmap::remote
