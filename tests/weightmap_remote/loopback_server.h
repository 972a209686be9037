#pragma once
/// A real HTTP server on 127.0.0.1 that answers as a test's script says, byte for byte.

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "tls_identity.h"
#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote::testing {

struct HttpRequest {
  int index = 0;          ///< Counted over all connections, from 0.
  int connection = 0;     ///< Counted from 0.
  int on_connection = 0;  ///< Requests on this connection before it.
  std::string method;
  std::string target;
  std::map<std::string, std::string> headers;  ///< Names in lower case.
  std::optional<ByteRange> range;              ///< Half-open.
};

struct HttpAnswer {
  enum class End : std::uint8_t {
    keep,        ///< Wait for the next request.
    close,       ///< FIN.
    half_close,  ///< FIN, and go on listening until the client goes away.
    reset,       ///< RST, once all bytes are at the client.
    hang,        ///< Send nothing more until the client goes away.
  };
  std::string bytes;  ///< Head and body as they go on the wire.
  End end = End::keep;
  /// What follows the first `at_once` bytes goes out one byte at a time, `pause` apart.
  std::size_t at_once = std::string::npos;
  std::chrono::milliseconds pause{0};
  /// Sent again and again after `bytes` until the client goes away; empty: not at all.
  std::string endless{};
  std::uint64_t endless_times = std::numeric_limits<std::uint64_t>::max();  ///< At most so often.
};

/// A request's head, which must be well-formed.
HttpRequest parse_request(const std::string& head);

struct ServerOptions {
  const TlsIdentity* tls = nullptr;  ///< Set: https. Must outlive the server.
  /// What a new connection is told before it has asked anything; empty: nothing.
  std::function<std::string(int connection)> greeting;
  std::string address = "127.0.0.1";  ///< Where it listens: any of 127.0.0.0/8.
};

/// Serves until destroyed; ends every connection then. The script runs on the connections'
/// threads, one call at a time. Over TLS no connection ends with a farewell (close_notify).
class LoopbackServer {
 public:
  using Script = std::function<HttpAnswer(const HttpRequest&)>;

  explicit LoopbackServer(Script script, ServerOptions options = {});
  ~LoopbackServer();
  LoopbackServer(const LoopbackServer&) = delete;
  LoopbackServer& operator=(const LoopbackServer&) = delete;

  /// "http://ADDRESS:PORT" + path, or https.
  std::string url(const std::string& path) const;
  unsigned short port() const;
  std::vector<HttpRequest> requests() const;
  /// Returns once `count` answers with End::hang have been sent.
  void wait_for_hanging(int count);
  /// Returns once `count` hanging connections were ended by the client.
  void wait_for_abandoned(int count);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

/// `size` bytes in which each 8-byte word says where it is.
std::string test_object(std::uint64_t size);

/// "HTTP/1.1 206 Partial Content" and fields, one per line; the empty line is added.
std::string head(const std::string& status, const std::vector<std::string>& fields);

/// What a correct server says to `request` for `object` with ETag "v1", quoted.
HttpAnswer honest(const std::string& object, const HttpRequest& request);

}  // namespace librarian::weightmap::remote::testing
