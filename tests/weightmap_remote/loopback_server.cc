#include "loopback_server.h"

#include <sys/socket.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <utility>
// <utility> must come first: see base/CMakeLists.txt.
#include <boost/asio.hpp>

#include "base/error.h"

namespace librarian::weightmap::remote::testing {

namespace asio = boost::asio;
using asio::ip::tcp;

namespace {

std::string trimmed_lower(std::string text, bool make_lower) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())) != 0) {
    text.pop_back();
  }
  text.erase(0, text.find_first_not_of(' '));
  if (make_lower) {
    std::transform(text.begin(), text.end(), text.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  }
  return text;
}

}  // namespace

HttpRequest parse_request(const std::string& text) {
  HttpRequest request;
  const std::size_t first_space = text.find(' ');
  request.target = text.substr(first_space + 1, text.find(' ', first_space + 1) - first_space - 1);
  std::size_t at = text.find("\r\n") + 2;
  while (at < text.size()) {
    const std::size_t end = text.find("\r\n", at);
    const std::string line = text.substr(at, end - at);
    const std::size_t colon = line.find(':');
    if (colon != std::string::npos) {
      request.headers[trimmed_lower(line.substr(0, colon), true)] =
          trimmed_lower(line.substr(colon + 1), false);
    }
    if (end == std::string::npos) {
      break;
    }
    at = end + 2;
  }
  if (const auto range = request.headers.find("range"); range != request.headers.end()) {
    unsigned long long first = 0;
    unsigned long long last = 0;
    LIB_CHECK(std::sscanf(range->second.c_str(), "bytes=%llu-%llu", &first, &last) == 2);
    request.range = ByteRange{first, last + 1};
  }
  return request;
}

class LoopbackServer::Impl {
 public:
  explicit Impl(Script script)
      : script_(std::move(script)),
        acceptor_(context_, tcp::endpoint(asio::ip::address_v4::loopback(), 0)),
        port_(acceptor_.local_endpoint().port()),
        accepting_([this] { accept(); }) {}

  ~Impl() {
    {
      const std::lock_guard guard(mutex_);
      stopping_ = true;
      // Wakes threads that wait in accept and read; closing alone would not.
      ::shutdown(acceptor_.native_handle(), SHUT_RDWR);
      for (const auto& socket : sockets_) {
        ::shutdown(socket->native_handle(), SHUT_RDWR);
      }
    }
    accepting_.join();
    for (std::thread& thread : threads_) {
      thread.join();
    }
  }

  unsigned short port() const { return port_; }

  std::vector<HttpRequest> requests() const {
    const std::lock_guard guard(mutex_);
    return requests_;
  }

  void wait_for(int Impl::*counter, int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return this->*counter >= count; });
  }
  int hanging_ = 0;
  int abandoned_ = 0;

 private:
  void accept() {
    while (true) {
      auto socket = std::make_shared<tcp::socket>(context_);
      boost::system::error_code failed;
      acceptor_.accept(*socket, failed);
      const std::lock_guard guard(mutex_);
      if (failed || stopping_) {
        return;
      }
      sockets_.push_back(socket);
      threads_.emplace_back([this, socket, number = connections_++] { serve(*socket, number); });
    }
  }

  void serve(tcp::socket& socket, int connection) {
    std::string buffer;
    while (true) {
      boost::system::error_code failed;
      const std::size_t bytes =
          asio::read_until(socket, asio::dynamic_buffer(buffer), "\r\n\r\n", failed);
      if (failed) {
        break;
      }
      HttpRequest request = parse_request(buffer.substr(0, bytes));
      buffer.erase(0, bytes);
      HttpAnswer answer;
      {
        const std::lock_guard guard(mutex_);
        request.connection = connection;
        request.index = static_cast<int>(requests_.size());
        requests_.push_back(request);
        answer = script_(request);
      }
      asio::write(socket, asio::buffer(answer.bytes), failed);
      if (failed || answer.end == HttpAnswer::End::close) {
        break;
      }
      if (answer.end == HttpAnswer::End::reset) {
        socket.set_option(asio::socket_base::linger(true, 0), failed);
        close(socket);
        return;
      }
      if (answer.end == HttpAnswer::End::hang) {
        hang(socket);
        break;
      }
    }
    boost::system::error_code ignored;
    const std::lock_guard guard(mutex_);
    if (!stopping_) {
      socket.shutdown(tcp::socket::shutdown_both, ignored);
      socket.close(ignored);
      sockets_.erase(std::find_if(sockets_.begin(), sockets_.end(),
                                  [&](const auto& other) { return other.get() == &socket; }));
    }
  }

  void close(tcp::socket& socket) {
    boost::system::error_code ignored;
    const std::lock_guard guard(mutex_);
    if (!stopping_) {
      socket.close(ignored);
      sockets_.erase(std::find_if(sockets_.begin(), sockets_.end(),
                                  [&](const auto& other) { return other.get() == &socket; }));
    }
  }

  void hang(tcp::socket& socket) {
    {
      const std::lock_guard guard(mutex_);
      ++hanging_;
    }
    changed_.notify_all();
    char byte = 0;
    boost::system::error_code ended;
    socket.read_some(asio::buffer(&byte, 1), ended);
    {
      const std::lock_guard guard(mutex_);
      ++abandoned_;
    }
    changed_.notify_all();
  }

  const Script script_;
  asio::io_context context_;
  tcp::acceptor acceptor_;
  const unsigned short port_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  int connections_ = 0;
  std::vector<HttpRequest> requests_;
  std::vector<std::shared_ptr<tcp::socket>> sockets_;
  std::vector<std::thread> threads_;
  std::thread accepting_;
};

LoopbackServer::LoopbackServer(Script script) : impl_(std::make_unique<Impl>(std::move(script))) {}
LoopbackServer::~LoopbackServer() = default;

std::string LoopbackServer::url(const std::string& path) const {
  return "http://127.0.0.1:" + std::to_string(impl_->port()) + path;
}
std::vector<HttpRequest> LoopbackServer::requests() const { return impl_->requests(); }
void LoopbackServer::wait_for_hanging(int count) { impl_->wait_for(&Impl::hanging_, count); }
void LoopbackServer::wait_for_abandoned(int count) { impl_->wait_for(&Impl::abandoned_, count); }

std::string test_object(std::uint64_t size) {
  std::string object(size, '\0');
  for (std::uint64_t at = 0; at < size; at += 8) {
    // Odd multiplier: neighbouring words share no bytes, so a shift never goes unseen.
    const std::uint64_t word = (at + 1) * 0x9E3779B97F4A7C15U;
    std::memcpy(object.data() + at, &word, std::min<std::uint64_t>(8, size - at));
  }
  return object;
}

std::string head(const std::string& status, const std::vector<std::string>& fields) {
  std::string text = "HTTP/1.1 " + status + "\r\n";
  for (const std::string& field : fields) {
    text += field + "\r\n";
  }
  return text + "\r\n";
}

HttpAnswer honest(const std::string& object, const HttpRequest& request) {
  const ByteRange asked = request.range.value_or(ByteRange{0, object.size()});
  const ByteRange range{asked.begin, std::min<std::uint64_t>(asked.end, object.size())};
  return {head("206 Partial Content",
               {"Content-Range: bytes " + std::to_string(range.begin) + "-" +
                    std::to_string(range.end - 1) + "/" + std::to_string(object.size()),
                "Content-Length: " + std::to_string(range.size()), "ETag: \"v1\""}) +
          object.substr(range.begin, range.size())};
}

}  // namespace librarian::weightmap::remote::testing
