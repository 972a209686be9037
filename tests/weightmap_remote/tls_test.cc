// https against a real TLS server on loopback with a certificate made for the test.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "loopback_server.h"
#include "weightmap/remote/fetcher.h"

namespace librarian::weightmap::remote {
namespace {

using ::testing::HasSubstr;
using testing::head;
using testing::honest;
using testing::HttpAnswer;
using testing::HttpRequest;
using testing::LoopbackServer;

class TlsTest : public ::testing::Test {
 protected:
  TlsTest() {
    std::string made = std::filesystem::temp_directory_path() / "librarian-test-XXXXXX";
    LIB_CHECK(::mkdtemp(made.data()) != nullptr);
    directory_ = made;
    options_.ca_file = directory_ / "ca.pem";
    std::ofstream(options_.ca_file) << testing::pem(identity_);
  }
  ~TlsTest() override { std::filesystem::remove_all(directory_); }

  Result<std::string> read(const std::string& url) {
    const auto transport = make_transport(real_clock(), options_);
    RetryPolicy retry;
    retry.backoff_base = Duration{};
    retry.attempts_max = 3;
    Fetcher fetcher(*transport, real_clock(), {.connections = 2, .retry = retry, .jitter = {}});
    return read_object(fetcher, *parse_uri(url), object_.size(), {});
  }

  std::filesystem::path directory_;
  const testing::TlsIdentity identity_ = testing::make_self_signed("IP:127.0.0.1");
  TransportOptions options_;
  const std::string object_ = testing::test_object(3'000'000);
};

// Goal: https gives the right bytes, also after a connection that is cut without a farewell.
TEST_F(TlsTest, ReadsFromAServerItTrusts) {
  const LoopbackServer server(
      [&](const HttpRequest& request) {
        HttpAnswer answer = honest(object_, request);
        if (request.index == 1) {
          answer.bytes.resize(answer.bytes.size() - 500'000);
          answer.end = HttpAnswer::End::close;
        }
        return answer;
      },
      {.tls = &identity_, .greeting = {}, .address = "127.0.0.1"});
  const auto text = read(server.url("/model"));
  ASSERT_TRUE(text) << text.error().message();
  EXPECT_TRUE(*text == object_);
  EXPECT_EQ(server.requests().size(), 3U);
}

// Goal: a certificate nobody vouches for, or for another name, ends the job before any request.
TEST_F(TlsTest, RefusesCertificatesItDoesNotTrust) {
  const LoopbackServer server([&](const HttpRequest& request) { return honest(object_, request); },
                              {.tls = &identity_, .greeting = {}, .address = "127.0.0.1"});
  const auto other_name = read("https://localhost:" + std::to_string(server.port()) + "/model");
  ASSERT_FALSE(other_name);
  EXPECT_EQ(other_name.error().code(), ErrorCode::bad_input);
  EXPECT_THAT(other_name.error().message(), HasSubstr("certificate"));
  options_.ca_file.clear();
  const auto untrusted = read(server.url("/model"));
  ASSERT_FALSE(untrusted);
  EXPECT_EQ(untrusted.error().code(), ErrorCode::bad_input);
  EXPECT_THAT(untrusted.error().message(), HasSubstr("certificate"));
  EXPECT_TRUE(server.requests().empty());
}

// Goal: a redirect never takes the protection away, not even to this machine.
TEST_F(TlsTest, RefusesARedirectFromHttpsToHttp) {
  const LoopbackServer plain([&](const HttpRequest& request) { return honest(object_, request); });
  const LoopbackServer server(
      [&](const HttpRequest&) -> HttpAnswer {
        return {head("302 Found", {"Location: " + plain.url("/model"), "Content-Length: 0"})};
      },
      {.tls = &identity_, .greeting = {}, .address = "127.0.0.1"});
  options_.insecure_http = true;
  const auto text = read(server.url("/model"));
  ASSERT_FALSE(text);
  EXPECT_EQ(text.error().code(), ErrorCode::bad_input);
  EXPECT_TRUE(plain.requests().empty());
}

}  // namespace
}  // namespace librarian::weightmap::remote
