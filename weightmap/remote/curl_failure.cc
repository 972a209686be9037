#include "weightmap/remote/curl_failure.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace librarian::weightmap::remote {
namespace {

// Of a certificate with a wrong signature libcurl reports what OpenSSL met first, deep in the
// arithmetic, and not that it was the certificate.
bool is_wrong_signature(CURLcode code, const std::string& text) {
  constexpr std::array<std::string_view, 4> kRoutines = {
      "asn1 encoding routines", "rsa routines", "elliptic curve routines", "x509 certificate"};
  return code == CURLE_SSL_CONNECT_ERROR &&
         std::any_of(kRoutines.begin(), kRoutines.end(), [&](std::string_view routines) {
           return text.find(routines) != std::string::npos;
         });
}

bool is_not_trusted(CURLcode code, const std::string& text) {
  return code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CACERT_BADFILE ||
         code == CURLE_SSL_ISSUER_ERROR || code == CURLE_SSL_PINNEDPUBKEYNOTMATCH ||
         is_wrong_signature(code, text);
}

}  // namespace

Error curl_failure(CURLcode code, const std::string& text) {
  if (is_not_trusted(code, text)) {
    return {ErrorCode::bad_input, "the server's certificate is not trusted (" + text +
                                      "); check the host name and the machine's certificates"};
  }
  switch (code) {
    case CURLE_OUT_OF_MEMORY:
      // What libcurl says of a field above its own limit, too.
      return {ErrorCode::unavailable, "the server sends a header field larger than libcurl takes"};
    case CURLE_URL_MALFORMAT:
    case CURLE_NOT_BUILT_IN:
      return {ErrorCode::invalid_argument, text};
    default:
      return {ErrorCode::unavailable, text};
  }
}

}  // namespace librarian::weightmap::remote
