#include "weightmap/remote/fetch_in_order.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

namespace librarian::weightmap::remote {
namespace {

/// Pieces in flight behind the one that is used next; slot i holds pieces i, i + slots, ...
class Window {
 public:
  Window(Fetcher& fetcher, Clock& clock, ObjectId object, ByteRange range,
         std::span<std::byte> memory, std::uint64_t piece_bytes)
      : fetcher_(fetcher),
        object_(object),
        range_(range),
        memory_(memory),
        piece_bytes_(piece_bytes),
        pieces_((range.size() + piece_bytes - 1) / piece_bytes),
        monitor_(clock),
        requests_(memory.size() / piece_bytes),
        results_(memory.size() / piece_bytes) {
    LIB_CHECK(!results_.empty());
  }

  Result<void> run(const std::function<Result<void>(std::span<const std::byte>)>& use,
                   const std::stop_token& stop) {
    Result<void> outcome;
    for (std::uint64_t next = 0; next < pieces_ && outcome; ++next) {
      while (sent_ < pieces_ && sent_ < next + results_.size()) {
        send();
      }
      outcome = wait_for(next, stop);
      if (outcome) {
        outcome = use(place(next));
      }
    }
    if (!outcome) {
      for (const std::optional<Fetcher::RequestId>& request : requests_) {
        if (request) {
          fetcher_.cancel(*request);  // One that has ended is not there any more.
        }
      }
    }
    auto lock = monitor_.lock();
    monitor_.wait(lock, {}, [&] { return in_flight_ == 0; });  // Memory is written to until then.
    return outcome;
  }

 private:
  std::span<std::byte> place(std::uint64_t piece) const {
    return memory_.subspan(piece % results_.size() * piece_bytes_,
                           std::min(piece_bytes_, range_.size() - piece * piece_bytes_));
  }

  void send() {
    const std::uint64_t piece = sent_++;
    const std::span<std::byte> into = place(piece);
    const std::uint64_t begin = range_.begin + piece * piece_bytes_;
    const std::size_t slot = piece % results_.size();
    {
      auto lock = monitor_.lock();
      results_[slot].reset();
      ++in_flight_;
    }
    requests_[slot] = fetcher_.submit({object_, {{{begin, begin + into.size()}, into.data()}}, 0},
                                      [this, slot](const Result<CrcRuns>& result) {
                                        auto lock = monitor_.lock();
                                        results_[slot].emplace();
                                        if (!result) {
                                          results_[slot].emplace(result.error());
                                        }
                                        --in_flight_;
                                        monitor_.notify_all(lock);
                                      });
  }

  Result<void> wait_for(std::uint64_t piece, const std::stop_token& stop) {
    std::optional<Result<void>>& result = results_[piece % results_.size()];
    auto lock = monitor_.lock();
    if (!monitor_.wait(lock, stop, [&] { return result.has_value(); })) {
      return Error(ErrorCode::cancelled, "stopped while fetching");
    }
    return *result;
  }

  Fetcher& fetcher_;
  const ObjectId object_;
  const ByteRange range_;
  const std::span<std::byte> memory_;
  const std::uint64_t piece_bytes_;
  const std::uint64_t pieces_;
  std::uint64_t sent_ = 0;
  Monitor monitor_;
  std::vector<std::optional<Fetcher::RequestId>> requests_;  // The latest one of each slot.
  std::vector<std::optional<Result<void>>> results_;  // Guarded by monitor_, with in_flight_.
  std::uint64_t in_flight_ = 0;
};

}  // namespace

Result<void> fetch_in_order(Fetcher& fetcher, Clock& clock, ObjectId object, ByteRange range,
                            std::span<std::byte> window, std::uint64_t piece_bytes,
                            const std::function<Result<void>(std::span<const std::byte>)>& use,
                            const std::stop_token& stop) {
  return Window(fetcher, clock, object, range, window, piece_bytes).run(use, stop);
}

}  // namespace librarian::weightmap::remote
