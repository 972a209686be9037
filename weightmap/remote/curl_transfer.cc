#include "weightmap/remote/curl_transfer.h"

#include <arpa/inet.h>

#include <algorithm>
#include <array>
#include <chrono>

#include "base/units.h"
#include "weightmap/remote/address_class.h"
#include "weightmap/remote/curl_failure.h"
#include "weightmap/remote/uri_parts.h"

namespace librarian::weightmap::remote {
namespace {

constexpr std::uint32_t kRedirectsMax = 5;
// An error's or redirect's body is read to keep the connection, but not for long.
constexpr std::uint64_t kUnusedBodyBytesMax = 4096;
// libcurl hands over at most 16 KiB at once whatever this is; a larger one saves system calls.
constexpr std::uint64_t kReceiveBufferBytes = 512U << 10U;
constexpr std::uint64_t kReceiveBufferBytesMin = 1024;  // libcurl takes no smaller one.
// libcurl goes on reading a socket that has more, up to so many buffers in a row.
constexpr std::uint64_t kReadingsInARow = 100;
// Under a limit, the most that all connections together read before the limit is asked again.
constexpr std::uint64_t kReadingsPerSecond = 20;
constexpr std::uint64_t kConnectionsToShare = 16;
constexpr const char* kUserAgent = "librarian";

template <typename Value>
void set(CURL* easy, CURLoption option, Value value) {
  LIB_CHECK(curl_easy_setopt(easy, option, value) == CURLE_OK);
}

template <typename Rep, typename Period>
long count_of(Duration duration, std::chrono::duration<Rep, Period> unit) {
  return static_cast<long>(std::max<Duration::rep>(duration / unit, 1));
}

void append(CurlList& list, const std::string& line) {
  curl_slist* longer = curl_slist_append(list.get(), line.c_str());
  LIB_CHECK(longer != nullptr);
  static_cast<void>(list.release());
  list.reset(longer);
}

// Small enough, under a limit, that what libcurl reads in a row is a fraction of a second's bytes.
std::uint64_t receive_buffer_bytes(const TransportOptions& options) {
  if (options.bandwidth_max == 0) {
    return kReceiveBufferBytes;
  }
  const auto connections = std::min<std::uint64_t>(options.connections, kConnectionsToShare);
  return std::clamp(options.bandwidth_max / (kReadingsPerSecond * kReadingsInARow * connections),
                    kReceiveBufferBytesMin, kReceiveBufferBytes);
}

Error private_refused() {
  return {ErrorCode::bad_input,
          "the server redirects to a host inside a private network, which is refused"};
}

}  // namespace

CurlTransfer::CurlTransfer(TransferRequest request, HttpOrigin& origin, Shared& shared)
    : request_(std::move(request)),
      origin_(origin),
      shared_(shared),
      scatter_(request_.range.begin, request_.pieces) {}

Result<void> CurlTransfer::prepare(CURL* easy) {
  if (hops_ == 0) {
    LIB_TRY(hop_, origin_.first_hop(request_));
  }
  if (auto allowed = check_allowed(hop_.url, shared_.options.insecure_http); !allowed) {
    return hop_.redirected ? allowed.error()
                                 .with_code(ErrorCode::bad_input)
                                 .with_context("the server redirects to " + hop_.url.display())
                           : allowed.error();
  }
  resolves_ += origin_.resolves(hop_) ? 1 : 0;
  easy_ = easy;
  head_ = {};
  head_error_.reset();
  verdict_.reset();
  unused_body_.clear();
  trailer_bytes_ = 0;
  curl_message_[0] = '\0';
  seen_bytes_ = 0;
  started_at_ = moved_at_ = std::chrono::steady_clock::now();
  curl_easy_reset(easy);
  set_request(easy);
  set_limits(easy);
  return {};
}

void CurlTransfer::set_request(CURL* easy) {
  set(easy, CURLOPT_URL, hop_.url.text.c_str());
  set(easy, CURLOPT_PROTOCOLS_STR, hop_.url.scheme.c_str());
  set(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);  // A proxy's head is not the server's.
  set(easy, CURLOPT_FOLLOWLOCATION, 0L);            // Each hop is checked here, not by libcurl.
  set(easy, CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
  set(easy, CURLOPT_USERAGENT, kUserAgent);
  set(easy, CURLOPT_NETRC, static_cast<long>(CURL_NETRC_IGNORED));
  if (is_loopback(hop_.url)) {
    set(easy, CURLOPT_NOPROXY, "*");  // A proxy's loopback is another machine.
  }
  if (!shared_.options.ca_file.empty()) {
    set(easy, CURLOPT_CAINFO, shared_.options.ca_file.c_str());
  }
  // libcurl's own range and decoding stay out of the way: response_check.h has the last word.
  set(easy, CURLOPT_HTTP_CONTENT_DECODING, 0L);
  headers_.reset();
  append(headers_, "Accept-Encoding: identity");
  if (hop_.head_only) {
    set(easy, CURLOPT_NOBODY, 1L);
  } else if (!request_.document) {
    const std::string range = std::to_string(request_.range.begin) + "-" +
                              std::to_string(request_.range.end - 1);  // The last byte, inclusive.
    set(easy, CURLOPT_RANGE, range.c_str());
  }
  if (!hop_.if_match.empty()) {
    append(headers_, "If-Match: " + hop_.if_match);
  }
  for (const std::string& header : hop_.headers) {
    append(headers_, header);
  }
  set(easy, CURLOPT_HTTPHEADER, headers_.get());
  set(easy, CURLOPT_ERRORBUFFER, &curl_message_[0]);
  set(easy, CURLOPT_HEADERFUNCTION, &CurlTransfer::on_header);
  set(easy, CURLOPT_HEADERDATA, this);
  set(easy, CURLOPT_WRITEFUNCTION, &CurlTransfer::on_body);
  set(easy, CURLOPT_WRITEDATA, this);
}

void CurlTransfer::set_limits(CURL* easy) {
  const TransportOptions& options = shared_.options;
  set(easy, CURLOPT_NOSIGNAL, 1L);
  // Without it, ending a transfer waits for a name look-up that may hang for half a minute.
  set(easy, CURLOPT_QUICK_EXIT, 1L);
  // Refused where a hop that failed has left its buffer behind, which does as well.
  static_cast<void>(
      curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, static_cast<long>(receive_buffer_bytes(options))));
  set(easy, CURLOPT_TCP_KEEPALIVE, 1L);
  set(easy, CURLOPT_TCP_NODELAY, 1L);
  set(easy, CURLOPT_FRESH_CONNECT, request_.fresh_connection ? 1L : 0L);
  set(easy, CURLOPT_CONNECTTIMEOUT_MS,
      count_of(options.connect_timeout, std::chrono::milliseconds(1)));
  std::uint64_t slowest = options.low_speed_bytes_per_second;
  if (options.bandwidth_max != 0) {
    // Our own limit must not look like a slow server.
    slowest = std::min(slowest, options.bandwidth_max / (4 * std::uint64_t{options.connections}));
  }
  set(easy, CURLOPT_LOW_SPEED_LIMIT, static_cast<long>(std::max<std::uint64_t>(slowest, 1)));
  set(easy, CURLOPT_LOW_SPEED_TIME, count_of(options.low_speed_time, std::chrono::seconds(1)));
  // libcurl calls it with each read and, while nothing comes, once a second.
  set(easy, CURLOPT_NOPROGRESS, 0L);
  set(easy, CURLOPT_XFERINFOFUNCTION, &CurlTransfer::on_progress);
  set(easy, CURLOPT_XFERINFODATA, this);
  private_refused_ = false;
  if (hop_.only_public && !shared_.behind_proxy) {
    set(easy, CURLOPT_OPENSOCKETFUNCTION, &CurlTransfer::on_open_socket);
    set(easy, CURLOPT_OPENSOCKETDATA, this);
  }
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

curl_socket_t CurlTransfer::on_open_socket(void* self, curlsocktype /*purpose*/,
                                           curl_sockaddr* address) {
  auto& transfer = *static_cast<CurlTransfer*>(self);
  std::array<char, INET6_ADDRSTRLEN> text{};
  const void* bytes = nullptr;
  if (address->family == AF_INET) {
    bytes = &reinterpret_cast<const sockaddr_in*>(&address->addr)->sin_addr;
  } else if (address->family == AF_INET6) {
    bytes = &reinterpret_cast<const sockaddr_in6*>(&address->addr)->sin6_addr;
  }
  if (bytes == nullptr ||
      ::inet_ntop(address->family, bytes, text.data(), text.size()) == nullptr ||
      !transfer.is_public(text.data())) {
    transfer.private_refused_ = true;
    return CURL_SOCKET_BAD;
  }
  return ::socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

bool CurlTransfer::is_public(const std::string& address) const {
  return shared_.options.is_public ? shared_.options.is_public(address)
                                   : is_public_address(address);
}

bool CurlTransfer::stalled(curl_off_t got_bytes) {
  const auto now = std::chrono::steady_clock::now();
  if (got_bytes != seen_bytes_ || shared_.bandwidth.binds(now)) {
    seen_bytes_ = got_bytes;
    moved_at_ = now;
  }
  stalled_ = now - moved_at_ >= shared_.options.stall_time;
  return stalled_;
}

bool CurlTransfer::take_head_line(std::string_view line) {
  moved_at_ = std::chrono::steady_clock::now();
  if (verdict_) {  // A trailer: nothing that counts may come that late.
    trailer_bytes_ += line.size();
    return trailer_bytes_ <= kUnusedBodyBytesMax;
  }
  if (auto added = head_.add_line(line); !added) {
    head_error_ = std::move(added).error();
    return false;
  }
  if (head_.complete() && head_.status() >= 200) {
    take_head();
    return !private_refused_;
  }
  return true;
}

void CurlTransfer::take_head() {
  char* address = nullptr;
  curl_easy_getinfo(easy_, CURLINFO_PRIMARY_IP, &address);
  from_public_ = !shared_.behind_proxy && address != nullptr && is_public(address);
  // A connection that was kept open was not seen being opened.
  private_refused_ = hop_.only_public && !shared_.behind_proxy && !from_public_;
  if (first_byte_.count() == 0) {
    first_byte_ = std::chrono::duration_cast<Duration>(moved_at_ - started_at_);
  }
  verdict_ = origin_.judge(answer());
  body_position_ = verdict_->body_begin;
}

bool CurlTransfer::take_unused(std::span<const std::byte> bytes) {
  const std::size_t room = kUnusedBodyBytesMax - unused_body_.size();
  unused_body_.append(reinterpret_cast<const char*>(bytes.data()), std::min(room, bytes.size()));
  return verdict_ && bytes.size() <= room;
}

bool CurlTransfer::take_body(std::span<const std::byte> bytes) {
  body_bytes_ += bytes.size();
  if (shared_.options.bandwidth_max != 0) {
    shared_.bandwidth.spend(bytes.size(), std::chrono::steady_clock::now());
  }
  if (!verdict_ || verdict_->error || !verdict_->location.empty()) {
    return take_unused(bytes);
  }
  const ByteRange wanted = verdict_->wanted;
  const ByteRange got{body_position_, body_position_ + bytes.size()};
  body_position_ = got.end;
  const std::uint64_t begin = std::max(got.begin, wanted.begin);
  const std::uint64_t end = std::min(got.end, wanted.end);
  if (begin < end) {
    LIB_CHECK(begin == scatter_.position());
    scatter_.append(bytes.subspan(begin - got.begin, end - begin));
    if (request_.progress) {
      request_.progress->store(scatter_.position() - request_.range.begin,
                               std::memory_order_relaxed);
    }
  }
  if (got.end > wanted.end && !verdict_->whole) {
    overrun_ = true;  // More than it announced: none of it can be trusted.
    return false;
  }
  // A whole file where a range was asked: what follows is not wanted.
  return got.end < wanted.end || wanted.end == verdict_->info.size || !verdict_->whole;
}

bool CurlTransfer::have_all(CURLcode code) const {
  if (!verdict_ || verdict_->error || !verdict_->location.empty() || overrun_) {
    return false;
  }
  // A document without a length is whole when its body has ended well.
  return request_.document && !verdict_->length_known ? code == CURLE_OK
                                                      : scatter_.position() == verdict_->wanted.end;
}

Result<std::optional<HttpHop>> CurlTransfer::next_hop() const {
  LIB_TRY(auto next, origin_.after(answer(), *verdict_, unused_body_));
  if (next && hops_ >= kRedirectsMax) {
    return Error(ErrorCode::bad_input, "the server redirects more than " +
                                           std::to_string(kRedirectsMax) + " times; check the URL");
  }
  return next;
}

std::optional<TransferResult> CurlTransfer::ended(CURLcode code) {
  if (private_refused_) {
    return ended_with(private_refused());
  }
  if (verdict_ && (!verdict_->location.empty() || verdict_->error || hop_.head_only)) {
    auto next = next_hop();
    if (!next) {
      return ended_with(std::move(next).error());
    }
    if (*next) {
      hop_ = **std::move(next);
      ++hops_;
      return std::nullopt;
    }
    if (!verdict_->error) {
      return ended_with(Error(ErrorCode::bad_input, "the server leads nowhere; check the URL"));
    }
    return ended_with(*verdict_->error);
  }
  if (have_all(code)) {
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
  if (overrun_ && request_.document) {
    return {ErrorCode::bad_input, "the answer has more than the " +
                                      std::to_string(request_.range.end) +
                                      " bytes that make sense here; check the URL"};
  }
  if (overrun_) {
    return {ErrorCode::unavailable, "the server sent more bytes than it announced"};
  }
  if (stalled_) {
    return {ErrorCode::unavailable,
            "no byte came for " + format_duration(shared_.options.stall_time) + ", after " +
                std::to_string(scatter_.position() - request_.range.begin) + " bytes"};
  }
  long proxy_status = 0;
  curl_easy_getinfo(easy_, CURLINFO_HTTP_CONNECTCODE, &proxy_status);
  if (proxy_status == 407) {
    return proxy_wants_login();
  }
  if (code == CURLE_OK || code == CURLE_PARTIAL_FILE) {
    return {ErrorCode::unavailable, "the body ended after " +
                                        std::to_string(scatter_.position() - request_.range.begin) +
                                        " bytes"};
  }
  const std::string text =
      curl_message_[0] != '\0' ? std::string(curl_message_) : curl_easy_strerror(code);
  return curl_failure(code, text);
}

TransferResult CurlTransfer::ended_with(Error error) {
  TransferResult result;
  // After an overrun the whole answer is suspect, also the bytes that looked right.
  result.bytes_in_order = overrun_ ? 0 : scatter_.position() - request_.range.begin;
  result.body_bytes = body_bytes_;
  result.piece_bytes = scatter_.piece_bytes();
  result.crcs = scatter_.crcs();
  result.status = head_.status();
  result.first_byte = first_byte_;
  result.resolves = resolves_;
  if (verdict_) {
    result.retry_after = verdict_->retry_after;
    if (!verdict_->error && verdict_->location.empty()) {
      result.info = verdict_->info;
      if (request_.document) {
        result.info->size = scatter_.position();
        result.link = head_.find("link").value_or("");
      }
    }
  }
  result.error = std::move(error);
  return result;
}

}  // namespace librarian::weightmap::remote
