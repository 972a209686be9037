#pragma once
/// http and https over libcurl; see make_transport().

#include <functional>
#include <memory>

#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote {

/// HTTP/1.1 with connections kept alive, on two threads of its own. Thread-safe; its
/// destruction ends what is running with `cancelled`.
class CurlTransport final : public Transport {
 public:
  explicit CurlTransport(const TransportOptions& options);
  ~CurlTransport() override;
  CurlTransport(const CurlTransport&) = delete;
  CurlTransport& operator=(const CurlTransport&) = delete;

  void start(TransferRequest request, std::function<void(TransferResult)> done) override;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace librarian::weightmap::remote
