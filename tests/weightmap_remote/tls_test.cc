// https against a real TLS server on loopback with a certificate made for the test.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <list>
#include <mutex>
#include <thread>
#include <utility>
// <utility> must come first: see base/CMakeLists.txt.
#include <boost/asio.hpp>
#include <boost/asio/ssl.hpp>

#include "loopback_server.h"
#include "weightmap/remote/fetcher.h"

namespace librarian::weightmap::remote {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using ::testing::HasSubstr;
using testing::head;
using testing::honest;
using testing::HttpAnswer;
using testing::HttpRequest;

template <typename Handle, void (*Free)(Handle*)>
struct Freeing {
  void operator()(Handle* handle) const noexcept { Free(handle); }
};
using Key = std::unique_ptr<EVP_PKEY, Freeing<EVP_PKEY, EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Freeing<X509, X509_free>>;
using Extension = std::unique_ptr<X509_EXTENSION, Freeing<X509_EXTENSION, X509_EXTENSION_free>>;

struct Identity {
  Key key;
  Certificate certificate;
};

// A self-signed certificate for `name`, e.g. "IP:127.0.0.1".
Identity make_identity(const std::string& name) {
  Identity identity{Key(EVP_EC_gen("P-256")), Certificate(X509_new())};
  X509* certificate = identity.certificate.get();
  X509_set_version(certificate, 2);  // Counted from 0: this is version 3.
  ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
  X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
  X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
  X509_set_pubkey(certificate, identity.key.get());
  X509_NAME* subject = X509_get_subject_name(certificate);
  const auto* common_name = reinterpret_cast<const unsigned char*>("librarian test");
  X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, common_name, -1, -1, 0);
  X509_set_issuer_name(certificate, subject);
  const Extension names(X509V3_EXT_conf_nid(nullptr, nullptr, NID_subject_alt_name, name.c_str()));
  X509_add_ext(certificate, names.get(), -1);
  LIB_CHECK(X509_sign(certificate, identity.key.get(), EVP_sha256()) > 0);
  return identity;
}

// Answers each request as the script says, over TLS, until destroyed.
class TlsServer {
 public:
  using Script = std::function<HttpAnswer(const HttpRequest&)>;

  TlsServer(const Identity& identity, Script script) : script_(std::move(script)) {
    LIB_CHECK(SSL_CTX_use_certificate(tls_.native_handle(), identity.certificate.get()) == 1);
    LIB_CHECK(SSL_CTX_use_PrivateKey(tls_.native_handle(), identity.key.get()) == 1);
    accepting_ = std::thread([this] { accept(); });
  }
  ~TlsServer() {
    {
      const std::lock_guard guard(mutex_);
      stopping_ = true;
      ::shutdown(acceptor_.native_handle(), SHUT_RDWR);
      for (Stream& stream : streams_) {
        ::shutdown(stream.next_layer().native_handle(), SHUT_RDWR);
      }
    }
    accepting_.join();
    for (std::thread& thread : threads_) {
      thread.join();
    }
  }
  TlsServer(const TlsServer&) = delete;
  TlsServer& operator=(const TlsServer&) = delete;

  std::string url(const std::string& host) const {
    return "https://" + host + ":" + std::to_string(acceptor_.local_endpoint().port()) + "/model";
  }

 private:
  using Stream = asio::ssl::stream<tcp::socket>;

  void accept() {
    while (true) {
      tcp::socket socket(context_);
      boost::system::error_code failed;
      acceptor_.accept(socket, failed);
      const std::lock_guard guard(mutex_);
      if (failed || stopping_) {
        return;
      }
      Stream& stream = streams_.emplace_back(std::move(socket), tls_);
      threads_.emplace_back([this, &stream] { serve(stream); });
    }
  }

  void serve(Stream& stream) {
    boost::system::error_code failed;
    stream.handshake(Stream::server, failed);
    std::string buffer;
    while (!failed) {
      const std::size_t bytes =
          asio::read_until(stream, asio::dynamic_buffer(buffer), "\r\n\r\n", failed);
      if (failed) {
        break;
      }
      const HttpAnswer answer = script_(testing::parse_request(buffer.substr(0, bytes)));
      buffer.erase(0, bytes);
      asio::write(stream, asio::buffer(answer.bytes), failed);
      if (answer.end != HttpAnswer::End::keep) {
        break;
      }
    }
    // Without close_notify: what a cut connection looks like.
    ::shutdown(stream.next_layer().native_handle(), SHUT_RDWR);
  }

  const Script script_;
  asio::io_context context_;
  asio::ssl::context tls_{asio::ssl::context::tls_server};
  tcp::acceptor acceptor_{context_, tcp::endpoint(asio::ip::address_v4::loopback(), 0)};
  std::mutex mutex_;
  bool stopping_ = false;
  std::list<Stream> streams_;
  std::vector<std::thread> threads_;
  std::thread accepting_;
};

class TlsTest : public ::testing::Test {
 protected:
  TlsTest() {
    std::string made = std::filesystem::temp_directory_path() / "librarian-test-XXXXXX";
    LIB_CHECK(::mkdtemp(made.data()) != nullptr);
    directory_ = made;
    options_.ca_file = directory_ / "ca.pem";
    BIO* memory = BIO_new(BIO_s_mem());
    PEM_write_bio_X509(memory, identity_.certificate.get());
    char* text = nullptr;
    const long bytes = BIO_get_mem_data(memory, &text);
    std::ofstream(options_.ca_file) << std::string(text, static_cast<std::size_t>(bytes));
    BIO_free(memory);
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
  const Identity identity_ = make_identity("IP:127.0.0.1");
  TransportOptions options_;
  const std::string object_ = testing::test_object(3'000'000);
};

// Goal: https gives the right bytes, also after a connection that is cut without a farewell.
TEST_F(TlsTest, ReadsFromAServerItTrusts) {
  std::atomic<int> requests = 0;
  const TlsServer server(identity_, [&](const HttpRequest& request) {
    HttpAnswer answer = honest(object_, request);
    if (requests++ == 1) {
      answer.bytes.resize(answer.bytes.size() - 500'000);
      answer.end = HttpAnswer::End::close;
    }
    return answer;
  });
  const auto text = read(server.url("127.0.0.1"));
  ASSERT_TRUE(text) << text.error().message();
  EXPECT_TRUE(*text == object_);
  EXPECT_EQ(requests, 3);
}

// Goal: a certificate nobody vouches for, or for another name, ends the job before any request.
TEST_F(TlsTest, RefusesCertificatesItDoesNotTrust) {
  std::atomic<int> requests = 0;
  const TlsServer server(identity_, [&](const HttpRequest& request) {
    ++requests;
    return honest(object_, request);
  });
  const auto other_name = read(server.url("localhost"));
  ASSERT_FALSE(other_name);
  EXPECT_EQ(other_name.error().code(), ErrorCode::bad_input);
  EXPECT_THAT(other_name.error().message(), HasSubstr("certificate"));
  options_.ca_file.clear();
  const auto untrusted = read(server.url("127.0.0.1"));
  ASSERT_FALSE(untrusted);
  EXPECT_EQ(untrusted.error().code(), ErrorCode::bad_input);
  EXPECT_THAT(untrusted.error().message(), HasSubstr("certificate"));
  EXPECT_EQ(requests, 0);
}

// Goal: a redirect never takes the protection away, not even to this machine.
TEST_F(TlsTest, RefusesARedirectFromHttpsToHttp) {
  const testing::LoopbackServer plain(
      [&](const HttpRequest& request) { return honest(object_, request); });
  const TlsServer server(identity_, [&](const HttpRequest&) -> HttpAnswer {
    return {head("302 Found", {"Location: " + plain.url("/model"), "Content-Length: 0"})};
  });
  options_.insecure_http = true;
  const auto text = read(server.url("127.0.0.1"));
  ASSERT_FALSE(text);
  EXPECT_EQ(text.error().code(), ErrorCode::bad_input);
  EXPECT_TRUE(plain.requests().empty());
}

}  // namespace
}  // namespace librarian::weightmap::remote
