#include "weightmap/remote/transport.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <mutex>

#include "weightmap/remote/curl_transport.h"
#include "weightmap/remote/file_transport.h"

namespace librarian::weightmap::remote {
namespace {

constexpr std::uint32_t kFileThreadsMax = 8;

class RoutingTransport final : public Transport {
 public:
  RoutingTransport(Clock& clock, const TransportOptions& options)
      : options_(options), files_(clock, std::clamp(options.connections, 1U, kFileThreadsMax)) {}

  void start(TransferRequest request, std::function<void(TransferResult)> done) override {
    if (request.uri.scheme == "file") {
      files_.start(std::move(request), std::move(done));
      return;
    }
    // A run on local files needs neither libcurl's thread nor its TLS tables.
    std::call_once(curl_once_, [this] { curl_ = std::make_unique<CurlTransport>(options_); });
    curl_->start(std::move(request), std::move(done));
  }

 private:
  const TransportOptions options_;
  FileTransport files_;
  std::once_flag curl_once_;
  std::unique_ptr<CurlTransport> curl_;
};

}  // namespace

Environment process_environment() {
  return [](const std::string& name) {
    const char* value = std::getenv(name.c_str());
    return value == nullptr ? std::nullopt : std::optional<std::string>(value);
  };
}

std::int64_t wall_clock_s() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::unique_ptr<Transport> make_transport(Clock& clock, const TransportOptions& options) {
  return std::make_unique<RoutingTransport>(clock, options);
}

}  // namespace librarian::weightmap::remote
