#include "weightmap/remote/curl_transfer.h"

#include <algorithm>
#include <chrono>

#include "base/units.h"
#include "weightmap/remote/uri_parts.h"

namespace librarian::weightmap::remote {
namespace {

constexpr int kRedirectsMax = 5;
// An error's or redirect's body is read to keep the connection, but not for long.
constexpr std::uint64_t kUnusedBodyBytesMax = 4096;
// libcurl hands over at most 16 KiB at once whatever this is; a larger one saves system calls.
constexpr long kReceiveBufferBytes = 512L << 10U;
constexpr const char* kUserAgent = "librarian";

std::int64_t wall_now_s() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

template <typename Value>
void set(CURL* easy, CURLoption option, Value value) {
  LIB_CHECK(curl_easy_setopt(easy, option, value) == CURLE_OK);
}

template <typename Rep, typename Period>
long count_of(Duration duration, std::chrono::duration<Rep, Period> unit) {
  return static_cast<long>(std::max<Duration::rep>(duration / unit, 1));
}

}  // namespace

CurlTransfer::CurlTransfer(TransferRequest request, const TransportOptions& options)
    : request_(std::move(request)),
      options_(options),
      uri_(request_.uri),
      scatter_(request_.range.begin, request_.pieces) {}

Result<void> CurlTransfer::prepare(CURL* easy) {
  LIB_TRY_VOID(check_allowed(uri_, options_.insecure_http));
  head_ = {};
  head_error_.reset();
  verdict_.reset();
  drained_bytes_ = 0;
  curl_message_[0] = '\0';
  seen_bytes_ = 0;
  moved_at_ = std::chrono::steady_clock::now();

  curl_easy_reset(easy);
  set(easy, CURLOPT_URL, uri_.text.c_str());
  set(easy, CURLOPT_PROTOCOLS_STR, uri_.scheme.c_str());
  set(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);  // A proxy's head is not the server's.
  set(easy, CURLOPT_FOLLOWLOCATION, 0L);            // Each hop is checked here, not by libcurl.
  set(easy, CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
  set(easy, CURLOPT_NOSIGNAL, 1L);
  // Without it, ending a transfer waits for a name look-up that may hang for half a minute.
  set(easy, CURLOPT_QUICK_EXIT, 1L);
  set(easy, CURLOPT_USERAGENT, kUserAgent);
  set(easy, CURLOPT_NETRC, static_cast<long>(CURL_NETRC_IGNORED));
  set(easy, CURLOPT_BUFFERSIZE, kReceiveBufferBytes);
  set(easy, CURLOPT_TCP_KEEPALIVE, 1L);
  set(easy, CURLOPT_TCP_NODELAY, 1L);
  set(easy, CURLOPT_FRESH_CONNECT, request_.fresh_connection ? 1L : 0L);
  set(easy, CURLOPT_CONNECTTIMEOUT_MS,
      count_of(options_.connect_timeout, std::chrono::milliseconds(1)));
  set(easy, CURLOPT_LOW_SPEED_LIMIT, static_cast<long>(options_.low_speed_bytes_per_second));
  set(easy, CURLOPT_LOW_SPEED_TIME, count_of(options_.low_speed_time, std::chrono::seconds(1)));
  // libcurl calls it with each read and, while nothing comes, once a second.
  set(easy, CURLOPT_NOPROGRESS, 0L);
  set(easy, CURLOPT_XFERINFOFUNCTION, &CurlTransfer::on_progress);
  set(easy, CURLOPT_XFERINFODATA, this);
  if (is_loopback(uri_)) {
    set(easy, CURLOPT_NOPROXY, "*");  // A proxy's loopback is another machine.
  }
  if (!options_.ca_file.empty()) {
    set(easy, CURLOPT_CAINFO, options_.ca_file.c_str());
  }
  // libcurl's own range and decoding stay out of the way: response_check.h has the last word.
  set(easy, CURLOPT_HTTP_CONTENT_DECODING, 0L);
  const std::string range = std::to_string(request_.range.begin) + "-" +
                            std::to_string(request_.range.end - 1);  // The last byte, inclusive.
  set(easy, CURLOPT_RANGE, range.c_str());
  headers_.reset(curl_slist_append(nullptr, "Accept-Encoding: identity"));
  if (const std::string tag = if_match_value(request_.expected); !tag.empty()) {
    curl_slist_append(headers_.get(), ("If-Match: " + tag).c_str());
  }
  set(easy, CURLOPT_HTTPHEADER, headers_.get());
  set(easy, CURLOPT_ERRORBUFFER, &curl_message_[0]);
  set(easy, CURLOPT_HEADERFUNCTION, &CurlTransfer::on_header);
  set(easy, CURLOPT_HEADERDATA, this);
  set(easy, CURLOPT_WRITEFUNCTION, &CurlTransfer::on_body);
  set(easy, CURLOPT_WRITEDATA, this);
  return {};
}

std::size_t CurlTransfer::on_header(char* data, std::size_t size, std::size_t count, void* self) {
  const std::size_t bytes = size * count;
  // Any other number than all of them ends the transfer.
  return static_cast<CurlTransfer*>(self)->take_head_line({data, bytes}) ? bytes : 0;
}

std::size_t CurlTransfer::on_body(char* data, std::size_t size, std::size_t count, void* self) {
  const std::size_t bytes = size * count;
  const std::span<const std::byte> body(reinterpret_cast<const std::byte*>(data), bytes);
  return static_cast<CurlTransfer*>(self)->take_body(body) ? bytes : 0;
}

int CurlTransfer::on_progress(void* self, curl_off_t /*expected*/, curl_off_t got_bytes,
                              curl_off_t /*to_send*/, curl_off_t /*sent*/) {
  return static_cast<CurlTransfer*>(self)->stalled(got_bytes) ? 1 : 0;
}

bool CurlTransfer::stalled(curl_off_t got_bytes) {
  const auto now = std::chrono::steady_clock::now();
  if (got_bytes != seen_bytes_) {
    seen_bytes_ = got_bytes;
    moved_at_ = now;
  }
  stalled_ = now - moved_at_ >= options_.stall_time;
  return stalled_;
}

bool CurlTransfer::take_head_line(std::string_view line) {
  moved_at_ = std::chrono::steady_clock::now();
  if (verdict_) {  // A trailer: nothing that counts may come that late.
    drained_bytes_ += line.size();
    return drained_bytes_ <= kUnusedBodyBytesMax;
  }
  if (auto added = head_.add_line(line); !added) {
    head_error_ = std::move(added).error();
    return false;
  }
  if (head_.complete() && head_.status() >= 200) {
    verdict_ = check_response(head_, {request_.range, request_.expected, hops_ > 0, wall_now_s()});
    body_position_ = verdict_->body_begin;
  }
  return true;
}

bool CurlTransfer::take_body(std::span<const std::byte> bytes) {
  body_bytes_ += bytes.size();
  if (!verdict_ || verdict_->error || !verdict_->location.empty()) {
    drained_bytes_ += bytes.size();
    return verdict_ && drained_bytes_ <= kUnusedBodyBytesMax;
  }
  const ByteRange wanted = verdict_->wanted;
  const ByteRange got{body_position_, body_position_ + bytes.size()};
  body_position_ = got.end;
  const std::uint64_t begin = std::max(got.begin, wanted.begin);
  const std::uint64_t end = std::min(got.end, wanted.end);
  if (begin < end) {
    LIB_CHECK(begin == scatter_.position());
    scatter_.append(bytes.subspan(begin - got.begin, end - begin));
  }
  if (got.end > wanted.end && !verdict_->whole) {
    overrun_ = true;  // More than it announced: none of it can be trusted.
    return false;
  }
  // A whole file where a range was asked: what follows is not wanted.
  return got.end < wanted.end || wanted.end == verdict_->info.size || !verdict_->whole;
}

bool CurlTransfer::have_all() const {
  return verdict_ && !verdict_->error && verdict_->location.empty() && !overrun_ &&
         scatter_.position() == verdict_->wanted.end;
}

std::optional<Error> CurlTransfer::follow() {
  if (++hops_ > kRedirectsMax) {
    return Error(ErrorCode::bad_input, "the server redirects more than " +
                                           std::to_string(kRedirectsMax) + " times; check the URL");
  }
  auto target = resolve_location(uri_, verdict_->location);
  if (!target) {
    return std::move(target).error();
  }
  if (auto allowed = check_allowed(*target, options_.insecure_http); !allowed) {
    return std::move(allowed)
        .error()
        .with_code(ErrorCode::bad_input)
        .with_context("the server redirects to " + target->display());
  }
  uri_ = *std::move(target);
  return std::nullopt;
}

std::optional<TransferResult> CurlTransfer::ended(CURLcode code) {
  if (verdict_ && !verdict_->location.empty()) {
    auto error = follow();
    return error ? std::optional(ended_with(*std::move(error))) : std::nullopt;
  }
  if (verdict_ && verdict_->error) {
    return ended_with(*verdict_->error);
  }
  if (have_all()) {
    TransferResult result = ended_with(Error(ErrorCode::internal, ""));
    result.error.reset();
    return result;
  }
  return ended_with(failure(code));
}

Error CurlTransfer::failure(CURLcode code) const {
  if (head_error_) {
    return *head_error_;
  }
  if (overrun_) {
    return {ErrorCode::unavailable, "the server sent more bytes than it announced"};
  }
  if (stalled_) {
    return {ErrorCode::unavailable,
            "no byte came for " + format_duration(options_.stall_time) + ", after " +
                std::to_string(scatter_.position() - request_.range.begin) + " bytes"};
  }
  const std::string text =
      curl_message_[0] != '\0' ? std::string(curl_message_) : curl_easy_strerror(code);
  switch (code) {
    case CURLE_OK:
    case CURLE_PARTIAL_FILE:
      return {ErrorCode::unavailable,
              "the body ended after " + std::to_string(scatter_.position() - request_.range.begin) +
                  " bytes"};
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ISSUER_ERROR:
    case CURLE_SSL_PINNEDPUBKEYNOTMATCH:
      return {ErrorCode::bad_input, "the server's certificate is not trusted (" + text +
                                        "); check the host name and "
                                        "the machine's certificates"};
    case CURLE_URL_MALFORMAT:
    case CURLE_NOT_BUILT_IN:
      return {ErrorCode::invalid_argument, text};
    default:
      return {ErrorCode::unavailable, text};
  }
}

TransferResult CurlTransfer::ended_with(Error error) {
  TransferResult result;
  // After an overrun the whole answer is suspect, also the bytes that looked right.
  result.bytes_in_order = overrun_ ? 0 : scatter_.position() - request_.range.begin;
  result.body_bytes = body_bytes_;
  result.piece_bytes = scatter_.piece_bytes();
  result.status = head_.status();
  if (verdict_) {
    result.retry_after = verdict_->retry_after;
    if (!verdict_->error && verdict_->location.empty()) {
      result.info = verdict_->info;
    }
  }
  result.error = std::move(error);
  return result;
}

}  // namespace librarian::weightmap::remote
