#include "weightmap/remote/http_origin.h"

#include "weightmap/remote/address_class.h"
#include "weightmap/remote/uri_parts.h"

namespace librarian::weightmap::remote {

ResponseVerdict judge_answer(const HttpAnswer& answer, const std::optional<ObjectInfo>& expected) {
  ResponseExpectation expectation;
  expectation.range = answer.request.range;
  expectation.expected = expected;
  expectation.redirected = answer.hop.redirected;
  expectation.document = answer.request.document;
  expectation.wall_now_s = wall_clock_s();
  return check_response(answer.head, expectation);
}

Result<HttpHop> redirect_hop(const HttpAnswer& answer, const std::string& location) {
  const Uri& from = answer.hop.url;
  LIB_TRY(Uri target, resolve_location(from, location));
  // Where a proxy looks names up, the name itself is all there is to see.
  if (names_private_host(target) && !names_private_host(from)) {
    return Error(ErrorCode::bad_input, "the server redirects to " + target.display() +
                                           ", an address inside a private network, which is "
                                           "refused");
  }
  HttpHop hop;
  hop.redirected = true;
  hop.only_public = answer.from_public || answer.hop.only_public;
  if (target.origin() == from.origin()) {
    hop.headers = answer.hop.headers;
  }
  hop.if_match = answer.hop.if_match;
  hop.url = std::move(target);
  return hop;
}

ResponseVerdict HttpOrigin::judge(const HttpAnswer& answer) {
  return judge_answer(answer, answer.request.expected);
}

Result<std::optional<HttpHop>> HttpOrigin::after(const HttpAnswer& answer,
                                                 const ResponseVerdict& verdict,
                                                 std::string_view /*body*/) {
  if (verdict.location.empty()) {
    return std::optional<HttpHop>();
  }
  LIB_TRY(HttpHop hop, redirect_hop(answer, verdict.location));
  return std::optional(std::move(hop));
}

Result<HttpHop> PlainOrigin::first_hop(const TransferRequest& request) {
  HttpHop hop;
  hop.url = request.uri;
  hop.if_match = if_match_value(request.expected);
  if (request.uri.origin() == headers_origin_) {
    hop.headers = headers_;
  }
  return hop;
}

}  // namespace librarian::weightmap::remote
