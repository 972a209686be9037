#pragma once
/// A real HTTP server on 127.0.0.1 that answers as a test's script says, byte for byte.

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote::testing {

struct HttpRequest {
  int index = 0;       ///< Counted over all connections, from 0.
  int connection = 0;  ///< Counted from 0.
  std::string target;
  std::map<std::string, std::string> headers;  ///< Names in lower case.
  std::optional<ByteRange> range;              ///< Half-open.
};

struct HttpAnswer {
  enum class End : std::uint8_t {
    keep,   ///< Wait for the next request.
    close,  ///< FIN.
    reset,  ///< RST.
    hang,   ///< Send nothing more until the client goes away.
  };
  std::string bytes;  ///< Head and body as they go on the wire.
  End end = End::keep;
};

/// A request's head, which must be well-formed.
HttpRequest parse_request(const std::string& head);

/// Serves until destroyed; ends every connection then. The script runs on the connections'
/// threads, one call at a time.
class LoopbackServer {
 public:
  using Script = std::function<HttpAnswer(const HttpRequest&)>;

  explicit LoopbackServer(Script script);
  ~LoopbackServer();
  LoopbackServer(const LoopbackServer&) = delete;
  LoopbackServer& operator=(const LoopbackServer&) = delete;

  /// "http://127.0.0.1:PORT" + path.
  std::string url(const std::string& path) const;
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
