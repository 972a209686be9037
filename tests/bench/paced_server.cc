// A server of ranges as far away as we like: each request waits for its first byte, each connection
// has a rate, some requests are slow, some are refused. Prints its port. Ends when the process that
// started it does, or when its standard input is closed.
//
// usage: paced_server FILE [--first-byte-ms 30] [--mb-per-s 40] [--slow-percent 0]
//                     [--slow-factor 10] [--unavailable-every 0] [--seed 1]
//
// Every path is FILE. Which requests are slow follows from the seed and the request's number.

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include "base/units.h"

namespace librarian::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kChunkBytes = 128 * kKiB;  // 3 ms at 40 MB/s.
constexpr std::size_t kHeadBytesMax = 16 * kKiB;

struct Options {
  std::string file;
  double first_byte_ms = 30;
  double mb_per_s = 40;
  double slow_percent = 0;
  double slow_factor = 10;
  std::uint64_t unavailable_every = 0;
  std::uint64_t seed = 1;
};

struct Range {
  std::uint64_t begin;
  std::uint64_t end;
};

bool send_text(int socket, const std::string& text) {
  return ::send(socket, text.data(), text.size(), MSG_NOSIGNAL) ==
         static_cast<ssize_t>(text.size());
}

class Server {
 public:
  explicit Server(const Options& options) : options_(options) {}

  Result<void> open() {
    file_ = ::open(options_.file.c_str(), O_RDONLY | O_CLOEXEC);  // NOLINT: C API
    struct stat status {};
    if (file_ < 0 || ::fstat(file_, &status) != 0) {
      return Error(ErrorCode::not_found,
                   options_.file + ": cannot be read: " + std::strerror(errno));
    }
    file_bytes_ = static_cast<std::uint64_t>(status.st_size);
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    if (::bind(listener_, reinterpret_cast<sockaddr*>(&address), length) != 0 ||
        ::listen(listener_, 256) != 0 ||
        ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
      return Error(ErrorCode::io,
                   std::string("cannot listen on 127.0.0.1: ") + std::strerror(errno));
    }
    std::printf("%d\n", int{ntohs(address.sin_port)});
    std::fflush(stdout);
    return {};
  }

  [[noreturn]] void serve() {
    while (true) {
      const int socket = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (socket >= 0) {
        std::thread([this, socket] {
          serve_connection(socket);
          ::close(socket);
        }).detach();
      }
    }
  }

 private:
  void serve_connection(int socket) {
    std::string seen;
    while (true) {
      std::size_t end = seen.find("\r\n\r\n");
      while (end == std::string::npos) {
        char buffer[4096];
        const ssize_t got = ::recv(socket, buffer, sizeof(buffer), 0);
        if (got <= 0 || seen.size() > kHeadBytesMax) {
          return;
        }
        seen.append(buffer, static_cast<std::size_t>(got));
        end = seen.find("\r\n\r\n");
      }
      const std::string head = seen.substr(0, end + 4);
      seen.erase(0, end + 4);
      if (!answer(socket, head)) {
        return;
      }
    }
  }

  bool answer(int socket, const std::string& head) {
    const std::uint64_t number = ++requests_;
    std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(options_.first_byte_ms));
    if (options_.unavailable_every != 0 && number % options_.unavailable_every == 0) {
      return send_text(socket, "HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n");
    }
    const std::optional<Range> asked = range_of(head);
    const Range range = asked.value_or(Range{0, file_bytes_});
    if (range.begin >= range.end) {
      return send_text(socket, "HTTP/1.1 416 No Such Range\r\nContent-Length: 0\r\n\r\n");
    }
    std::string answer = asked ? "HTTP/1.1 206 Partial Content\r\n" : "HTTP/1.1 200 OK\r\n";
    answer += "Content-Length: " + std::to_string(range.end - range.begin) +
              "\r\nAccept-Ranges: bytes\r\nETag: \"bench-1\"\r\n";
    if (asked) {
      answer += "Content-Range: bytes " + std::to_string(range.begin) + "-" +
                std::to_string(range.end - 1) + "/" + std::to_string(file_bytes_) + "\r\n";
    }
    answer += "\r\n";
    return send_text(socket, answer) &&
           (head.starts_with("HEAD ") || send_body(socket, range, is_slow(number)));
  }

  // The last byte leaves when the connection's rate allows it, whatever the socket would take.
  bool send_body(int socket, Range range, bool slow) const {
    const double bytes_per_s = options_.mb_per_s * 1e6 / (slow ? options_.slow_factor : 1);
    const auto begin = Clock::now();
    auto offset = static_cast<off_t>(range.begin);
    const auto end = static_cast<off_t>(range.end);
    while (offset < end) {
      const std::uint64_t chunk = std::min<std::uint64_t>(end - offset, kChunkBytes);
      const auto sent_then = static_cast<double>(offset - static_cast<off_t>(range.begin) + chunk);
      std::this_thread::sleep_until(begin +
                                    std::chrono::duration_cast<Clock::duration>(
                                        std::chrono::duration<double>(sent_then / bytes_per_s)));
      for (const off_t chunk_end = offset + static_cast<off_t>(chunk); offset < chunk_end;) {
        if (::sendfile(socket, file_, &offset, chunk_end - offset) <= 0) {
          return false;
        }
      }
    }
    return true;
  }

  // None: the whole file is asked for. An empty range: one that the file does not have.
  std::optional<Range> range_of(std::string head) const {
    std::transform(head.begin(), head.end(), head.begin(),
                   [](unsigned char c) { return std::tolower(c); });
    constexpr std::string_view kField = "\r\nrange: bytes=";
    const std::size_t field = head.find(kField);
    if (field == std::string::npos) {
      return std::nullopt;
    }
    const char* const head_end = head.data() + head.size();
    Range range{0, 0};
    std::uint64_t last = file_bytes_ - 1;
    const auto first = std::from_chars(head.data() + field + kField.size(), head_end, range.begin);
    if (first.ec == std::errc() && *first.ptr == '-') {
      std::from_chars(first.ptr + 1, head_end, last);
      range.end = std::min(last + 1, file_bytes_);
    }
    return range;
  }

  bool is_slow(std::uint64_t number) const {
    std::uint64_t word = (number + (options_.seed << 32U)) * 0x9E3779B97F4A7C15U;  // splitmix64
    word = (word ^ (word >> 30U)) * 0xBF58476D1CE4E5B9U;
    word = (word ^ (word >> 27U)) * 0x94D049BB133111EBU;
    word ^= word >> 31U;
    return static_cast<double>(word >> 11U) * 0x1p-53 < options_.slow_percent / 100;
  }

  const Options& options_;
  int file_ = -1;
  std::uint64_t file_bytes_ = 0;
  int listener_ = -1;
  std::atomic<std::uint64_t> requests_{0};
};

void end_with_standard_input() {
  std::thread([] {
    char byte = 0;
    while (::read(STDIN_FILENO, &byte, 1) > 0) {
    }
    std::_Exit(0);
  }).detach();
}

int run(int argc, char** argv) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::signal(SIGPIPE, SIG_IGN);  // sendfile() has no flag against it.
  Options options;
  CLI::App app("Serves one file's ranges slowly on a free port of 127.0.0.1.");
  app.add_option("file", options.file)->required();
  app.add_option("--first-byte-ms", options.first_byte_ms);
  app.add_option("--mb-per-s", options.mb_per_s, "of each connection")->check(CLI::PositiveNumber);
  app.add_option("--slow-percent", options.slow_percent);
  app.add_option("--slow-factor", options.slow_factor)->check(CLI::PositiveNumber);
  app.add_option("--unavailable-every", options.unavailable_every, "503; 0: never");
  app.add_option("--seed", options.seed);
  CLI11_PARSE(app, argc, argv);
  Server server(options);
  if (auto opened = server.open(); !opened) {
    std::fprintf(stderr, "paced_server: %s\n", opened.error().message().c_str());
    return 1;
  }
  end_with_standard_input();
  server.serve();
}

}  // namespace
}  // namespace librarian::bench

int main(int argc, char** argv) {
  try {
    return librarian::bench::run(argc, argv);
  } catch (const std::exception& stray) {  // Of a library; ours are values.
    std::fprintf(stderr, "paced_server: %s\n", stray.what());
    return 1;
  }
}
