#include "weightmap/remote/file_transport.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/unique_handle.h"

namespace librarian::weightmap::remote {
namespace {

// One uninterruptible read: well under a second on any disk worth using.
constexpr std::uint64_t kReadBytesMax = 8U << 20U;

struct DescriptorTraits {
  using Raw = int;
  static constexpr Raw null = -1;
  static void close(Raw descriptor) noexcept { static_cast<void>(::close(descriptor)); }
};
using Descriptor = UniqueHandle<DescriptorTraits>;

Error from_errno(const char* action) {
  const int number = errno;
  const std::string text = std::string("cannot ") + action + ": " + std::strerror(number);
  switch (number) {
    case ENOENT:
    case ENOTDIR:
      return {ErrorCode::not_found, text};
    case EACCES:
    case EPERM:
    case ELOOP:
    case ENAMETOOLONG:
    case EISDIR:
    case ENXIO:
      return {ErrorCode::bad_input, text};
    default:
      // EIO, ESTALE, EMFILE: network file systems and busy machines recover.
      return {ErrorCode::unavailable, text};
  }
}

Error changed() {
  return {ErrorCode::source_changed,
          "the file was changed or replaced since the job first read it; put the old file back or "
          "start a new job"};
}

Result<ObjectInfo> describe(int descriptor) {
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) {
    return from_errno("read the file's size");
  }
  if (!S_ISREG(status.st_mode)) {
    return Error(ErrorCode::bad_input, "this is not a regular file");
  }
  const std::int64_t modified_ns =
      std::int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec;
  return ObjectInfo{
      static_cast<std::uint64_t>(status.st_size),
      "mtime:" + std::to_string(modified_ns) + ":inode:" + std::to_string(status.st_ino), false,
      ""};
}

Result<void> read_pieces(int descriptor, const TransferRequest& request, std::uint64_t size,
                         const std::stop_token& pool_stop, TransferResult& result) {
  const std::uint64_t end = std::min(request.range.end, size);
  for (const FetchPiece& piece : request.pieces) {
    const std::uint64_t piece_end = std::min(piece.range.end, end);
    std::uint64_t at = piece.range.begin;
    while (at < piece_end) {
      if (request.stop.stop_requested() || pool_stop.stop_requested()) {
        return Error(ErrorCode::cancelled, "stopped");
      }
      const std::uint64_t wanted = std::min(piece_end - at, kReadBytesMax);
      const ssize_t got = ::pread(descriptor, piece.destination + (at - piece.range.begin), wanted,
                                  static_cast<off_t>(at));
      if (got < 0 && errno == EINTR) {
        continue;
      }
      if (got < 0) {
        return from_errno("read the file");
      }
      if (got == 0) {
        return changed();  // fstat promised these bytes.
      }
      at += static_cast<std::uint64_t>(got);
      result.body_bytes += static_cast<std::uint64_t>(got);
      result.piece_bytes += static_cast<std::uint64_t>(got);
      result.bytes_in_order = at - request.range.begin;
    }
  }
  return {};
}

Result<void> transfer(const TransferRequest& request, const std::stop_token& pool_stop,
                      TransferResult& result) {
  if (request.stop.stop_requested() || pool_stop.stop_requested()) {
    return Error(ErrorCode::cancelled, "stopped");
  }
  // Not blocking: opening a FIFO must not hang. It changes nothing for regular files.
  const Descriptor file(
      ::open(request.uri.text.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));  // NOLINT: C API
  if (!file) {
    return from_errno("open the file");
  }
  LIB_TRY(const ObjectInfo info, describe(file.get()));
  if (request.expected && info != *request.expected) {
    return changed();
  }
  result.info = info;
  LIB_TRY_VOID(read_pieces(file.get(), request, info.size, pool_stop, result));
  // A writer may have come while we read; what it left is not what the job began with.
  LIB_TRY(const ObjectInfo after, describe(file.get()));
  return after == info ? Result<void>() : changed();
}

}  // namespace

FileTransport::FileTransport(Clock& clock, std::uint32_t threads) : monitor_(clock) {
  LIB_CHECK(threads > 0);
  for (std::uint32_t i = 0; i < threads; ++i) {
    threads_.push_back(start_thread(clock, [this](const std::stop_token& stop) { run(stop); }));
  }
}

FileTransport::~FileTransport() {
  for (std::jthread& thread : threads_) {
    thread.request_stop();
  }
  threads_.clear();
  for (Job& job : queue_) {
    TransferResult result;
    result.error = Error(ErrorCode::cancelled, "stopped");
    job.done(std::move(result));
  }
}

void FileTransport::start(TransferRequest request, std::function<void(TransferResult)> done) {
  auto lock = monitor_.lock();
  queue_.push_back({std::move(request), std::move(done)});
  monitor_.notify_all(lock);
}

void FileTransport::run(const std::stop_token& stop) {
  while (true) {
    auto lock = monitor_.lock();
    if (!monitor_.wait(lock, stop, [&] { return !queue_.empty(); }) || stop.stop_requested()) {
      return;
    }
    const Job job = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    TransferResult result;
    if (auto outcome = transfer(job.request, stop, result); !outcome) {
      result.error = std::move(outcome).error();
    }
    job.done(std::move(result));
  }
}

}  // namespace librarian::weightmap::remote
