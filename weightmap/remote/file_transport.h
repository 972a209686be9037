#pragma once
/// Reads ranges of local files; see make_transport().

#include <cstdint>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote {

/// A small pool of threads, each reading one request at a time straight into its destinations.
/// Symbolic links are followed: the files of a model hub's cache are links. Thread-safe; its
/// destruction ends what is queued and running with `cancelled`.
class FileTransport final : public Transport {
 public:
  FileTransport(Clock& clock, std::uint32_t threads);
  ~FileTransport() override;
  FileTransport(const FileTransport&) = delete;
  FileTransport& operator=(const FileTransport&) = delete;

  void start(TransferRequest request, std::function<void(TransferResult)> done) override;

 private:
  struct Job {
    TransferRequest request;
    std::function<void(TransferResult)> done;
  };
  void run(const std::stop_token& stop);

  Monitor monitor_;
  std::deque<Job> queue_;
  std::vector<std::jthread> threads_;
};

}  // namespace librarian::weightmap::remote
