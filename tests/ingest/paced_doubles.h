#pragma once
/// A network, a device and a disk that take the time they are told to, on any clock.

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/bounded_queue.h"
#include "base/clock.h"
#include "base/file_system.h"
#include "gpu_exec/device.h"
#include "tests/ingest/tiny_model.h"
#include "tests/support/forwarding_device.h"

namespace librarian::ingest::testing {

/// One wire: requests pass one after the other, each for its bytes' time.
class PacedTransport final : public weightmap::remote::Transport {
 public:
  PacedTransport(Clock& clock, std::shared_ptr<MapTransport> source, double bytes_per_second);
  void start(weightmap::remote::TransferRequest request,
             std::function<void(weightmap::remote::TransferResult)> done) override;

 private:
  struct Job {
    weightmap::remote::TransferRequest request;
    std::function<void(weightmap::remote::TransferResult)> done;
  };
  Clock& clock_;
  std::shared_ptr<MapTransport> source_;
  double bytes_per_second_;
  BoundedQueue<Job> queue_;
  std::jthread thread_;  // Last member: it stops before the queue goes.
};

/// Forwards to a real device, after the time that an operation's multiply-adds take at a rate.
class PacedDevice final : public gpu_exec::ForwardingDevice {
 public:
  PacedDevice(Clock& clock, std::unique_ptr<gpu_exec::Device> inner, double flops_per_second)
      : ForwardingDevice(std::move(inner)), clock_(clock), flops_per_second_(flops_per_second) {}

  void linear(const gpu_exec::LinearOp& op, std::byte* scratch,
              const std::stop_token& stop) override {
    spend(op.rows, op.inputs, op.outputs, stop);
    ForwardingDevice::linear(op, scratch, stop);
  }
  void glu(const gpu_exec::GluOp& op, std::byte* scratch, const std::stop_token& stop) override {
    spend(op.rows, op.inputs, 2 * op.width, stop);
    ForwardingDevice::glu(op, scratch, stop);
  }

 private:
  void spend(std::uint64_t rows, std::uint64_t inputs, std::uint64_t outputs,
             const std::stop_token& stop) {
    const double seconds = 2.0 * static_cast<double>(rows) * static_cast<double>(inputs) *
                           static_cast<double>(outputs) / flops_per_second_;
    clock_.sleep_for(std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds)),
                     stop);
  }

  Clock& clock_;
  double flops_per_second_;
};

/// A GPU in time: its queues take weights and do products at these rates while the host goes on,
/// and it has two buffers for weights and memory of its own. The numbers are the inner device's, at
/// once. Asking whether a ticket is reached takes a moment.
class PacedGpu final : public gpu_exec::ForwardingDevice {
 public:
  PacedGpu(Clock& clock, std::unique_ptr<gpu_exec::Device> inner, double flops_per_second,
           double weight_bytes_per_second)
      : ForwardingDevice(std::move(inner)),
        clock_(clock),
        flops_per_second_(flops_per_second),
        weight_bytes_per_second_(weight_bytes_per_second) {}

  bool works_on_host_memory() const override { return false; }
  std::uint64_t weight_buffers() const override { return 2; }
  void pack_matrix(const gpu_exec::MatrixSource& source, std::uint64_t outputs,
                   std::uint64_t inputs, std::byte* packed) override;
  void linear(const gpu_exec::LinearOp& op, std::byte* scratch,
              const std::stop_token& stop) override;
  void glu(const gpu_exec::GluOp& op, std::byte* scratch, const std::stop_token& stop) override;
  gpu_exec::Ticket mark(gpu_exec::Queue queue) override;
  void wait(gpu_exec::Queue queue, gpu_exec::Ticket ticket) override;
  Result<bool> reached(gpu_exec::Ticket ticket) override;

 private:
  TimePoint& end_of(gpu_exec::Queue queue) { return ends_[static_cast<std::size_t>(queue)]; }
  void spend(gpu_exec::Queue queue, double seconds);

  Clock& clock_;
  double flops_per_second_;
  double weight_bytes_per_second_;
  std::array<TimePoint, 4> ends_{};     ///< When each queue will have done what it was given.
  std::vector<TimePoint> tickets_{{}};  ///< When each is reached, by number.
};

/// Files whose appended bytes take time. Everything else is at once.
class PacedFileSystem final : public FileSystem {
 public:
  PacedFileSystem(Clock& clock, FileSystem& inner, double bytes_per_second)
      : clock_(clock), inner_(inner), bytes_per_second_(bytes_per_second) {}

  Result<std::unique_ptr<File>> create(const std::string& path) override;
  Result<std::unique_ptr<File>> create_sparse(const std::string& path) override {
    return inner_.create_sparse(path);
  }
  Result<std::unique_ptr<File>> open_sparse(const std::string& path) override {
    return inner_.open_sparse(path);
  }
  Result<std::unique_ptr<File>> open(const std::string& path) override { return inner_.open(path); }
  Result<std::unique_ptr<File>> open_append(const std::string& path, bool create) override {
    return inner_.open_append(path, create);
  }
  Result<FileInfo> info(const std::string& path) override { return inner_.info(path); }
  Result<std::vector<std::string>> list(const std::string& path) override {
    return inner_.list(path);
  }
  Result<void> make_directory(const std::string& path) override {
    return inner_.make_directory(path);
  }
  Result<void> make_private_directory(const std::string& path) override {
    return inner_.make_private_directory(path);
  }
  Result<void> rename(const std::string& from, const std::string& to) override {
    return inner_.rename(from, to);
  }
  Result<void> link(const std::string& from, const std::string& to) override {
    return inner_.link(from, to);
  }
  Result<void> remove_file(const std::string& path) override { return inner_.remove_file(path); }
  Result<void> remove_directory(const std::string& path) override {
    return inner_.remove_directory(path);
  }
  Result<void> sync_directory(const std::string& path) override {
    return inner_.sync_directory(path);
  }
  Result<std::uint64_t> free_bytes(const std::string& path) override {
    return inner_.free_bytes(path);
  }

 private:
  Clock& clock_;
  FileSystem& inner_;
  double bytes_per_second_;
};

}  // namespace librarian::ingest::testing
