#pragma once
/// How one kind of place is asked over HTTP: which URL, what proves who asks, and what its servers'
/// answers mean beyond response_check.h. One per scheme; the curl loop's thread only.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "weightmap/remote/response_check.h"
#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote {

/// One request on the wire, to one server.
struct HttpHop {
  Uri url;  ///< http or https.
  /// "Name: value". May hold secrets: they are for the server at url.origin() and no other.
  std::vector<std::string> headers;
  std::string if_match;     ///< ETag to insist on; empty: none.
  bool redirected = false;  ///< A server sent us here, no user.
};

/// What was asked of whom, and how it was answered.
struct HttpAnswer {
  const TransferRequest& request;
  const HttpHop& hop;
  const ResponseHead& head;
};

class HttpOrigin {
 public:
  virtual ~HttpOrigin() = default;

  /// The first hop of a request.
  /// @error invalid_argument | bad_input  says what to do: no such place, unreadable credentials.
  virtual Result<HttpHop> first_hop(const TransferRequest& request) = 0;

  /// What an answer's body may be used for, from its head alone. By default check_response().
  virtual ResponseVerdict judge(const HttpAnswer& answer);

  /// What follows an answer that is a redirect or an error: another hop, or nothing, and the
  /// verdict stands. An error replaces the verdict's.
  /// @param body  The first 4 KiB of the answer's body at most.
  virtual Result<std::optional<HttpHop>> after(const HttpAnswer& answer,
                                               const ResponseVerdict& verdict,
                                               std::string_view body) = 0;
};

}  // namespace librarian::weightmap::remote
