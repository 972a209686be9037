#pragma once
/// One http or https range request: its settings, its redirects, and what of its body may land.

#include <curl/curl.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "weightmap/remote/bandwidth_limit.h"
#include "weightmap/remote/curl_handles.h"
#include "weightmap/remote/http_origin.h"
#include "weightmap/remote/response_check.h"
#include "weightmap/remote/scatter.h"
#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote {

/// Used from the curl loop's thread only. The owner runs prepare() -> libcurl -> ended(), and again
/// while ended() asks for another hop.
class CurlTransfer {
 public:
  /// What all transfers share; it outlives them. Threads may differ.
  struct Shared {
    const TransportOptions& options;
    bool behind_proxy = false;  ///< Addresses may be the proxy's and say nothing of a server.
    BandwidthLimit& bandwidth;
  };

  CurlTransfer(TransferRequest request, HttpOrigin& origin, Shared& shared);
  CurlTransfer(const CurlTransfer&) = delete;
  CurlTransfer& operator=(const CurlTransfer&) = delete;

  /// Sets `easy` up for the current hop; this must live until that hop has ended.
  /// @error invalid_argument | bad_input  the place cannot be asked; plain http is not allowed.
  Result<void> prepare(CURL* easy);

  /// What follows after libcurl ended with `code`: a result, or nothing: one more hop.
  std::optional<TransferResult> ended(CURLcode code);

  /// The result if it ends now, without libcurl having ended it.
  TransferResult ended_with(Error error);

  const TransferRequest& request() const { return request_; }
  /// The server answered a range request with the whole file.
  bool ignores_ranges() const { return verdict_ && verdict_->whole; }

 private:
  static std::size_t on_header(char* data, std::size_t size, std::size_t count, void* self);
  static std::size_t on_body(char* data, std::size_t size, std::size_t count, void* self);
  static int on_progress(void* self, curl_off_t, curl_off_t got_bytes, curl_off_t, curl_off_t);
  static curl_socket_t on_open_socket(void* self, curlsocktype purpose, curl_sockaddr* address);
  void set_request(CURL* easy);
  void set_limits(CURL* easy);
  bool stalled(curl_off_t got_bytes);
  bool take_head_line(std::string_view line);
  void take_head();
  bool take_body(std::span<const std::byte> bytes);
  bool take_unused(std::span<const std::byte> bytes);
  bool is_public(const std::string& address) const;
  bool have_all(CURLcode code) const;
  HttpAnswer answer() const { return {request_, hop_, hops_, head_, from_public_}; }
  Result<std::optional<HttpHop>> next_hop() const;
  Error failure(CURLcode code) const;

  const TransferRequest request_;
  HttpOrigin& origin_;
  Shared& shared_;
  HttpHop hop_;
  std::uint32_t hops_ = 0;  // Before hop_.
  CURL* easy_ = nullptr;
  CurlList headers_;
  // Of the current hop's answer:
  ResponseHead head_;
  std::optional<Error> head_error_;
  std::optional<ResponseVerdict> verdict_;
  bool from_public_ = false;
  bool private_refused_ = false;
  std::uint64_t body_position_ = 0;  // Offset in the object of the next body byte.
  std::string unused_body_;          // Of an answer that is not what was asked.
  std::uint64_t trailer_bytes_ = 0;
  bool overrun_ = false;
  bool stalled_ = false;
  curl_off_t seen_bytes_ = 0;
  std::chrono::steady_clock::time_point started_at_;
  std::chrono::steady_clock::time_point moved_at_;  // When the last byte came.
  char curl_message_[CURL_ERROR_SIZE] = {};
  Scatter scatter_;
  std::uint64_t body_bytes_ = 0;
  std::uint32_t resolves_ = 0;
  Duration first_byte_{};
};

}  // namespace librarian::weightmap::remote
