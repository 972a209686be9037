#include "loopback_server.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <utility>
// <utility> must come first: see base/CMakeLists.txt.
#include <boost/asio.hpp>
#include <boost/asio/ssl.hpp>

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
  request.method = text.substr(0, first_space);
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
  Impl(Script script, ServerOptions options)
      : script_(std::move(script)),
        options_(std::move(options)),
        acceptor_(context_, tcp::endpoint(asio::ip::make_address(options_.address), 0)),
        port_(acceptor_.local_endpoint().port()) {
    if (options_.tls != nullptr) {
      LIB_CHECK(SSL_CTX_use_certificate(tls_.native_handle(), options_.tls->certificate.get()) ==
                1);
      LIB_CHECK(SSL_CTX_use_PrivateKey(tls_.native_handle(), options_.tls->key.get()) == 1);
    }
    accepting_ = std::thread([this] { accept(); });
  }

  ~Impl() {
    {
      const std::lock_guard guard(mutex_);
      stopping_ = true;
      // Wakes threads that wait in accept, read and write; closing alone would not.
      ::shutdown(acceptor_.native_handle(), SHUT_RDWR);
      for (const auto& stream : streams_) {
        ::shutdown(stream->next_layer().native_handle(), SHUT_RDWR);
      }
    }
    changed_.notify_all();
    accepting_.join();
    for (std::thread& thread : threads_) {
      thread.join();
    }
  }

  unsigned short port() const { return port_; }
  bool is_tls() const { return options_.tls != nullptr; }
  std::string origin() const {
    return (is_tls() ? "https://" : "http://") + options_.address + ":" + std::to_string(port_);
  }

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
  // Without TLS only its next_layer() is used.
  using Stream = asio::ssl::stream<tcp::socket>;

  void accept() {
    while (true) {
      tcp::socket socket(context_);
      boost::system::error_code failed;
      acceptor_.accept(socket, failed);
      const std::lock_guard guard(mutex_);
      if (failed || stopping_) {
        return;
      }
      auto stream = std::make_shared<Stream>(std::move(socket), tls_);
      streams_.push_back(stream);
      threads_.emplace_back([this, stream, number = connections_++] {
        boost::system::error_code broken;
        if (is_tls()) {
          stream->handshake(Stream::server, broken);
        }
        if (!broken) {
          is_tls() ? serve(*stream, number, *stream) : serve(stream->next_layer(), number, *stream);
        }
        close(*stream);
      });
    }
  }

  template <typename Wire>
  void serve(Wire& wire, int connection, Stream& stream) {
    std::string buffer;
    boost::system::error_code failed;
    if (options_.greeting) {
      asio::write(wire, asio::buffer(options_.greeting(connection)), failed);
    }
    for (int number = 0;; ++number) {
      const std::size_t bytes =
          asio::read_until(wire, asio::dynamic_buffer(buffer), "\r\n\r\n", failed);
      if (failed) {
        return;
      }
      HttpRequest request = parse_request(buffer.substr(0, bytes));
      buffer.erase(0, bytes);
      HttpAnswer answer;
      {
        const std::lock_guard guard(mutex_);
        request.connection = connection;
        request.on_connection = number;
        request.index = static_cast<int>(requests_.size());
        requests_.push_back(request);
        answer = script_(request);
      }
      if (!send(wire, answer) || answer.end == HttpAnswer::End::close) {
        return;
      }
      tcp::socket& socket = stream.next_layer();
      switch (answer.end) {
        case HttpAnswer::End::reset:
          wait_until_delivered(socket.native_handle());
          socket.set_option(asio::socket_base::linger(true, 0), failed);
          {
            // Without a shutdown, which would send a FIN first.
            const std::lock_guard guard(mutex_);
            if (!stopping_) {
              socket.close(failed);
            }
          }
          return;
        case HttpAnswer::End::half_close:
          ::shutdown(socket.native_handle(), SHUT_WR);
          hang(wire);
          return;
        case HttpAnswer::End::hang:
          hang(wire);
          return;
        default:
          break;
      }
    }
  }

  // False: the client or the test went away first.
  template <typename Wire>
  bool send(Wire& wire, const HttpAnswer& answer) {
    boost::system::error_code failed;
    const std::size_t at_once = std::min(answer.at_once, answer.bytes.size());
    asio::write(wire, asio::buffer(answer.bytes.data(), at_once), failed);
    for (std::size_t at = at_once; !failed && at < answer.bytes.size(); ++at) {
      if (!pause(answer.pause)) {
        return false;
      }
      asio::write(wire, asio::buffer(answer.bytes.data() + at, 1), failed);
    }
    const std::uint64_t times = answer.endless.empty() ? 0 : answer.endless_times;
    for (std::uint64_t sent = 0; !failed && sent < times; ++sent) {
      if (!pause(answer.pause)) {
        return false;
      }
      asio::write(wire, asio::buffer(answer.endless), failed);
    }
    return !failed;
  }

  bool pause(std::chrono::milliseconds time) {
    std::unique_lock lock(mutex_);
    return !changed_.wait_for(lock, time, [&] { return stopping_; });
  }

  // A reset throws away what the client's kernel does not have yet.
  static void wait_until_delivered(int socket) {
    int waiting = 1;
    while (::ioctl(socket, SIOCOUTQ, &waiting) == 0 && waiting > 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  void close(Stream& stream) {
    boost::system::error_code ignored;
    const std::lock_guard guard(mutex_);
    if (!stopping_) {
      stream.next_layer().shutdown(tcp::socket::shutdown_both, ignored);
      stream.next_layer().close(ignored);
      streams_.erase(std::find_if(streams_.begin(), streams_.end(),
                                  [&](const auto& other) { return other.get() == &stream; }));
    }
  }

  template <typename Wire>
  void hang(Wire& wire) {
    {
      const std::lock_guard guard(mutex_);
      ++hanging_;
    }
    changed_.notify_all();
    char byte = 0;
    boost::system::error_code ended;
    wire.read_some(asio::buffer(&byte, 1), ended);
    {
      const std::lock_guard guard(mutex_);
      ++abandoned_;
    }
    changed_.notify_all();
  }

  const Script script_;
  const ServerOptions options_;
  asio::io_context context_;
  asio::ssl::context tls_{asio::ssl::context::tls_server};
  tcp::acceptor acceptor_;
  const unsigned short port_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  int connections_ = 0;
  std::vector<HttpRequest> requests_;
  std::vector<std::shared_ptr<Stream>> streams_;
  std::vector<std::thread> threads_;
  std::thread accepting_;
};

LoopbackServer::LoopbackServer(Script script, ServerOptions options)
    : impl_(std::make_unique<Impl>(std::move(script), std::move(options))) {}
LoopbackServer::~LoopbackServer() = default;

std::string LoopbackServer::url(const std::string& path) const { return impl_->origin() + path; }
unsigned short LoopbackServer::port() const { return impl_->port(); }
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
