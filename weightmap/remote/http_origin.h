#pragma once
/// How one kind of place is asked over HTTP: which URL, what proves who asks, and what its servers'
/// answers mean beyond response_check.h. One per scheme; one call at a time.

#include <cstdint>
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
  std::string if_match;      ///< ETag to insist on; empty: none.
  bool redirected = false;   ///< A server sent us here, no user.
  bool head_only = false;    ///< Asks about the whole object (HEAD): no range, no body.
  bool only_public = false;  ///< A public server sent us here: no private address will do.
};

/// What was asked of whom, and how it was answered.
struct HttpAnswer {
  const TransferRequest& request;
  const HttpHop& hop;
  std::uint32_t hop_number;  ///< Hops of this transfer before it.
  const ResponseHead& head;
  bool from_public;  ///< The server's address is a public one.
};

class HttpOrigin {
 public:
  virtual ~HttpOrigin() = default;

  /// The first hop of a request.
  /// @error invalid_argument | bad_input  says what to do: no such place, unreadable credentials.
  virtual Result<HttpHop> first_hop(const TransferRequest& request) = 0;

  /// What an answer's body may be used for, from its head alone. By default check_response().
  virtual ResponseVerdict judge(const HttpAnswer& answer);

  /// What follows an answer that is a redirect, an error or without a body (HttpHop::head_only):
  /// another hop, or nothing, and the verdict stands. An error replaces the verdict's. By default
  /// redirects are followed.
  /// @param body  The first 4 KiB of the answer's body at most.
  virtual Result<std::optional<HttpHop>> after(const HttpAnswer& answer,
                                               const ResponseVerdict& verdict,
                                               std::string_view body);

  /// The hop asks a hub where the file lies.
  virtual bool resolves(const HttpHop& /*hop*/) const { return false; }
};

/// check_response() with what `answer` was asked for.
ResponseVerdict judge_answer(const HttpAnswer& answer, const std::optional<ObjectInfo>& expected);

/// The hop to `location`. Headers go along only to the very same scheme, host and port.
/// @error bad_input  refused: unusable, from https to http, from a public host to a private one.
Result<HttpHop> redirect_hop(const HttpAnswer& answer, const std::string& location);

/// http and https URLs as they are.
class PlainOrigin final : public HttpOrigin {
 public:
  /// @param headers  See TransportOptions.
  PlainOrigin(std::vector<std::string> headers, std::string headers_origin)
      : headers_(std::move(headers)), headers_origin_(std::move(headers_origin)) {}
  Result<HttpHop> first_hop(const TransferRequest& request) override;

 private:
  const std::vector<std::string> headers_;
  const std::string headers_origin_;
};

}  // namespace librarian::weightmap::remote
