#pragma once
/// Drives libcurl's multi interface from one thread with Boost.Asio. Knows nothing of HTTP.

#include <curl/curl.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "weightmap/remote/bandwidth_limit.h"

namespace librarian::weightmap::remote {

/// Owns the thread, the multi handle and its connections. All members but post() are for the
/// loop's own thread, outside libcurl's callbacks.
class CurlLoop {
 public:
  using Done = std::function<void(CURLcode)>;

  /// @param idle_connections_max  Connections kept open for the next request.
  /// @param bandwidth  Sockets are left alone while it says so: the sender slows down by itself.
  /// Who
  ///                   takes bytes spends them there. The loop's thread only; must outlive the
  ///                   loop.
  CurlLoop(std::uint32_t idle_connections_max, BandwidthLimit& bandwidth);
  /// Runs what was posted, then ends all transfers without calling their `done`.
  ~CurlLoop();
  CurlLoop(const CurlLoop&) = delete;
  CurlLoop& operator=(const CurlLoop&) = delete;

  /// Runs `task` on the loop's thread. Thread-safe; never runs it before returning.
  void post(std::function<void()> task);

  /// Starts a transfer; `easy` stays the caller's and must live until `done` or remove().
  void add(CURL* easy, Done done);
  /// Ends a transfer at once; its `done` is not called.
  void remove(CURL* easy);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace librarian::weightmap::remote
