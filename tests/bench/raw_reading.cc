#include "tests/bench/raw_reading.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <mutex>
#include <optional>
#include <string_view>
#include <thread>
#include <vector>

#include "base/unique_handle.h"
#include "base/units.h"

namespace librarian::bench {
namespace {

constexpr std::size_t kHeadBytesMax = 16 * kKiB;

struct SocketTraits {
  using Raw = int;
  static constexpr Raw null = -1;
  static void close(Raw socket) noexcept { static_cast<void>(::close(socket)); }
};
using Socket = UniqueHandle<SocketTraits>;

Error from_errno(const std::string& action) {
  return {ErrorCode::unavailable, "cannot " + action + ": " + std::strerror(errno)};
}

std::optional<std::uint64_t> parse_number(std::string_view text) {
  std::uint64_t number = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), number);
  return failed == std::errc() ? std::optional(number) : std::nullopt;
}

// One connection that asks for ranges, one after the other.
class Connection {
 public:
  explicit Connection(const RawObject& object) : object_(object) {}

  Result<void> open() {
    socket_ = Socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(object_.port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
      return from_errno("connect to 127.0.0.1:" + std::to_string(object_.port));
    }
    return {};
  }

  /// Reads `destination.size()` bytes from `begin` on. @return the object's size.
  Result<std::uint64_t> read(std::uint64_t begin, std::span<std::byte> destination) {
    LIB_TRY_VOID(ask(begin, begin + destination.size()));
    LIB_TRY(const Head head, receive_head());
    if (head.begin != begin || head.end != begin + destination.size()) {
      return Error(ErrorCode::bad_input, "the server sent another range than was asked for");
    }
    const std::size_t there = std::min(seen_ - head.bytes, destination.size());
    std::memcpy(destination.data(), buffer_.data() + head.bytes, there);
    for (std::size_t at = there; at < destination.size();) {
      const ssize_t got =
          ::recv(socket_.get(), destination.data() + at, destination.size() - at, 0);
      if (got <= 0) {
        return from_errno("receive a body");
      }
      at += static_cast<std::size_t>(got);
    }
    return head.object_bytes;
  }

 private:
  struct Head {
    std::size_t bytes;  // Of the head itself; the body begins behind them.
    std::uint64_t begin;
    std::uint64_t end;
    std::uint64_t object_bytes;
  };

  Result<void> ask(std::uint64_t begin, std::uint64_t end) {
    const std::string request = "GET " + object_.path + " HTTP/1.1\r\nHost: 127.0.0.1\r\nRange: " +
                                "bytes=" + std::to_string(begin) + "-" + std::to_string(end - 1) +
                                "\r\n\r\n";
    if (::send(socket_.get(), request.data(), request.size(), MSG_NOSIGNAL) !=
        static_cast<ssize_t>(request.size())) {
      return from_errno("send a request");
    }
    return {};
  }

  Result<Head> receive_head() {
    seen_ = 0;
    while (true) {
      const ssize_t got = ::recv(socket_.get(), buffer_.data() + seen_, buffer_.size() - seen_, 0);
      if (got <= 0) {
        return from_errno("receive an answer");
      }
      seen_ += static_cast<std::size_t>(got);
      const std::string_view text(buffer_.data(), seen_);
      const std::size_t end = text.find("\r\n\r\n");
      if (end != std::string_view::npos) {
        return parse_head(text.substr(0, end + 4));
      }
      if (seen_ == buffer_.size()) {
        return Error(ErrorCode::bad_input, "the server's head is longer than 16 KiB");
      }
    }
  }

  static Result<Head> parse_head(std::string_view text) {
    constexpr std::string_view kField = "\r\nContent-Range: bytes ";
    const std::size_t field = text.find(kField);
    if (!text.starts_with("HTTP/1.1 206 ") || field == std::string_view::npos) {
      return Error(ErrorCode::bad_input, "the server did not answer with the range: " +
                                             std::string(text.substr(0, text.find('\r'))));
    }
    const std::string_view range = text.substr(field + kField.size());
    const auto first = parse_number(range);
    const auto last = parse_number(range.substr(range.find('-') + 1));
    const auto size = parse_number(range.substr(range.find('/') + 1));
    if (!first || !last || !size) {
      return Error(ErrorCode::bad_input, "the server's Content-Range is not understood");
    }
    return Head{text.size(), *first, *last + 1, *size};
  }

  const RawObject& object_;
  Socket socket_;
  std::array<char, kHeadBytesMax> buffer_;
  std::size_t seen_ = 0;  // Bytes in buffer_: a head, and what of the body came with it.
};

}  // namespace

Result<RawObject> parse_raw_url(const std::string& url) {
  constexpr std::string_view kBegin = "http://127.0.0.1:";
  const std::size_t slash = url.find('/', kBegin.size());
  if (!url.starts_with(kBegin) || slash == std::string::npos) {
    return Error(ErrorCode::invalid_argument,
                 url + ": raw reads http://127.0.0.1:PORT/PATH and nothing else");
  }
  const auto port = parse_number(std::string_view(url).substr(kBegin.size()));
  return RawObject{static_cast<std::uint16_t>(port.value_or(0)), url.substr(slash)};
}

Result<std::uint64_t> raw_object_bytes(const RawObject& object) {
  Connection connection(object);
  LIB_TRY_VOID(connection.open());
  std::array<std::byte, 1> first{};
  return connection.read(0, first);
}

Result<std::uint64_t> read_raw(const RawObject& object, std::uint32_t connections,
                               std::uint64_t request_bytes, std::uint32_t passes,
                               std::span<std::byte> destination) {
  const std::uint64_t per_pass = (destination.size() + request_bytes - 1) / request_bytes;
  std::atomic<std::uint64_t> next{0};
  std::mutex mutex;
  std::optional<Error> failure;
  const auto read_ranges = [&]() -> Result<void> {
    Connection connection(object);
    LIB_TRY_VOID(connection.open());
    while (true) {
      const std::uint64_t request = next++;
      if (request >= per_pass * passes) {
        return {};
      }
      const std::uint64_t begin = request % per_pass * request_bytes;
      const std::uint64_t bytes =
          std::min<std::uint64_t>(request_bytes, destination.size() - begin);
      LIB_TRY_VOID(connection.read(begin, destination.subspan(begin, bytes)).map([](auto) {}));
    }
  };
  std::vector<std::jthread> threads;
  for (std::uint32_t i = 0; i < connections; ++i) {
    threads.emplace_back([&] {
      if (auto result = read_ranges(); !result) {
        const std::scoped_lock lock(mutex);
        failure = std::move(result).error();
      }
    });
  }
  threads.clear();
  return failure ? Result<std::uint64_t>(*failure) : per_pass * passes;
}

}  // namespace librarian::bench
