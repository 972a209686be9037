#pragma once
/// One http or https range request: its settings, its redirects, and what of its body may land.

#include <curl/curl.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "weightmap/remote/curl_handles.h"
#include "weightmap/remote/response_check.h"
#include "weightmap/remote/scatter.h"
#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote {

/// Used from the curl loop's thread only. The owner runs prepare() -> libcurl -> ended(), and again
/// while ended() asks for another hop.
class CurlTransfer {
 public:
  CurlTransfer(TransferRequest request, const TransportOptions& options);
  CurlTransfer(const CurlTransfer&) = delete;
  CurlTransfer& operator=(const CurlTransfer&) = delete;

  /// Sets `easy` up for the current hop; this must live until that hop has ended.
  /// @error invalid_argument  plain http that is not allowed.
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
  bool stalled(curl_off_t got_bytes);
  bool take_head_line(std::string_view line);
  bool take_body(std::span<const std::byte> bytes);
  bool have_all() const;
  std::optional<Error> follow();
  Error failure(CURLcode code) const;

  const TransferRequest request_;
  const TransportOptions& options_;
  Uri uri_;  // Of the current hop.
  int hops_ = 0;
  CurlList headers_;
  // Of the current hop's answer:
  ResponseHead head_;
  std::optional<Error> head_error_;
  std::optional<ResponseVerdict> verdict_;
  std::uint64_t body_position_ = 0;  // Offset in the object of the next body byte.
  std::uint64_t drained_bytes_ = 0;  // Of a body that is not used.
  bool overrun_ = false;
  bool stalled_ = false;
  curl_off_t seen_bytes_ = 0;
  std::chrono::steady_clock::time_point moved_at_;  // When the last byte came.
  char curl_message_[CURL_ERROR_SIZE] = {};
  Scatter scatter_;
  std::uint64_t body_bytes_ = 0;
};

}  // namespace librarian::weightmap::remote
