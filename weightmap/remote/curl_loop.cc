#include "weightmap/remote/curl_loop.h"

#include <csignal>
#include <deque>
#include <map>
#include <thread>
#include <utility>
// <utility> must come first: see base/CMakeLists.txt.
#include <boost/asio.hpp>

#include "base/error.h"
#include "weightmap/remote/curl_handles.h"

namespace librarian::weightmap::remote {
namespace {

namespace asio = boost::asio;

constexpr long kConnectionAgeMaxSeconds = 60;  // Servers drop idle ones after 60 to 75 s.

// A socket of libcurl's that Asio watches for it. libcurl opens and closes it; this never does.
struct Socket {
  explicit Socket(asio::io_context& context) : descriptor(context) {}
  asio::posix::stream_descriptor descriptor;
  int wanted = 0;  // CURL_POLL_*
  bool reading = false;
  bool writing = false;
  bool gone = false;  // Removed; the number may already name another socket.
};

// SIGPIPE from a write on a dead TLS connection, and every other signal, is not for this thread.
void block_signals() {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
}

}  // namespace

class CurlLoop::Impl {
 public:
  Impl(std::uint32_t idle_connections_max, BandwidthLimit& bandwidth)
      : bandwidth_(bandwidth),
        timer_(context_),
        bandwidth_timer_(context_),
        work_(context_.get_executor()) {
    static const CURLcode global = curl_global_init(CURL_GLOBAL_ALL);
    LIB_CHECK(global == CURLE_OK);
    multi_.reset(curl_multi_init());
    LIB_CHECK(multi_ != nullptr);
    set(CURLMOPT_SOCKETFUNCTION, &Impl::on_socket);
    set(CURLMOPT_SOCKETDATA, this);
    set(CURLMOPT_TIMERFUNCTION, &Impl::on_timer);
    set(CURLMOPT_TIMERDATA, this);
    set(CURLMOPT_PIPELINING, static_cast<long>(CURLPIPE_NOTHING));
    set(CURLMOPT_MAXCONNECTS, static_cast<long>(idle_connections_max));
    thread_ = std::thread([this] {
      block_signals();
      context_.run();
    });
  }

  ~Impl() {
    asio::post(context_, [this] { shut_down(); });
    thread_.join();
  }

  void post(std::function<void()> task) { asio::post(context_, std::move(task)); }

  void add(CURL* easy, Done done) {
    transfers_.emplace(easy, std::move(done));
    LIB_CHECK(curl_easy_setopt(easy, CURLOPT_MAXAGE_CONN, kConnectionAgeMaxSeconds) == CURLE_OK);
    LIB_CHECK(curl_multi_add_handle(multi_.get(), easy) == CURLM_OK);
  }

  void remove(CURL* easy) {
    if (transfers_.erase(easy) != 0) {
      LIB_CHECK(curl_multi_remove_handle(multi_.get(), easy) == CURLM_OK);
    }
  }

 private:
  template <typename Value>
  void set(CURLMoption option, Value value) {
    LIB_CHECK(curl_multi_setopt(multi_.get(), option, value) == CURLM_OK);
  }

  // Called by libcurl inside its functions: only notes what to wait for.
  static int on_socket(CURL* /*easy*/, curl_socket_t fd, int what, void* self, void* /*unused*/) {
    auto& loop = *static_cast<Impl*>(self);
    const auto found = loop.sockets_.find(fd);
    if (what == CURL_POLL_REMOVE) {
      if (found != loop.sockets_.end()) {
        found->second->gone = true;
        found->second->descriptor.release();  // Leaves the poll set; libcurl closes it, not we.
        loop.sockets_.erase(found);
      }
      return 0;
    }
    std::shared_ptr<Socket> socket;
    if (found == loop.sockets_.end()) {
      socket = std::make_shared<Socket>(loop.context_);
      boost::system::error_code failed;
      socket->descriptor.assign(fd, failed);
      if (failed) {
        return -1;
      }
      loop.sockets_.emplace(fd, socket);
    } else {
      socket = found->second;
    }
    socket->wanted = what;
    loop.watch(socket);
    return 0;
  }

  // Asio waits once, libcurl until further notice: this waits again after each event.
  void watch(const std::shared_ptr<Socket>& socket) {
    if ((socket->wanted & CURL_POLL_IN) != 0 && !socket->reading) {
      socket->reading = true;
      socket->descriptor.async_wait(
          asio::posix::descriptor_base::wait_read,
          [this, socket](const boost::system::error_code& /*code*/) { read(socket); });
    }
    if ((socket->wanted & CURL_POLL_OUT) != 0 && !socket->writing) {
      socket->writing = true;
      socket->descriptor.async_wait(asio::posix::descriptor_base::wait_write,
                                    [this, socket](const boost::system::error_code& /*code*/) {
                                      socket->writing = false;
                                      act(socket, CURL_POLL_OUT, CURL_CSELECT_OUT);
                                    });
    }
  }

  // Lets libcurl read, or, above the bandwidth, remembers to do so later.
  void read(const std::shared_ptr<Socket>& socket) {
    const auto wait = bandwidth_.wait(std::chrono::steady_clock::now());
    if (wait.count() > 0 || !held_back_.empty()) {
      held_back_.push_back(socket);  // Still `reading`: nobody else watches it meanwhile.
      read_later(wait);
      return;
    }
    socket->reading = false;
    act(socket, CURL_POLL_IN, CURL_CSELECT_IN);
  }

  void read_later(std::chrono::nanoseconds wait) {
    if (later_) {
      return;
    }
    later_ = true;
    bandwidth_timer_.expires_after(wait);
    bandwidth_timer_.async_wait([this](const boost::system::error_code& code) {
      later_ = false;
      if (!code && multi_ != nullptr) {
        read_held_back();
      }
    });
  }

  // In turn, so that every connection gets its share.
  void read_held_back() {
    while (!held_back_.empty()) {
      const auto wait = bandwidth_.wait(std::chrono::steady_clock::now());
      if (wait.count() > 0) {
        read_later(wait);
        return;
      }
      const std::shared_ptr<Socket> socket = std::move(held_back_.front());
      held_back_.pop_front();
      socket->reading = false;
      act(socket, CURL_POLL_IN, CURL_CSELECT_IN);
    }
  }

  void act(const std::shared_ptr<Socket>& socket, int wanted, int event) {
    if (socket->gone || multi_ == nullptr) {
      return;
    }
    if ((socket->wanted & wanted) != 0) {
      int running = 0;
      curl_multi_socket_action(multi_.get(), socket->descriptor.native_handle(), event, &running);
      reap();
    }
    if (!socket->gone && multi_ != nullptr) {
      watch(socket);
    }
  }

  void wait_for_timer(std::chrono::nanoseconds wait) {
    timer_.expires_after(wait);
    timer_.async_wait([this](const boost::system::error_code& code) {
      if (code || multi_ == nullptr) {
        return;
      }
      // libcurl also reads when its time has come, so above the bandwidth that comes later.
      const auto longer = bandwidth_.wait(std::chrono::steady_clock::now());
      if (longer.count() > 0) {
        wait_for_timer(longer);
        return;
      }
      int running = 0;
      curl_multi_socket_action(multi_.get(), CURL_SOCKET_TIMEOUT, 0, &running);
      reap();
    });
  }

  // Called by libcurl inside its functions: must only set the timer.
  static int on_timer(CURLM* /*multi*/, long timeout_ms, void* self) {
    auto& loop = *static_cast<Impl*>(self);
    if (timeout_ms < 0) {
      loop.timer_.cancel();
      return 0;
    }
    loop.wait_for_timer(std::chrono::milliseconds(timeout_ms));
    return 0;
  }

  void reap() {
    int left = 0;
    while (CURLMsg* message = curl_multi_info_read(multi_.get(), &left)) {
      if (message->msg != CURLMSG_DONE) {
        continue;
      }
      CURL* easy = message->easy_handle;  // The message dies with the removal.
      const CURLcode code = message->data.result;
      curl_multi_remove_handle(multi_.get(), easy);
      auto transfer = transfers_.extract(easy);
      if (!transfer.empty()) {
        transfer.mapped()(code);
      }
    }
  }

  void shut_down() {
    timer_.cancel();
    bandwidth_timer_.cancel();
    held_back_.clear();
    for (const auto& [easy, done] : transfers_) {
      curl_multi_remove_handle(multi_.get(), easy);
    }
    transfers_.clear();
    multi_.reset();  // Still calls on_socket and on_timer.
    timer_.cancel();
    for (const auto& [fd, socket] : sockets_) {
      socket->gone = true;
      socket->descriptor.release();
    }
    sockets_.clear();
    work_.reset();
  }

  BandwidthLimit& bandwidth_;
  asio::io_context context_{1};
  asio::steady_timer timer_;
  asio::steady_timer bandwidth_timer_;
  bool later_ = false;                             // bandwidth_timer_ runs.
  std::deque<std::shared_ptr<Socket>> held_back_;  // Have bytes that we do not read yet.
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::map<CURL*, Done> transfers_;
  std::map<curl_socket_t, std::shared_ptr<Socket>> sockets_;
  CurlMulti multi_;
  std::thread thread_;
};

CurlLoop::CurlLoop(std::uint32_t idle_connections_max, BandwidthLimit& bandwidth)
    : impl_(std::make_unique<Impl>(idle_connections_max, bandwidth)) {}

CurlLoop::~CurlLoop() = default;

void CurlLoop::post(std::function<void()> task) { impl_->post(std::move(task)); }

void CurlLoop::add(CURL* easy, Done done) { impl_->add(easy, std::move(done)); }

void CurlLoop::remove(CURL* easy) { impl_->remove(easy); }

}  // namespace librarian::weightmap::remote
