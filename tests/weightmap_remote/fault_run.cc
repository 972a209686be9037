#include "fault_run.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <regex>
#include <stop_token>
#include <thread>
#include <utility>
// <utility> must come first: see base/CMakeLists.txt.
#include <boost/asio.hpp>

namespace librarian::weightmap::remote::testing {
namespace {

using namespace std::chrono_literals;
namespace asio = boost::asio;
using asio::ip::tcp;

constexpr std::uint64_t kHeadBytes = 16U << 10U;
constexpr std::size_t kGuardBytes = 512;
constexpr int kOpening = -1;
constexpr int kNoPart = -2;
// Looked up by nobody: all requests for it go through a proxy.
constexpr const char* kProxiedHost = "weights.test";

ByteRange part_range(int part) {
  const std::uint64_t begin = 100'000 + static_cast<std::uint64_t>(part) * 360'000;
  return {begin, part + 1 == kFaultParts ? kFaultObjectBytes : begin + 300'000};
}

int part_of(const HttpRequest& request) {
  if (!request.range) {
    return kNoPart;  // A proxy's CONNECT.
  }
  for (int part = 0; part < kFaultParts; ++part) {
    const ByteRange range = part_range(part);
    if (request.range->begin >= range.begin && request.range->begin < range.end) {
      return part;
    }
  }
  return kOpening;
}

bool strikes(const PlacedFault& fault, int part) {
  switch (fault.kind->target) {
    case FaultTarget::part:
      return part == fault.part;
    case FaultTarget::last_part:
      return part == kFaultParts - 1;
    case FaultTarget::all_parts:
      return part >= 0;
    case FaultTarget::opening:
      return part == kOpening;
    case FaultTarget::everything:
    case FaultTarget::document:
    case FaultTarget::api:
      return true;
  }
  return false;
}

// Three pieces with holes between them, guards around each.
class Destination {
 public:
  explicit Destination(ByteRange range) : buffer_(range.size() + 4 * kGuardBytes, kFill) {
    std::size_t at = kGuardBytes;
    for (const ByteRange piece : {ByteRange{range.begin, range.begin + 100'003},
                                  ByteRange{range.begin + 105'003, range.begin + 182'780},
                                  ByteRange{range.begin + 195'125, range.end}}) {
      pieces_.push_back({piece, buffer_.data() + at});
      at += piece.size() + kGuardBytes;
    }
  }
  const std::vector<FetchPiece>& pieces() const { return pieces_; }

  bool holds(const std::string& object) const {
    return std::all_of(pieces_.begin(), pieces_.end(), [&](const FetchPiece& piece) {
      const auto* expected = reinterpret_cast<const std::byte*>(object.data()) + piece.range.begin;
      return std::equal(expected, expected + piece.range.size(), piece.destination);
    });
  }
  bool guards_intact() const {
    const std::byte* from = buffer_.data();
    const auto clean_up_to = [&](const std::byte* to) {
      return std::all_of(from, to, [](std::byte byte) { return byte == kFill; });
    };
    for (const FetchPiece& piece : pieces_) {
      if (!clean_up_to(piece.destination)) {
        return false;
      }
      from = piece.destination + piece.range.size();
    }
    return clean_up_to(buffer_.data() + buffer_.size());
  }

 private:
  static constexpr std::byte kFill{'#'};
  std::vector<std::byte> buffer_;
  std::vector<FetchPiece> pieces_;
};

class Certificates {
 public:
  explicit Certificates(FaultTls tls) {
    if (tls == FaultTls::none) {
      return;
    }
    authority_ = make_authority();
    const std::string name = tls == FaultTls::wrong_name ? "DNS:other.test" : "IP:127.0.0.1";
    if (tls == FaultTls::self_signed) {
      server_ = make_self_signed(name);
    } else if (tls == FaultTls::unknown_authority) {
      server_ = issue(make_authority("unknown test authority"), name);
    } else if (tls == FaultTls::forged_authority) {
      server_ = issue(make_authority(), name);  // Of the same name, but with another key.
    } else if (tls == FaultTls::expired) {
      server_ = issue(authority_, name, {-7200, -3600});
    } else if (tls == FaultTls::not_yet_valid) {
      server_ = issue(authority_, name, {3600, 7200});
    } else {
      server_ = issue(authority_, name);
    }
    std::string made = std::filesystem::temp_directory_path() / "librarian-test-XXXXXX";
    LIB_CHECK(::mkdtemp(made.data()) != nullptr);
    directory_ = made;
    std::ofstream(ca_file()) << pem(authority_);
  }
  ~Certificates() {
    if (!directory_.empty()) {
      std::filesystem::remove_all(directory_);
    }
  }
  Certificates(const Certificates&) = delete;
  Certificates& operator=(const Certificates&) = delete;

  std::string ca_file() const { return directory_.empty() ? "" : directory_ / "ca.pem"; }
  const TlsIdentity* server() const { return server_.key ? &server_ : nullptr; }

 private:
  std::filesystem::path directory_;
  TlsIdentity authority_;
  TlsIdentity server_;
};

// Holds a port that refuses connections.
class ClosedPort {
 public:
  ClosedPort() : acceptor_(context_) {
    acceptor_.open(tcp::v4());
    acceptor_.bind(tcp::endpoint(asio::ip::address_v4::loopback(), 0));
  }
  std::string origin() const {
    return "http://127.0.0.1:" + std::to_string(acceptor_.local_endpoint().port());
  }

 private:
  asio::io_context context_;
  tcp::acceptor acceptor_;
};

// Not for two threads at once: the environment is the process's.
class ProxyVariables {
 public:
  ProxyVariables(FaultProxy proxy, const std::string& url) : set_(proxy != FaultProxy::none) {
    if (set_) {
      ::setenv("http_proxy", url.c_str(), 1);
      ::setenv("https_proxy", url.c_str(), 1);
    }
  }
  ~ProxyVariables() {
    if (set_) {
      ::unsetenv("http_proxy");
      ::unsetenv("https_proxy");
    }
  }
  ProxyVariables(const ProxyVariables&) = delete;
  ProxyVariables& operator=(const ProxyVariables&) = delete;

 private:
  const bool set_;
};

// Requests a stop when the time is over.
class Deadline {
 public:
  explicit Deadline(std::chrono::seconds limit)
      : thread_([this, limit](const std::stop_token& stop) {
          std::unique_lock lock(mutex_);
          changed_.wait_for(lock, stop, limit, [] { return false; });
          if (!stop.stop_requested()) {
            over_ = true;
            source_.request_stop();
          }
        }) {}
  bool over() const { return over_; }
  std::stop_token token() const { return source_.get_token(); }

 private:
  std::stop_source source_;
  std::atomic<bool> over_ = false;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::jthread thread_;  // Last member: it ends before anything it uses is destroyed.
};

const std::string& object() {
  static const std::string bytes = test_object(kFaultObjectBytes);
  return bytes;
}

const std::string& document() {
  static const std::string text =
      R"({"model_type": "none", "filler": ")" + std::string(20'000, 'x') + R"("})";
  return text;
}

HttpAnswer honest_and_strict(const std::string& bytes, const HttpRequest& request) {
  const auto condition = request.headers.find("if-match");
  if (condition != request.headers.end() && condition->second != "\"v1\"") {
    return refusal("412 Precondition Failed");
  }
  if (!request.range) {
    return {head("200 OK", {"Content-Length: " + std::to_string(bytes.size())}) + bytes};
  }
  return honest(bytes, request);
}

// One run: the servers, what strikes when, and the product's side of it.
class Run {
 public:
  Run(const std::vector<PlacedFault>& faults, FaultPlay how)
      : faults_(faults),
        setup_(faults.front().kind->setup),
        how_(how),
        bytes_(of_document() ? document() : object()),
        certificates_(setup_.tls),
        elsewhere_([](const HttpRequest& request) { return honest_and_strict(object(), request); }),
        server_([this](const HttpRequest& request) { return answer(request); },
                {.tls = setup_.tls == FaultTls::plain_server ? nullptr : certificates_.server(),
                 .greeting = setup_.greeting}) {}

  FaultReport play() {
    const auto began = std::chrono::steady_clock::now();
    const ProxyVariables proxy(setup_.proxy, server_.url(""));
    const Deadline deadline(how_.limit);
    const auto transport = make_transport(real_clock(), transport_options());
    Fetcher fetcher(*transport, real_clock(), fetcher_options());
    const Uri uri = *parse_uri(place());
    Result<void> result = of_document() ? read_document(fetcher, uri, deadline.token())
                                        : read_parts(fetcher, uri, deadline.token());
    if (deadline.over()) {
      report_.result = FaultResult::hang;
    } else if (!result) {
      report_.result = FaultResult::error;
      report_.error = result.error();
      report_.sentence = stable(result.error().message());
    }
    report_.struck = struck_;
    report_.statistics = fetcher.statistics();
    report_.took = std::chrono::duration_cast<std::chrono::milliseconds>(
        std::chrono::steady_clock::now() - began);
    return std::move(report_);
  }

 private:
  FaultTarget target() const { return faults_.front().kind->target; }
  bool of_document() const {
    return target() == FaultTarget::document || target() == FaultTarget::api;
  }

  HttpAnswer answer(const HttpRequest& request) {
    const int part = part_of(request);
    const int attempt = attempts_[{part, request.target}]++;
    for (const PlacedFault& fault : faults_) {
      const int since = attempt - fault.from_attempt;
      if (strikes(fault, part) && since >= 0 && since < fault.kind->times) {
        ++struck_;
        return fault.kind->strike(
            {request, since, bytes_, elsewhere_.url("/model"), closed_.origin() + "/model"});
      }
    }
    return honest_and_strict(bytes_, request);
  }

  TransportOptions transport_options() const {
    TransportOptions options;
    options.ca_file = certificates_.ca_file();
    options.insecure_http = !setup_.host.empty() || setup_.proxy != FaultProxy::none;
    options.connections = 4;
    options.connect_timeout = 1s;
    options.stall_time = 400ms;
    options.low_speed_bytes_per_second = 4U << 10U;
    options.low_speed_time = 1s;
    return options;
  }

  FetcherOptions fetcher_options() const {
    FetcherOptions options;
    options.connections = 4;
    options.retry.backoff_base = 0ms;
    options.retry.attempts_max = 4;
    options.retry.progress_bytes = 32U << 10U;
    options.retry.retry_after_max = 300ms;
    options.retry.give_up = 20s;
    options.hedge_budget = how_.hedged ? 1 : 0;
    return options;
  }

  std::string origin() const {
    if (setup_.closed_port) {
      return closed_.origin();
    }
    if (setup_.proxy != FaultProxy::none) {
      return (setup_.proxy == FaultProxy::for_https ? "https://" : "http://") +
             std::string(kProxiedHost);
    }
    const std::string host = setup_.host.empty() ? "127.0.0.1" : setup_.host;
    return (setup_.tls == FaultTls::none ? "http://" : "https://") + host + ":" +
           std::to_string(server_.port());
  }

  std::string place() const {
    return origin() + (of_document() ? "/config.json" : "/model") + "?signature=" + kUrlSecret;
  }

  Result<void> read_document(Fetcher& fetcher, const Uri& uri, const std::stop_token& stop) {
    std::string text;
    if (target() == FaultTarget::api) {
      LIB_TRY(Fetcher::Document answer, fetcher.read_document(uri, 1U << 20U, stop));
      text = std::move(answer.body);
    } else {
      LIB_TRY(text, read_object(fetcher, uri, 1U << 20U, stop));
    }
    report_.result = text == bytes_ ? FaultResult::right_bytes : FaultResult::wrong_bytes;
    return {};
  }

  Result<void> read_parts(Fetcher& fetcher, const Uri& uri, const std::stop_token& stop) {
    LIB_TRY(const Fetcher::Opened opened, fetcher.open(uri, kHeadBytes, stop));
    bool right = opened.head == bytes_.substr(0, kHeadBytes) && opened.info.size == bytes_.size();
    std::vector<Destination> destinations;
    std::vector<std::promise<Result<CrcRuns>>> promises(kFaultParts);
    destinations.reserve(kFaultParts);
    const std::stop_callback cancel(stop, [&] { fetcher.cancel_all(); });
    for (int part = 0; part < kFaultParts; ++part) {
      destinations.emplace_back(part_range(part));
      fetcher.submit({opened.id, destinations.back().pieces()},
                     [promise = &promises[static_cast<std::size_t>(part)]](Result<CrcRuns> result) {
                       promise->set_value(std::move(result));
                     });
    }
    std::optional<Error> first_error;
    for (int part = 0; part < kFaultParts; ++part) {
      const auto index = static_cast<std::size_t>(part);
      const Result<CrcRuns> result = promises[index].get_future().get();
      report_.guards_intact = report_.guards_intact && destinations[index].guards_intact();
      if (!result && !first_error) {
        first_error = result.error();
      }
      right = right && (!result || destinations[index].holds(bytes_));
    }
    // Wrong bytes in one part are worse than an error in another.
    report_.result = right ? FaultResult::right_bytes : FaultResult::wrong_bytes;
    return first_error && right ? Result<void>(*std::move(first_error)) : Result<void>();
  }

  std::string stable(std::string text) const {
    const auto rename = [&](const std::string& from, const std::string& to) {
      for (std::size_t at = text.find(from); at != std::string::npos; at = text.find(from, at)) {
        text.replace(at, from.size(), to);
        at += to.size();
      }
    };
    rename(origin(), setup_.tls == FaultTls::none ? "http://server" : "https://server");
    rename(server_.url(""), "http://server");
    rename(elsewhere_.url(""), "http://elsewhere");
    rename(closed_.origin(), "http://closed");
    text = std::regex_replace(text, std::regex("port [0-9]+"), "port N");
    text = std::regex_replace(text, std::regex("OpenSSL/[0-9a-z.]+"), "OpenSSL");
    text = std::regex_replace(text, std::regex("after [0-9]+ (bytes|ms)"), "after N $1");
    return std::regex_replace(text, std::regex("with [0-9]+ bytes"), "with N bytes");
  }

  const std::vector<PlacedFault> faults_;
  const FaultSetup setup_;
  const FaultPlay how_;
  const std::string& bytes_;
  FaultReport report_;
  std::map<std::pair<int, std::string>, int> attempts_;
  std::atomic<int> struck_ = 0;
  const Certificates certificates_;
  const ClosedPort closed_;
  LoopbackServer elsewhere_;
  LoopbackServer server_;  // Last member: its threads call answer().
};

}  // namespace

FaultReport play(const std::vector<PlacedFault>& faults, FaultPlay how) {
  return Run(faults, how).play();
}

bool plain_setup(const FaultKind& kind) {
  return kind.setup.tls == FaultTls::none && kind.setup.proxy == FaultProxy::none &&
         kind.setup.host.empty() && !kind.setup.closed_port && !kind.setup.greeting;
}

const char* result_name(FaultResult result) {
  switch (result) {
    case FaultResult::right_bytes:
      return "right bytes";
    case FaultResult::wrong_bytes:
      return "wrong bytes";
    case FaultResult::error:
      return "error";
    case FaultResult::hang:
      return "hang";
  }
  return "?";
}

}  // namespace librarian::weightmap::remote::testing
