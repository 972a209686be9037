#include "tests/ingest/paced_doubles.h"

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
  Result<bool> try_lock() override { return inner_->try_lock(); }
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

Result<std::unique_ptr<File>> PacedFileSystem::create(const std::string& path) {
  LIB_TRY(std::unique_ptr<File> file, inner_.create(path));
  // Metadata is small and many times: only shards are worth their time.
  if (path.find("/c/") == std::string::npos) {
    return file;
  }
  return std::make_unique<PacedFile>(clock_, std::move(file), bytes_per_second_);
}

}  // namespace librarian::ingest::testing
