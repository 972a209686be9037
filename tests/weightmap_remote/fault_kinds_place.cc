// Where requests are sent: redirects, names, ports, certificates, proxies.

#include "fault_kinds.h"

namespace librarian::weightmap::remote::testing {
namespace {

using End = HttpAnswer::End;
using Target = FaultTarget;
constexpr auto kRight = FaultOutcome::right_bytes;
constexpr auto kError = FaultOutcome::clear_error;
constexpr auto kUnavailable = ErrorCode::unavailable;
constexpr auto kBadInput = ErrorCode::bad_input;
constexpr const char* kNoTrust = "sends no request";

// A label of more than 63 bytes is no name: it fails without a question to any name server.
std::string unknown_host() { return std::string(64, 'a') + ".test"; }

FaultKind redirected(const std::string& name, const std::string& fault, const std::string& place) {
  return {name,    fault,  "refuses", Target::part,
          kAlways, kError, kBadInput, [=](const Blow&) { return redirect(place); }};
}

FaultKind certificate(const std::string& name, const std::string& fault, FaultTls tls) {
  FaultKind kind{name, fault, kNoTrust, Target::opening, 0, kError, kBadInput, {}};
  kind.setup.tls = tls;
  return kind;
}

std::vector<FaultKind> redirects() {
  return {
      redirected("LineBreakInLocation", "a carriage return inside Location",
                 "http://127.0.0.1/x\rX-Injected: 1"),
      redirected("RedirectWithPassword", "redirect to a URL with a password",
                 "http://user:word@127.0.0.1/x"),
      redirected("RedirectToFtp", "redirect to ftp://", "ftp://127.0.0.1/x"),
      redirected("RedirectToPlainHttpElsewhere", "redirect from loopback to another host's http",
                 "http://192.0.2.1/x"),
      {"RedirectNowhere",
       "302 without Location, once",
       "asks again",
       Target::part,
       1,
       kRight,
       {},
       [](const Blow&) { return refusal("302 Found"); }},
      {"RedirectToTwoPlaces",
       "302 with two Locations, once",
       "asks again",
       Target::part,
       1,
       kRight,
       {},
       [](const Blow&) {
         return refusal("302 Found", {"Location: /a", "Location: /b"});
       }},
      {"FiveRedirects",
       "five redirects in a row",
       "follows five",
       Target::part,
       kAlways,
       kRight,
       {},
       [](const Blow& blow) -> HttpAnswer {
         const std::string& target = blow.request.target;
         const int hop = target.rfind("/hop", 0) == 0 ? target[4] - '0' : 0;
         return hop == 5 ? honest(blow.object, blow.request)
                         : redirect("/hop" + std::to_string(hop + 1));
       }},
      {"RedirectDowngrade",
       "redirect from https to plain http",
       "refuses",
       Target::part,
       kAlways,
       kError,
       kBadInput,
       [](const Blow& blow) { return redirect(blow.elsewhere); },
       {.tls = FaultTls::trusted}},
  };
}

std::vector<FaultKind> connecting() {
  return {
      {"NameUnknownOnce",
       "a host name that does not resolve, once",
       "asks again",
       Target::part,
       1,
       kRight,
       {},
       [](const Blow&) { return redirect("https://" + unknown_host() + "/model"); }},
      {"NameUnknown",
       "a host name that does not resolve, always",
       "gives up after some failures",
       Target::opening,
       0,
       kError,
       kUnavailable,
       [](const Blow&) { return HttpAnswer{}; },
       {.host = unknown_host()}},
      {"ConnectRefusedOnce",
       "a port that refuses connections, once",
       "asks again",
       Target::part,
       1,
       kRight,
       {},
       [](const Blow& blow) { return redirect(blow.closed); }},
      {"ConnectRefused",
       "a port that refuses connections, always",
       "gives up after some failures",
       Target::opening,
       0,
       kError,
       kUnavailable,
       [](const Blow&) { return HttpAnswer{}; },
       {.closed_port = true}},
      {"ProxyLogin",
       "407 from the proxy for plain http",
       "ends at once",
       Target::everything,
       kAlways,
       kError,
       kBadInput,
       [](const Blow&) {
         return refusal("407 Proxy Authentication Required", {"Proxy-Authenticate: Basic"});
       },
       {.proxy = FaultProxy::for_http}},
      {"ProxyLoginForTunnel",
       "407 from the proxy to CONNECT",
       "ends at once",
       Target::everything,
       kAlways,
       kError,
       kBadInput,
       [](const Blow&) {
         return refusal("407 Proxy Authentication Required", {"Proxy-Authenticate: Basic"});
       },
       {.proxy = FaultProxy::for_https}},
      {"ProxyCannotReach",
       "502 from the proxy to CONNECT",
       "gives up after some failures",
       Target::everything,
       kAlways,
       kError,
       kUnavailable,
       [](const Blow&) { return refusal("502 Bad Gateway"); },
       {.proxy = FaultProxy::for_https}},
  };
}

std::vector<FaultKind> certificates() {
  return {
      certificate("CertificateExpired", "TLS: the certificate has expired", FaultTls::expired),
      certificate("CertificateNotYetValid", "TLS: the certificate is not valid yet",
                  FaultTls::not_yet_valid),
      certificate("CertificateOfAnother", "TLS: the certificate is for another name",
                  FaultTls::wrong_name),
      certificate("CertificateSelfSigned", "TLS: the certificate is self-signed",
                  FaultTls::self_signed),
      certificate("AuthorityUnknown", "TLS: an unknown authority signed the certificate",
                  FaultTls::unknown_authority),
      certificate("AuthorityForged", "TLS: signed in the authority's name with another key",
                  FaultTls::forged_authority),
      {"NoTls",
       "https is asked of a server that speaks plain http",
       "gives up after some failures",
       Target::opening,
       0,
       kError,
       kUnavailable,
       [](const Blow&) { return HttpAnswer{}; },
       {.tls = FaultTls::plain_server,
        .greeting = [](int) { return refusal("400 Bad Request").bytes; }}},
      {"SilentHandshake",
       "TLS: the handshake is never answered",
       "gives up after some failures",
       Target::opening,
       0,
       kError,
       kUnavailable,
       [](const Blow&) { return HttpAnswer{}; },
       {.tls = FaultTls::plain_server}},
      {"TlsCut",
       "TLS: cut without a farewell (close_notify), no length",
       "goes on from the first missing byte",
       Target::part,
       1,
       kRight,
       {},
       [](const Blow& blow) -> HttpAnswer {
         return {head("206 x", {content_range(*blow.request.range, blow.object.size()),
                                "Connection: close", "ETag: \"v1\""}) +
                     body_of(blow).substr(0, 123'456),
                 End::close};
       },
       {.tls = FaultTls::trusted}},
      {"TlsReset",
       "TLS: RST in the middle of a body",
       "goes on from the first missing byte",
       Target::part,
       1,
       kRight,
       {},
       [](const Blow& blow) { return cut(blow, 150'000, End::reset); },
       {.tls = FaultTls::trusted}},
  };
}

}  // namespace

std::vector<FaultKind> place_faults() {
  std::vector<FaultKind> all;
  for (auto* make : {redirects, connecting, certificates}) {
    for (FaultKind& kind : make()) {
      all.push_back(std::move(kind));
    }
  }
  return all;
}

}  // namespace librarian::weightmap::remote::testing
