// Redirects: which are followed, what goes along, and that nobody out there can send us into a
// private network.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "loopback_server.h"
#include "weightmap/remote/fetcher.h"
#include "weightmap/remote/http_origin.h"

namespace librarian::weightmap::remote {
namespace {

using ::testing::HasSubstr;
using testing::honest;
using testing::HttpAnswer;
using testing::HttpRequest;
using testing::LoopbackServer;
using testing::TlsIdentity;

// In a header that the user gave for the origin, and in the query of the URL.
constexpr const char* kCanary = "CANARY-7f3a";

HttpAnswer redirect(const std::string& location) {
  return {testing::head("302 Found", {"Location: " + location, "Content-Length: 0"})};
}

bool carries_canary(const HttpRequest& request) {
  bool found = request.target.find(kCanary) != std::string::npos;
  for (const auto& [name, value] : request.headers) {
    found = found || value.find(kCanary) != std::string::npos;
  }
  return found;
}

class RedirectTest : public ::testing::Test {
 protected:
  RedirectTest() {
    std::string made = std::filesystem::temp_directory_path() / "librarian-test-XXXXXX";
    LIB_CHECK(::mkdtemp(made.data()) != nullptr);
    directory_ = made;
    options_.ca_file = directory_ / "ca.pem";
    std::ofstream(options_.ca_file) << testing::pem(authority_);
    options_.insecure_http = true;  // "localhost" under other names is not loopback by its name.
  }
  ~RedirectTest() override { std::filesystem::remove_all(directory_); }

  // Reads the object from `origin`, with the canary for it.
  Result<std::string> read(const LoopbackServer& origin) {
    options_.headers = {std::string("Authorization: Bearer ") + kCanary,
                        std::string("X-Token: ") + kCanary};
    options_.headers_origin = origin.url("");
    const auto transport = make_transport(real_clock(), options_);
    FetcherOptions fetching;
    fetching.connections = 2;
    fetching.retry.backoff_base = Duration{};
    fetching.retry.attempts_max = 2;
    Fetcher fetcher(*transport, real_clock(), fetching);
    return read_object(fetcher, *parse_uri(origin.url("/model?signature=") + kCanary),
                       object_.size(), {});
  }

  std::filesystem::path directory_;
  const TlsIdentity authority_ = testing::make_authority();
  const TlsIdentity identity_ = testing::issue(authority_, "IP:127.0.0.1");
  TransportOptions options_;
  const std::string object_ = testing::test_object(1'500'000);
};

struct Shape {
  const char* name;
  /// Where the first answer leads: {port} is the origin's, {other} another server's, {tls} that of
  /// one with TLS.
  std::string location;
  bool followed;
  bool same_origin = false;  ///< The canary must go along.
};

std::string fill_in(std::string text, const std::string& what, unsigned short port) {
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what)) {
    text.replace(at, what.size(), std::to_string(port));
  }
  return text;
}

// Goal: a secret for one origin reaches that origin and nobody else, whatever the redirect looks
// like. Method: it is in a header and in the URL; every server writes down what it was sent.
TEST_F(RedirectTest, SecretsStayWithTheirOrigin) {
  const Shape shapes[] = {
      {"same origin", "/elsewhere", true, true},
      {"same origin, absolute", "http://127.0.0.1:{port}/elsewhere", true, true},
      {"other port", "http://127.0.0.1:{other}/x", true},
      {"other port, no scheme", "//127.0.0.1:{other}/x", true},
      {"other host", "http://localhost:{port}/x", true},
      {"subdomain", "http://sub.localhost:{port}/x", true},
      {"other scheme", "https://127.0.0.1:{tls}/x", true},
      {"address in another notation, other port", "http://2130706433:{other}/x", true},
      {"the origin as a user name", "http://127.0.0.1:{port}@127.0.0.1:{other}/x", false},
      {"user name alone", "http://user@127.0.0.1:{other}/x", false},
      {"backslash", "http://127.0.0.1:{port}\\@127.0.0.1:{other}/x", false},
      {"line break with a header", "http://127.0.0.1:{other}/x\rX-Token: 1", false},
      {"loop", "/model", false, true},
      {"file", "file:///etc/passwd", false},
  };
  for (const Shape& shape : shapes) {
    SCOPED_TRACE(shape.name);
    const auto serve = [this](const HttpRequest& request) { return honest(object_, request); };
    const LoopbackServer other(serve);
    const LoopbackServer tls(serve, {.tls = &identity_, .greeting = {}, .address = "127.0.0.1"});
    unsigned short port = 0;
    const LoopbackServer origin([&](const HttpRequest& request) {
      if (request.target.rfind("/model", 0) != 0) {
        return honest(object_, request);
      }
      return redirect(
          fill_in(fill_in(fill_in(shape.location, "{port}", port), "{other}", other.port()),
                  "{tls}", tls.port()));
    });
    port = origin.port();
    const auto text = read(origin);
    ASSERT_EQ(text.has_value(), shape.followed) << (text ? "followed" : text.error().message());
    if (text) {
      EXPECT_TRUE(*text == object_);
    } else {
      EXPECT_EQ(text.error().code(), ErrorCode::bad_input) << text.error().message();
      EXPECT_THAT(text.error().message(), ::testing::Not(HasSubstr(kCanary)));
    }
    for (const LoopbackServer* server : {&other, &tls}) {
      for (const HttpRequest& request : server->requests()) {
        EXPECT_FALSE(carries_canary(request)) << request.target;
      }
    }
    // The origin under its own name is told; under another name it is another host.
    const std::string own_name = "127.0.0.1:" + std::to_string(port);
    for (const HttpRequest& request : origin.requests()) {
      const bool own = request.headers.at("host") == own_name;
      EXPECT_EQ(request.headers.count("x-token"), own ? 1U : 0U) << request.target;
      EXPECT_EQ(carries_canary(request), own) << request.target;
    }
  }
}

// Goal: what was left behind on the way to another host does not come back with a later hop there.
TEST_F(RedirectTest, SecretsDoNotJumpOverAHop) {
  const LoopbackServer last(
      [this](const HttpRequest& request) { return honest(object_, request); });
  const LoopbackServer middle([&](const HttpRequest&) { return redirect(last.url("/x")); });
  const LoopbackServer origin([&](const HttpRequest& request) {
    return redirect(request.target == "/second" ? middle.url("/x") : "/second");
  });
  const auto text = read(origin);
  ASSERT_TRUE(text) << text.error().message();
  for (const LoopbackServer* server : {&middle, &last}) {
    ASSERT_FALSE(server->requests().empty());
    for (const HttpRequest& request : server->requests()) {
      EXPECT_FALSE(carries_canary(request));
    }
  }
  EXPECT_TRUE(carries_canary(origin.requests().at(1)));  // It does go along within the origin.
}

// Goal: neither a redirect to plain http nor one that comes back to https loses the protection.
TEST_F(RedirectTest, NoSecretLeavesTls) {
  const LoopbackServer plain(
      [this](const HttpRequest& request) { return honest(object_, request); });
  const LoopbackServer origin([&](const HttpRequest&) { return redirect(plain.url("/x")); },
                              {.tls = &identity_, .greeting = {}, .address = "127.0.0.1"});
  const auto text = read(origin);
  ASSERT_FALSE(text);
  EXPECT_EQ(text.error().code(), ErrorCode::bad_input);
  EXPECT_TRUE(plain.requests().empty());
}

// Goal: a public server cannot make us ask machines inside our own network, by whatever name.
// Method: 127.0.0.2 plays the public Internet; all else is what it is.
TEST_F(RedirectTest, APublicServerCannotSendUsInside) {
  options_.is_public = [](const std::string& address) { return address == "127.0.0.2"; };
  const char* const places[] = {
      "http://127.0.0.1:{port}/x",
      "http://localhost:{port}/x",
      "http://sub.localhost:{port}/x",
      "http://2130706433:{port}/x",
      "http://0x7f000001:{port}/x",
      "http://0177.0.0.1:{port}/x",
      "http://127.1:{port}/x",
      "http://[::1]:{port}/x",
      "http://[::ffff:127.0.0.1]:{port}/x",
      "http://0.0.0.0:{port}/x",
      "http://10.0.0.1:{port}/x",
      "http://192.168.1.1:{port}/x",
      "http://172.16.0.1:{port}/x",
      "http://100.64.0.1:{port}/x",
      "http://169.254.169.254/latest/",
      "http://[fe80::1]:{port}/x",
      "http://[fc00::1]:{port}/x",
      "https://127.0.0.1:{port}/x",
  };
  for (const char* place : places) {
    SCOPED_TRACE(place);
    const LoopbackServer inside(
        [this](const HttpRequest& request) { return honest(object_, request); });
    const LoopbackServer outside(
        [&](const HttpRequest&) { return redirect(fill_in(place, "{port}", inside.port())); },
        {.tls = nullptr, .greeting = {}, .address = "127.0.0.2"});
    const auto text = read(outside);
    ASSERT_FALSE(text);
    EXPECT_EQ(text.error().code(), ErrorCode::bad_input) << text.error().message();
    EXPECT_THAT(text.error().message(), HasSubstr("private network"));
    EXPECT_TRUE(inside.requests().empty());
  }
}

// Goal: nor can it with a stop at a second public host in between.
TEST_F(RedirectTest, APublicServerCannotSendUsInsideByADetour) {
  options_.is_public = [](const std::string& address) { return address != "127.0.0.1"; };
  const LoopbackServer inside(
      [this](const HttpRequest& request) { return honest(object_, request); });
  const LoopbackServer second([&](const HttpRequest&) { return redirect(inside.url("/x")); },
                              {.tls = nullptr, .greeting = {}, .address = "127.0.0.3"});
  const LoopbackServer first([&](const HttpRequest&) { return redirect(second.url("/x")); },
                             {.tls = nullptr, .greeting = {}, .address = "127.0.0.2"});
  const auto text = read(first);
  ASSERT_FALSE(text);
  EXPECT_EQ(text.error().code(), ErrorCode::bad_input) << text.error().message();
  EXPECT_EQ(second.requests().size(), 1U);
  EXPECT_TRUE(inside.requests().empty());
}

// Goal: the refusal is for that alone: between public hosts, and inside, redirects are followed.
TEST_F(RedirectTest, OtherRedirectsAreFollowed) {
  const LoopbackServer target(
      [this](const HttpRequest& request) { return honest(object_, request); },
      {.tls = nullptr, .greeting = {}, .address = "127.0.0.3"});
  const LoopbackServer origin([&](const HttpRequest&) { return redirect(target.url("/x")); },
                              {.tls = nullptr, .greeting = {}, .address = "127.0.0.2"});
  const auto public_ones = [](const std::string& /*address*/) { return true; };
  const auto inside_to_outside = [](const std::string& address) { return address == "127.0.0.3"; };
  const auto private_ones = [](const std::string& /*address*/) { return false; };
  for (const auto& is_public : {std::function<bool(const std::string&)>(public_ones),
                                std::function<bool(const std::string&)>(inside_to_outside),
                                std::function<bool(const std::string&)>(private_ones)}) {
    options_.is_public = is_public;
    const auto text = read(origin);
    ASSERT_TRUE(text) << text.error().message();
    EXPECT_TRUE(*text == object_);
  }
}

// Goal: behind a proxy, which looks names up for us, literal private addresses are still refused.
TEST(RedirectHop, RefusesLiteralPrivateAddressesOnceOutside) {
  const TransferRequest request;
  const ResponseHead head;
  HttpHop hop;
  hop.headers = {"X-Token: secret"};
  hop.url = *parse_uri("https://weights.test/model");
  const auto follow = [&](const std::string& place) {
    return redirect_hop({request, hop, 0, head, false}, place);
  };
  for (const char* place :
       {"https://127.0.0.1/x", "https://localhost/x", "https://LOCALHOST/x", "https://[::1]/x",
        "https://10.1.2.3/x", "https://192.168.0.9/x", "https://172.31.0.1/x",
        "https://169.254.169.254/x", "https://100.64.0.1/x", "https://0.0.0.0/x",
        "https://2130706433/x", "https://[fe80::1]/x", "https://[fd00::1]/x",
        "https://[::ffff:10.0.0.1]/x", "https://a.localhost/x", "https://localhost./x"}) {
    const auto next = follow(place);
    EXPECT_FALSE(next) << place;
  }
  for (const char* place : {"https://8.8.8.8/x", "https://cdn.weights.test/x", "/other"}) {
    const auto next = follow(place);
    ASSERT_TRUE(next) << place;
    EXPECT_EQ(next->headers.empty(), std::string(place) != "/other") << place;
    EXPECT_TRUE(next->redirected);
  }
}

}  // namespace
}  // namespace librarian::weightmap::remote
