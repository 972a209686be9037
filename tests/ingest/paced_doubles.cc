#include "tests/ingest/paced_doubles.h"

#include <algorithm>
#include <chrono>

namespace librarian::ingest::testing {
namespace {

Duration time_for(double bytes, double bytes_per_second) {
  return std::chrono::duration_cast<Duration>(
      std::chrono::duration<double>(bytes / bytes_per_second));
}

/// A file whose appends take time; shards are what is appended in bulk.
class PacedFile final : public File {
 public:
  PacedFile(Clock& clock, std::unique_ptr<File> inner, double bytes_per_second)
      : clock_(clock), inner_(std::move(inner)), bytes_per_second_(bytes_per_second) {}

  Result<void> append(std::span<const std::byte> bytes) override {
    clock_.sleep_for(time_for(static_cast<double>(bytes.size()), bytes_per_second_), {});
    return inner_->append(bytes);
  }
  Result<void> write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
    return inner_->write_at(offset, bytes);
  }
  Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> into) const override {
    return inner_->read_at(offset, into);
  }
  Result<void> sync_data() override { return inner_->sync_data(); }
  Result<std::uint64_t> size() const override { return inner_->size(); }
  Result<void> truncate(std::uint64_t size) override { return inner_->truncate(size); }
  Result<void> touch() override { return inner_->touch(); }
  Result<void> reserve(std::uint64_t size) override { return inner_->reserve(size); }
  Result<bool> try_lock() override { return inner_->try_lock(); }
  Result<bool> try_lock_shared() override { return inner_->try_lock_shared(); }
  Result<std::uint64_t> inode() const override { return inner_->inode(); }

 private:
  Clock& clock_;
  std::unique_ptr<File> inner_;
  double bytes_per_second_;
};

}  // namespace

PacedTransport::PacedTransport(Clock& clock, std::shared_ptr<MapTransport> source,
                               double bytes_per_second)
    : clock_(clock),
      source_(std::move(source)),
      bytes_per_second_(bytes_per_second),
      queue_(clock, 1U << 20U),
      thread_(start_thread(clock, [this](const std::stop_token& stop) {
        while (auto job = queue_.pop(stop)) {
          weightmap::remote::TransferResult result = source_->answer(job->request);
          clock_.sleep_for(time_for(static_cast<double>(result.body_bytes), bytes_per_second_),
                           stop);
          job->done(std::move(result));
        }
      })) {}

void PacedTransport::start(weightmap::remote::TransferRequest request,
                           std::function<void(weightmap::remote::TransferResult)> done) {
  LIB_CHECK(queue_.push({std::move(request), std::move(done)}, {}).has_value());
}

void PacedGpu::spend(gpu_exec::Queue queue, double seconds) {
  TimePoint& end = end_of(queue);
  end = std::max(end, clock_.now()) +
        std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

void PacedGpu::pack_matrix(const gpu_exec::MatrixSource& source, std::uint64_t outputs,
                           std::uint64_t inputs, std::byte* packed) {
  spend(gpu_exec::Queue::weights, static_cast<double>(outputs * inputs) *
                                      static_cast<double>(gpu_exec::dtype_bytes(source.type)) /
                                      weight_bytes_per_second_);
  ForwardingDevice::pack_matrix(source, outputs, inputs, packed);
}

void PacedGpu::linear(const gpu_exec::LinearOp& op, std::byte* scratch,
                      const std::stop_token& stop) {
  spend(gpu_exec::Queue::compute,
        2.0 * static_cast<double>(op.rows * op.inputs * op.outputs) / flops_per_second_);
  ForwardingDevice::linear(op, scratch, stop);
}

void PacedGpu::glu(const gpu_exec::GluOp& op, std::byte* scratch, const std::stop_token& stop) {
  spend(gpu_exec::Queue::compute,
        4.0 * static_cast<double>(op.rows * op.inputs * op.width) / flops_per_second_);
  ForwardingDevice::glu(op, scratch, stop);
}

gpu_exec::Ticket PacedGpu::mark(gpu_exec::Queue queue) {
  tickets_.push_back(end_of(queue));
  return {queue, tickets_.size() - 1};
}

void PacedGpu::wait(gpu_exec::Queue queue, gpu_exec::Ticket ticket) {
  end_of(queue) = std::max(end_of(queue), tickets_[ticket.number]);
}

Result<bool> PacedGpu::reached(gpu_exec::Ticket ticket) {
  // Who asks again and again must see time pass.
  constexpr Duration kMoment = std::chrono::milliseconds(5);
  const TimePoint end = tickets_[ticket.number];
  if (clock_.now() < end) {
    clock_.sleep_until(std::min(end, clock_.now() + kMoment), {});
  }
  return clock_.now() >= end;
}

Result<std::unique_ptr<File>> PacedFileSystem::create(const std::string& path) {
  LIB_TRY(std::unique_ptr<File> file, inner_.create(path));
  // Metadata is small and many times: only shards are worth their time.
  if (path.find("/c/") == std::string::npos) {
    return file;
  }
  return std::make_unique<PacedFile>(clock_, std::move(file), bytes_per_second_);
}

}  // namespace librarian::ingest::testing
