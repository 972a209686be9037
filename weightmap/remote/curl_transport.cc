#include "weightmap/remote/curl_transport.h"

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
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

// Of which each has a thread. One copies 1.7 GB/s; with fewer connections there is no second one.
constexpr std::uint32_t kShards = 2;
constexpr std::uint32_t kConnectionsForShards = 4;

/// The library asks no variable for the trusted authorities; its command-line tool, and people, do.
TransportOptions with_authorities(TransportOptions options) {
  for (const char* name : {"CURL_CA_BUNDLE", "SSL_CERT_FILE"}) {
    if (options.ca_file.empty()) {
      options.ca_file = options.environment(name).value_or("");
    }
  }
  return options;
}

/// Lets the shards' threads take turns with an origin.
class SharedOrigin final : public HttpOrigin {
 public:
  explicit SharedOrigin(std::unique_ptr<HttpOrigin> origin) : origin_(std::move(origin)) {}

  Result<HttpHop> first_hop(const TransferRequest& request) override {
    const std::lock_guard<std::mutex> guard(mutex_);
    return origin_->first_hop(request);
  }
  ResponseVerdict judge(const HttpAnswer& answer) override {
    const std::lock_guard<std::mutex> guard(mutex_);
    return origin_->judge(answer);
  }
  Result<std::optional<HttpHop>> after(const HttpAnswer& answer, const ResponseVerdict& verdict,
                                       std::string_view body) override {
    const std::lock_guard<std::mutex> guard(mutex_);
    return origin_->after(answer, verdict, body);
  }
  bool resolves(const HttpHop& hop) const override { return origin_->resolves(hop); }

 private:
  std::mutex mutex_;
  const std::unique_ptr<HttpOrigin> origin_;
};

/// What all shards share. Thread-safe.
struct Common {
  explicit Common(TransportOptions given)
      : options(with_authorities(std::move(given))),
        bandwidth(options.bandwidth_max),
        transfers{options, proxy_is_set(options.environment), bandwidth},
        plain(std::make_unique<PlainOrigin>(options.headers, options.headers_origin)),
        hub(std::make_unique<HubOrigin>(HubOptions{options.environment, &wall_clock_s})),
        s3(make_s3_origin({options.environment, options.insecure_http, &wall_clock_s})) {}

  HttpOrigin& origin_of(const Uri& uri) {
    return uri.scheme == "hf" ? hub : uri.scheme == "s3" ? s3 : plain;
  }

  void warn_once(const TransferRequest& request) {
    const bool part =
        request.range.begin > 0 || (request.expected && request.range.end < request.expected->size);
    const std::lock_guard<std::mutex> guard(mutex);
    if (part && warned_origins.insert(request.uri.origin()).second) {
      log(LogLevel::warning, "server_ignores_ranges",
          {{"object", request.uri.display()},
           {"advice", "each request transfers the file from its start; use a server with ranges"}});
    }
  }

  const TransportOptions options;
  BandwidthLimit bandwidth;
  CurlTransfer::Shared transfers;
  SharedOrigin plain;
  SharedOrigin hub;
  SharedOrigin s3;
  std::mutex mutex;
  std::set<std::string> warned_origins;
};

/// One thread with its connections.
class Shard {
 public:
  explicit Shard(Common& common)
      : common_(common), loop_(common.options.connections + kSpareConnections, common.bandwidth) {}
  Shard(const Shard&) = delete;
  Shard& operator=(const Shard&) = delete;

  ~Shard() {
    loop_.post([this] {
      while (!flights_.empty()) {
        cancel(flights_.begin()->first);
      }
    });
  }

  void start(TransferRequest request, std::function<void(TransferResult)> done) {
    HttpOrigin& origin = common_.origin_of(request.uri);
    auto flight =
        std::make_shared<Flight>(std::move(request), origin, common_.transfers, std::move(done));
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
        common_.warn_once(ended.transfer.request());
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

  Common& common_;
  std::uint64_t next_id_ = 0;
  std::map<std::uint64_t, std::shared_ptr<Flight>> flights_;
  std::vector<CurlEasy> idle_handles_;
  CurlLoop loop_;  // Last member: its thread ends before anything it uses is destroyed.
};

}  // namespace

class CurlTransport::Impl {
 public:
  explicit Impl(const TransportOptions& options) : common_(options) {
    const std::uint32_t count = options.connections >= kConnectionsForShards ? kShards : 1;
    for (std::uint32_t i = 0; i < count; ++i) {
      shards_.push_back(std::make_unique<Shard>(common_));
      loads_.push_back(0);
    }
  }

  void start(TransferRequest request, std::function<void(TransferResult)> done) {
    // What is left of a request ends where all of it does.
    const FetchPiece& last = request.pieces.back();
    const std::byte* const place = last.destination + last.range.size();
    std::size_t shard = 0;
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      const auto beside = shard_of_.find(place);
      if (beside != shard_of_.end()) {
        // A second request for late bytes writes to the same places: on the same thread.
        shard = beside->second.shard;
      } else {
        shard = static_cast<std::size_t>(std::min_element(loads_.begin(), loads_.end()) -
                                         loads_.begin());
      }
      ++loads_[shard];
      Use& use = shard_of_[place];
      use.shard = shard;
      ++use.count;
    }
    shards_[shard]->start(std::move(request),
                          [this, place, done = std::move(done)](TransferResult result) {
                            leave(place);
                            done(std::move(result));
                          });
  }

 private:
  /// Requests that write to one place.
  struct Use {
    std::size_t shard = 0;
    std::uint32_t count = 0;
  };

  void leave(const std::byte* place) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto found = shard_of_.find(place);
    --loads_[found->second.shard];
    if (--found->second.count == 0) {
      shard_of_.erase(found);
    }
  }

  Common common_;
  std::mutex mutex_;
  std::vector<std::uint32_t> loads_;            // Requests under way, by shard.
  std::map<const std::byte*, Use> shard_of_;    // By where a request's last piece ends.
  std::vector<std::unique_ptr<Shard>> shards_;  // Last: they end before what they use.
};

CurlTransport::CurlTransport(const TransportOptions& options)
    : impl_(std::make_unique<Impl>(options)) {}

CurlTransport::~CurlTransport() = default;

void CurlTransport::start(TransferRequest request, std::function<void(TransferResult)> done) {
  impl_->start(std::move(request), std::move(done));
}

}  // namespace librarian::weightmap::remote
