#include "weightmap/remote/curl_transport.h"

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <stop_token>
#include <utility>
#include <vector>

#include "base/log.h"
#include "weightmap/remote/address_class.h"
#include "weightmap/remote/curl_handles.h"
#include "weightmap/remote/curl_loop.h"
#include "weightmap/remote/curl_transfer.h"
#include "weightmap/remote/hub_origin.h"
#include "weightmap/remote/s3_origin.h"

namespace librarian::weightmap::remote {

namespace {

/// The library asks no variable for the trusted authorities; its command-line tool, and people, do.
TransportOptions with_authorities(TransportOptions options) {
  for (const char* name : {"CURL_CA_BUNDLE", "SSL_CERT_FILE"}) {
    if (options.ca_file.empty()) {
      options.ca_file = options.environment(name).value_or("");
    }
  }
  return options;
}

}  // namespace

class CurlTransport::Impl {
 public:
  explicit Impl(TransportOptions options)
      : options_(with_authorities(std::move(options))),
        bandwidth_(options_.bandwidth_max),
        shared_{options_, proxy_is_set(options_.environment), bandwidth_},
        plain_(options_.headers, options_.headers_origin),
        hub_({options_.environment, &wall_clock_s}),
        s3_({options_.environment, options_.insecure_http, &wall_clock_s}),
        loop_(options_.connections + kSpareConnections, bandwidth_) {}

  ~Impl() {
    loop_.post([this] {
      while (!flights_.empty()) {
        cancel(flights_.begin()->first);
      }
    });
  }

  void start(TransferRequest request, std::function<void(TransferResult)> done) {
    HttpOrigin& origin = origin_of(request.uri);
    auto flight = std::make_shared<Flight>(std::move(request), origin, shared_, std::move(done));
    loop_.post([this, flight] { launch(flight); });
  }

 private:
  using OnStop = std::stop_callback<std::function<void()>>;
  static constexpr std::uint32_t kSpareConnections = 4;  // Redirects lead to a second host.

  struct Flight {
    Flight(TransferRequest request, HttpOrigin& origin, CurlTransfer::Shared& shared,
           std::function<void(TransferResult)> on_done)
        : transfer(std::move(request), origin, shared), done(std::move(on_done)) {}
    CurlTransfer transfer;
    std::function<void(TransferResult)> done;
    CurlEasy easy;
    std::optional<OnStop> on_stop;
  };

  HttpOrigin& origin_of(const Uri& uri) {
    if (uri.scheme == "hf") {
      return hub_;
    }
    return uri.scheme == "s3" ? static_cast<HttpOrigin&>(s3_) : plain_;
  }

  // All below: on the loop's thread.

  void launch(const std::shared_ptr<Flight>& flight) {
    const std::uint64_t id = next_id_++;
    flights_.emplace(id, flight);
    flight->easy = take_handle();
    // Only posts, so a stop from any thread and under any lock is safe.
    flight->on_stop.emplace(flight->transfer.request().stop,
                            [this, id] { loop_.post([this, id] { cancel(id); }); });
    next_hop(id);
  }

  void next_hop(std::uint64_t id) {
    Flight& flight = *flights_.at(id);
    if (auto ready = flight.transfer.prepare(flight.easy.get()); !ready) {
      land(id, flight.transfer.ended_with(std::move(ready).error()));
      return;
    }
    loop_.add(flight.easy.get(), [this, id](CURLcode code) {
      Flight& ended = *flights_.at(id);
      auto result = ended.transfer.ended(code);
      if (ended.transfer.ignores_ranges()) {
        warn_once(ended.transfer.request());
      }
      if (result) {
        land(id, *std::move(result));
      } else {
        next_hop(id);
      }
    });
  }

  void cancel(std::uint64_t id) {
    const auto found = flights_.find(id);
    if (found != flights_.end()) {
      loop_.remove(found->second->easy.get());
      land(id, found->second->transfer.ended_with(Error(ErrorCode::cancelled, "stopped")));
    }
  }

  void land(std::uint64_t id, TransferResult result) {
    const std::shared_ptr<Flight> flight = flights_.extract(id).mapped();
    flight->on_stop.reset();
    idle_handles_.push_back(std::move(flight->easy));
    flight->done(std::move(result));
  }

  CurlEasy take_handle() {
    if (idle_handles_.empty()) {
      CurlEasy easy(curl_easy_init());
      LIB_CHECK(easy != nullptr);
      return easy;
    }
    CurlEasy easy = std::move(idle_handles_.back());
    idle_handles_.pop_back();
    return easy;
  }

  void warn_once(const TransferRequest& request) {
    const bool part =
        request.range.begin > 0 || (request.expected && request.range.end < request.expected->size);
    if (part && warned_origins_.insert(request.uri.origin()).second) {
      log(LogLevel::warning, "server_ignores_ranges",
          {{"object", request.uri.display()},
           {"advice", "each request transfers the file from its start; use a server with ranges"}});
    }
  }

  const TransportOptions options_;
  std::uint64_t next_id_ = 0;
  std::map<std::uint64_t, std::shared_ptr<Flight>> flights_;
  std::vector<CurlEasy> idle_handles_;
  std::set<std::string> warned_origins_;
  BandwidthLimit bandwidth_;
  CurlTransfer::Shared shared_;
  PlainOrigin plain_;
  HubOrigin hub_;
  S3Origin s3_;
  CurlLoop loop_;  // Last member: its thread ends before anything it uses is destroyed.
};

CurlTransport::CurlTransport(const TransportOptions& options)
    : impl_(std::make_unique<Impl>(options)) {}

CurlTransport::~CurlTransport() = default;

void CurlTransport::start(TransferRequest request, std::function<void(TransferResult)> done) {
  impl_->start(std::move(request), std::move(done));
}

}  // namespace librarian::weightmap::remote
