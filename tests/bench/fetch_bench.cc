// How much of the machine's loopback speed the Fetcher keeps: the same bytes, in the same run, read
// with raw recv() and with the Fetcher, taking turns. Prints MB/s of each and their ratio.
//
// usage: fetch_bench [object MiB] [request MiB] [connections] [rounds]

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "base/units.h"
#include "weightmap/remote/fetcher.h"

namespace {

using librarian::kMiB;
using librarian::Result;
namespace remote = librarian::weightmap::remote;

constexpr std::size_t kRequestHeadBytesMax = 4096;

bool send_all(int socket, const char* data, std::size_t bytes) {
  while (bytes > 0) {
    const ssize_t sent = ::send(socket, data, bytes, MSG_NOSIGNAL);
    if (sent <= 0) {
      return false;
    }
    data += sent;
    bytes -= static_cast<std::size_t>(sent);
  }
  return true;
}

// Reads one head up to and including its empty line; what follows stays in the socket.
std::string receive_head(int socket) {
  std::string head(kRequestHeadBytesMax, '\0');
  const ssize_t seen = ::recv(socket, head.data(), head.size(), MSG_PEEK);
  const std::size_t end = seen <= 0 ? std::string::npos : head.find("\r\n\r\n");
  if (end == std::string::npos) {
    return "";
  }
  head.resize(end + 4);
  return ::recv(socket, head.data(), head.size(), MSG_WAITALL) < 0 ? "" : head;
}

void serve_connection(int socket, const std::string& object) {
  while (true) {
    const std::string request = receive_head(socket);
    unsigned long long first = 0;
    unsigned long long last = 0;
    const std::size_t range = request.find("ange: bytes=");
    if (range == std::string::npos ||
        std::sscanf(request.c_str() + range, "ange: bytes=%llu-%llu", &first, &last) != 2) {
      break;
    }
    const std::string head =
        "HTTP/1.1 206 Partial Content\r\nContent-Length: " + std::to_string(last + 1 - first) +
        "\r\nContent-Range: bytes " + std::to_string(first) + "-" + std::to_string(last) + "/" +
        std::to_string(object.size()) + "\r\nETag: \"bench\"\r\n\r\n";
    if (!send_all(socket, head.data(), head.size()) ||
        !send_all(socket, object.data() + first, last + 1 - first)) {
      break;
    }
  }
  ::close(socket);
}

[[noreturn]] void serve(int listener, std::uint64_t object_bytes) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  const std::string object(object_bytes, 'x');
  while (true) {
    const int socket = ::accept(listener, nullptr, nullptr);
    if (socket >= 0) {
      std::thread([socket, &object] { serve_connection(socket, object); }).detach();
    }
  }
}

int connect_to(std::uint16_t port) {
  const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  LIB_CHECK(::connect(socket, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  return socket;
}

struct Job {
  std::uint16_t port;
  std::uint32_t connections;
  std::uint64_t request_bytes;
  std::string* destination;
};

// What one reading of the whole object took.
struct Cost {
  double wall_s;
  double cpu_s;  // Of this process: the server is another.
};

double cpu_now_s() {
  rusage usage{};
  LIB_CHECK(::getrusage(RUSAGE_SELF, &usage) == 0);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

class Stopwatch {
 public:
  Cost read() const {
    return {std::chrono::duration<double>(librarian::real_clock().now() - start_).count(),
            cpu_now_s() - cpu_start_s_};
  }

 private:
  librarian::TimePoint start_ = librarian::real_clock().now();
  double cpu_start_s_ = cpu_now_s();
};

// One thread per connection, each taking the next range until none is left.
Cost read_raw(const Job& job) {
  std::atomic<std::uint64_t> next{0};
  const Stopwatch watch;
  std::vector<std::jthread> threads;
  for (std::uint32_t i = 0; i < job.connections; ++i) {
    threads.emplace_back([&] {
      const int socket = connect_to(job.port);
      while (true) {
        const std::uint64_t begin = next.fetch_add(job.request_bytes);
        if (begin >= job.destination->size()) {
          break;
        }
        const std::uint64_t end =
            std::min<std::uint64_t>(begin + job.request_bytes, job.destination->size());
        const std::string request = "GET / HTTP/1.1\r\nRange: bytes=" + std::to_string(begin) +
                                    "-" + std::to_string(end - 1) + "\r\n\r\n";
        LIB_CHECK(send_all(socket, request.data(), request.size()));
        LIB_CHECK(!receive_head(socket).empty());
        for (std::uint64_t at = begin; at < end;) {
          const ssize_t got = ::recv(socket, job.destination->data() + at, end - at, 0);
          LIB_CHECK(got > 0);
          at += static_cast<std::uint64_t>(got);
        }
      }
      ::close(socket);
    });
  }
  threads.clear();
  return watch.read();
}

Cost read_with_fetcher(const Job& job) {
  const Stopwatch watch;
  remote::TransportOptions options;
  options.connections = job.connections;
  const auto transport = remote::make_transport(librarian::real_clock(), options);
  remote::Fetcher fetcher(*transport, librarian::real_clock(),
                          {.connections = job.connections, .retry = {}, .jitter = {}});
  const auto uri = remote::parse_uri("http://127.0.0.1:" + std::to_string(job.port) + "/");
  const auto opened = fetcher.open(*uri, 1, {});
  LIB_CHECK(opened.has_value());
  std::atomic<std::uint64_t> left{0};
  for (std::uint64_t begin = 0; begin < job.destination->size(); begin += job.request_bytes) {
    const std::uint64_t end =
        std::min<std::uint64_t>(begin + job.request_bytes, job.destination->size());
    ++left;
    auto* place = reinterpret_cast<std::byte*>(job.destination->data()) + begin;
    fetcher.submit({opened->id, {{{begin, end}, place}}}, [&](Result<void> result) {
      LIB_CHECK(result.has_value());
      --left;
      left.notify_all();
    });
  }
  for (std::uint64_t seen = left; seen != 0; seen = left) {
    left.wait(seen);
  }
  return watch.read();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void print(const char* name, const std::vector<Cost>& costs, std::uint64_t object_bytes) {
  const double gigabytes = static_cast<double>(object_bytes) / 1e9;
  std::vector<double> megabytes_per_s;
  std::vector<double> cpu_per_gigabyte;
  for (const Cost& cost : costs) {
    megabytes_per_s.push_back(gigabytes * 1000 / cost.wall_s);
    cpu_per_gigabyte.push_back(cost.cpu_s / gigabytes);
  }
  std::printf("%-10s %8.0f MB/s  %6.2f cpu s/GB\n", name, median(megabytes_per_s),
              median(cpu_per_gigabyte));
}

std::uint64_t argument(int count, char** values, int index, std::uint64_t otherwise) {
  return index < count ? std::strtoull(values[index], nullptr, 10) : otherwise;
}

}  // namespace

int main(int count, char** values) {
  const std::uint64_t object_bytes = argument(count, values, 1, 512) * kMiB;
  const std::uint64_t request_bytes = argument(count, values, 2, 8) * kMiB;
  const auto connections = static_cast<std::uint32_t>(argument(count, values, 3, 8));
  const std::uint64_t rounds = argument(count, values, 4, 7);

  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  LIB_CHECK(::bind(listener, reinterpret_cast<sockaddr*>(&address), length) == 0);
  LIB_CHECK(::listen(listener, 64) == 0);
  LIB_CHECK(::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  // A process of its own: its work must not be counted into either client's.
  const pid_t server = ::fork();
  LIB_CHECK(server >= 0);
  if (server == 0) {
    serve(listener, object_bytes);
  }

  // Filled once, so that no round pays for first touches of pages.
  std::string destination(object_bytes, '#');
  const Job job{ntohs(address.sin_port), connections, request_bytes, &destination};
  read_raw(job);  // Warms the server's pages up.
  std::vector<Cost> raw;
  std::vector<Cost> fetched;
  std::vector<double> ratios;
  for (std::uint64_t round = 0; round < rounds; ++round) {
    raw.push_back(read_raw(job));
    std::fill(destination.begin(), destination.end(), '#');
    fetched.push_back(read_with_fetcher(job));
    LIB_CHECK(destination.find_first_not_of('x') == std::string::npos);
    ratios.push_back(raw.back().wall_s / fetched.back().wall_s);
  }
  print("raw recv", raw, object_bytes);
  print("Fetcher", fetched, object_bytes);
  std::printf("ratio      %8.2f (median of %zu, %.2f to %.2f)\n", median(ratios), ratios.size(),
              *std::min_element(ratios.begin(), ratios.end()),
              *std::max_element(ratios.begin(), ratios.end()));
  ::kill(server, SIGKILL);
  ::waitpid(server, nullptr, 0);
  return 0;
}
