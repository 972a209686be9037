#include "weightmap/virtual_weight_map.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "weightmap/host_ring.h"

namespace librarian::weightmap {
namespace {

constexpr std::uint64_t kTailRequestBytes = 4U << 20U;
constexpr std::uint64_t kSmallHoleBytes = 64U << 10U;
// Read from memory for the CRC, from the first-level cache for the digest.
constexpr std::size_t kHashBlockBytes = 16U << 10U;
constexpr std::uint64_t kHolesPerByte = 100;  // Larger holes: 1 % of the layer in all.

}  // namespace

/// One queued layer. Everything mutable is guarded by the map's monitor.
struct Lease::Stream {
  const LayerPlan* plan = nullptr;
  std::uint64_t number = 0;                          // Counts queued layers.
  std::shared_ptr<const std::vector<Piece>> pieces;  // One for all readings.
  std::uint64_t batched_bytes = 0;                   // Of the plan, put into requests.
  std::uint64_t hole_bytes = 0;                      // Fetched besides.
  struct Slot {
    std::span<std::byte> memory;
    std::uint32_t requests_left = 0;  // Requests that still bring bytes of this piece.
    bool requested = false;           // All of its requests are queued.
    remote::CrcRuns crcs;             // Of what those that are done brought, as it arrived.
    bool has_memory() const { return !memory.empty(); }
  };
  std::vector<bool> skipped;     // By piece: nobody wants it, so it gets a slot without memory.
  std::vector<Slot> slots;       // As far as allocated; pieces beyond have none yet. Room for all
                                 // from the first on: they stay where they are.
  std::size_t released = 0;      // Slots given back.
  std::optional<Error> failure;  // First error of any of its requests.
  bool abandoned = false;        // The lease ended early: fetch nothing more.
  std::uint32_t in_flight = 0;
};

class VirtualWeightMap::Impl {
 public:
  using Stream = Lease::Stream;

  Impl(WeightSource& source, Clock& clock, const Checkpoint& checkpoint, WeightMapOptions options)
      : source_(source),
        checkpoint_(checkpoint),
        options_(std::move(options)),
        ring_(options_.ring_bytes, std::move(options_.ring)),
        monitor_(clock),
        thread_(start_thread(clock, [this](const std::stop_token& stop) { fill(stop); })) {}

  ~Impl() {
    thread_.request_stop();
    thread_.join();
    source_.cancel_all();
    // Requests hold pointers into the ring: wait until the last one is done with it.
    auto lock = monitor_.lock();
    monitor_.wait(lock, {}, [&] { return in_flight_ == 0; });
  }

  void queue(std::int32_t layer, std::uint32_t readings) {
    source_.announce(layer, readings);
    const LayerPlan& plan = checkpoint_.layer(layer);
    const auto pieces =
        std::make_shared<const std::vector<Piece>>(plan_pieces(plan, options_.table_piece_bytes));
    auto lock = monitor_.lock();
    for (std::uint32_t reading = 0; reading < readings; ++reading) {
      auto stream = std::make_shared<Stream>();
      stream->plan = &plan;
      stream->pieces = pieces;
      stream->skipped.resize(pieces->size());
      stream->number = queued_++;
      to_fill_.push_back(stream);
      to_lease_.push_back(stream);
      statistics_.needed_bytes += plan.bytes;
    }
    monitor_.notify_all(lock);
  }

  std::shared_ptr<Stream> take(std::int32_t layer, std::uint32_t readings) {
    {
      auto lock = monitor_.lock();
      if (!to_lease_.empty()) {
        LIB_CHECK(to_lease_.front()->plan->layer == layer);
      }
    }
    if (to_lease_.empty()) {
      queue(layer, readings);
    }
    auto lock = monitor_.lock();
    std::shared_ptr<Stream> stream = to_lease_.front();
    to_lease_.pop_front();
    return stream;
  }

  /// Waits until piece `index` is in memory.
  Result<void> wait_for(Stream& stream, std::size_t index, const std::stop_token& stop) {
    auto lock = monitor_.lock();
    const TimePoint begin = monitor_.clock().now();
    const bool arrived =
        monitor_.wait(lock, stop, [&] { return stream.failure || has_arrived(stream, index); });
    statistics_.acquire_wait += monitor_.clock().now() - begin;
    if (stream.failure) {
      return *stream.failure;
    }
    if (!arrived) {
      return Error(ErrorCode::cancelled, "stopped while waiting for weights");
    }
    return {};
  }

  /// Whether piece `index` is in memory.
  Result<bool> is_there(const Stream& stream, std::size_t index) {
    auto lock = monitor_.lock();
    if (stream.failure) {
      return *stream.failure;
    }
    return has_arrived(stream, index);
  }

  /// Gives back the oldest slot, which belongs to `stream`.
  void release(Stream& stream) {
    auto lock = monitor_.lock();
    while (!release_next(stream)) {
    }
    monitor_.notify_all(lock);
  }

  /// Sees to it that no tensor is fetched that nobody needs, unless it was asked for already.
  void skip(Stream& stream, const std::function<bool(const WeightTensor&)>& is_unneeded) {
    auto lock = monitor_.lock();
    for (std::size_t i = stream.slots.size(); i < stream.pieces->size(); ++i) {
      const Piece& piece = (*stream.pieces)[i];
      const WeightTensor& tensor = stream.plan->tensors[piece.tensor];
      LIB_CHECK(piece.bytes == tensor.bytes);
      stream.skipped[i] = stream.skipped[i] || is_unneeded(tensor);
    }
    monitor_.notify_all(lock);
  }

  /// Ends a stream early or late: its slots go back once no request writes to them any more.
  void end(Stream& stream, bool complete) {
    auto lock = monitor_.lock();
    // What is left of a complete one is only passed over, of which the source must be told.
    stream.abandoned = !complete;
    monitor_.notify_all(lock);
    monitor_.wait(lock, {}, [&] { return filling_ != &stream; });
    if (stream.in_flight > 0) {
      // Nothing of this stream is queued any more, so no request can escape. Those of layers behind
      // it are cancelled too: a lease ends early only when the job does.
      lock.unlock();
      source_.cancel_all();
      lock.lock();
    }
    monitor_.wait(lock, {}, [&] { return stream.in_flight == 0; });
    while (stream.released < stream.slots.size()) {
      release_next(stream);
    }
    monitor_.notify_all(lock);
  }

  /// Fails a stream: what is in memory of `piece` is not what arrived.
  Error changed_in_memory(Stream& stream, const Piece& piece) {
    const WeightTensor& tensor = stream.plan->tensors[piece.tensor];
    auto lock = monitor_.lock();
    stream.failure = Error(
        ErrorCode::corrupt,
        tensor.name + ": bytes [" + std::to_string(piece.bytes.begin) + ", " +
            std::to_string(piece.bytes.end) + ") of " + checkpoint_.files()[tensor.file].name +
            " changed in this machine's memory between arrival and use; test its memory, then run "
            "the same command again: it resumes");
    monitor_.notify_all(lock);
    return *stream.failure;
  }

  WeightMapStatistics statistics() {
    auto lock = monitor_.lock();
    return statistics_;
  }

 private:
  /// Requests being put together: adjacent pieces of one file share one.
  struct Batch {
    std::uint32_t file = 0;
    std::uint64_t bytes_max = 0;
    std::vector<remote::FetchPiece> pieces;
    std::vector<std::size_t> slots;  // Index of the slot that each piece fills.
  };

  static bool has_arrived(const Stream& stream, std::size_t index) {
    return index < stream.slots.size() && stream.slots[index].requested &&
           stream.slots[index].requests_left == 0;
  }

  /// Gives the next slot of a stream back. @return whether it had memory.
  bool release_next(Stream& stream) {
    LIB_CHECK(stream.released < stream.slots.size());
    const bool has_memory = stream.slots[stream.released++].has_memory();
    if (has_memory) {
      ring_.release_oldest();
    }
    return has_memory;
  }

  void fill(const std::stop_token& stop) {
    while (true) {
      std::shared_ptr<Stream> stream;
      {
        auto lock = monitor_.lock();
        if (!monitor_.wait(lock, stop, [&] { return !to_fill_.empty(); })) {
          return;
        }
        stream = to_fill_.front();
        to_fill_.pop_front();
        filling_ = stream.get();
      }
      fill_stream(stream, stop);
      auto lock = monitor_.lock();
      filling_ = nullptr;
      monitor_.notify_all(lock);
    }
  }

  void fill_stream(const std::shared_ptr<Stream>& stream, const std::stop_token& stop) {
    Batch batch;
    {
      auto lock = monitor_.lock();
      stream->slots.reserve(stream->pieces->size());
    }
    for (std::size_t i = 0; i < stream->pieces->size(); ++i) {
      if (!allocate(*stream, i, batch, stream, stop)) {
        break;
      }
      if (stream->slots[i].has_memory()) {
        add_to_batch(stream, i, batch);
      } else {
        source_.pass_over((*stream->pieces)[i].bytes.size());
      }
    }
    submit(stream, batch);
  }

  /// Makes the slot of piece `index`. Sends what is batched before it waits: the ring only gets
  /// free when requested pieces arrive and are used.
  bool allocate(Stream& stream, std::size_t index, Batch& batch,
                const std::shared_ptr<Stream>& shared, const std::stop_token& stop) {
    const std::uint64_t bytes = (*stream.pieces)[index].bytes.size();
    std::optional<std::span<std::byte>> memory;
    auto lock = monitor_.lock();
    const auto is_decided = [&] {
      return stream.abandoned || stream.skipped[index] ||
             (memory = ring_.allocate(bytes)).has_value();
    };
    if (!is_decided()) {
      lock.unlock();
      submit(shared, batch);
      lock.lock();
      const TimePoint begin = monitor_.clock().now();
      monitor_.wait(lock, stop, is_decided);
      statistics_.ring_wait += monitor_.clock().now() - begin;
    }
    if (memory) {
      stream.slots.push_back({*memory, 0, false, {}});
      return true;
    }
    if (stream.abandoned || !stream.skipped[index]) {
      return false;
    }
    stream.slots.push_back({{}, 0, true, {}});
    stream.batched_bytes += bytes;
    statistics_.needed_bytes -= bytes;
    return true;
  }

  /// How large the next request for `file` should be at most.
  std::uint64_t request_bytes(const Stream& stream, std::uint64_t suits) {
    const std::uint64_t most = std::min(suits, options_.requests.request_bytes_max);
    auto lock = monitor_.lock();
    if (!to_fill_.empty()) {
      return most;
    }
    // Nothing follows: what is left is shared out, so that no connection idles while others end.
    const std::uint64_t left = stream.plan->bytes - stream.batched_bytes;
    return std::min(most, std::max(left / options_.requests.together, kTailRequestBytes));
  }

  /// Whether fetching `gap` unwanted bytes is better than another request.
  bool accepts_hole(const Stream& stream, std::uint64_t gap, std::uint64_t suits) const {
    // Large ones only as long as they do not add up.
    return gap <= std::min(options_.requests.hole_bytes_max, kSmallHoleBytes) ||
           (gap <= std::min(suits, options_.requests.hole_bytes_max) &&
            (stream.hole_bytes + gap) * kHolesPerByte <= stream.plan->bytes);
  }

  void add_to_batch(const std::shared_ptr<Stream>& stream, std::size_t index, Batch& batch) {
    const Piece& piece = (*stream->pieces)[index];
    const std::uint32_t file = stream->plan->tensors[piece.tensor].file;
    std::byte* const memory = stream->slots[index].memory.data();
    const remote::RequestSizes sizes = source_.sizes(file);
    for (std::uint64_t at = piece.bytes.begin; at < piece.bytes.end;) {
      if (!batch.slots.empty()) {
        const std::uint64_t begin = batch.pieces.front().range.begin;
        const std::uint64_t end = batch.pieces.back().range.end;
        if (batch.file != file || at < end || at - begin >= batch.bytes_max ||
            !accepts_hole(*stream, at - end, sizes.hole_bytes)) {
          submit(stream, batch);
        } else {
          stream->hole_bytes += at - end;
        }
      }
      if (batch.slots.empty()) {
        batch.bytes_max = request_bytes(*stream, sizes.request_bytes);
      }
      const std::uint64_t begin = batch.slots.empty() ? at : batch.pieces.front().range.begin;
      const std::uint64_t end = std::min(piece.bytes.end, begin + batch.bytes_max);
      batch.file = file;
      batch.pieces.push_back({{at, end}, memory + (at - piece.bytes.begin)});
      batch.slots.push_back(index);
      stream->batched_bytes += end - at;
      {
        auto lock = monitor_.lock();
        ++stream->slots[index].requests_left;
        stream->slots[index].requested = end == piece.bytes.end;
      }
      at = end;
    }
  }

  void submit(const std::shared_ptr<Stream>& stream, Batch& batch) {
    if (batch.slots.empty()) {
      return;
    }
    {
      auto lock = monitor_.lock();
      ++in_flight_;
      ++stream->in_flight;
    }
    source_.submit({batch.file, std::move(batch.pieces), stream->number},
                   [this, stream, slots = std::move(batch.slots)](
                       const Result<remote::CrcRuns>& result) { finish(*stream, slots, result); });
    batch = {};
  }

  void finish(Stream& stream, const std::vector<std::size_t>& slots,
              const Result<remote::CrcRuns>& result) {
    auto lock = monitor_.lock();
    --in_flight_;
    --stream.in_flight;
    if (!result && !stream.failure) {
      stream.failure = result.error();
    }
    const remote::CrcRuns none;
    const remote::CrcRuns& crcs = result ? *result : none;
    auto crc = crcs.begin();  // Of a request's pieces, in their order; some may have none.
    for (const std::size_t slot : slots) {
      const remote::ByteRange& piece = (*stream.pieces)[slot].bytes;
      if (crc != crcs.end() && crc->range.begin >= piece.begin && crc->range.end <= piece.end) {
        stream.slots[slot].crcs.push_back(*crc++);
      }
      --stream.slots[slot].requests_left;
    }
    monitor_.notify_all(lock);
  }

  WeightSource& source_;
  const Checkpoint& checkpoint_;
  WeightMapOptions options_;
  HostRing ring_;
  Monitor monitor_;
  std::deque<std::shared_ptr<Stream>> to_fill_;
  std::deque<std::shared_ptr<Stream>> to_lease_;
  const Stream* filling_ = nullptr;
  std::uint64_t queued_ = 0;
  std::uint32_t in_flight_ = 0;
  WeightMapStatistics statistics_;
  std::jthread thread_;  // Last: it stops before anything it uses is gone.
};

Lease::Lease(VirtualWeightMap& map, std::shared_ptr<Stream> stream)
    : map_(&map), stream_(std::move(stream)) {}

Lease::Lease(Lease&& other) noexcept
    : map_(std::exchange(other.map_, nullptr)),
      stream_(std::move(other.stream_)),
      next_piece_(other.next_piece_),
      hash_(std::move(other.hash_)),
      digests_(std::move(other.digests_)) {}

Lease::~Lease() {
  if (map_ != nullptr) {
    map_->impl_->end(*stream_, complete());
  }
}

Result<std::optional<ArrivedPiece>> Lease::next(const std::stop_token& stop) {
  if (complete()) {
    return std::optional<ArrivedPiece>();
  }
  LIB_TRY_VOID(map_->impl_->wait_for(*stream_, next_piece_, stop));
  LIB_TRY(const ArrivedPiece piece, take_next());
  return std::optional<ArrivedPiece>(piece);
}

Result<std::optional<ArrivedPiece>> Lease::next_if_there() {
  if (complete()) {
    return std::optional<ArrivedPiece>();
  }
  LIB_TRY(const bool there, map_->impl_->is_there(*stream_, next_piece_));
  if (!there) {
    return std::optional<ArrivedPiece>();
  }
  LIB_TRY(const ArrivedPiece piece, take_next());
  return std::optional<ArrivedPiece>(piece);
}

bool Lease::complete() const { return next_piece_ == stream_->pieces->size(); }

const WeightTensor* Lease::upcoming() const {
  return complete() ? nullptr : &stream_->plan->tensors[(*stream_->pieces)[next_piece_].tensor];
}

void Lease::skip(const std::function<bool(const WeightTensor&)>& is_unneeded) {
  map_->impl_->skip(*stream_, is_unneeded);
  pass_over_skipped();
}

void Lease::pass_over_skipped() {
  // Only this thread changes what is skipped.
  while (next_piece_ < stream_->pieces->size() && stream_->skipped[next_piece_]) {
    ++next_piece_;
  }
}

void Lease::give_back_oldest() {
  LIB_CHECK(stream_->released < next_piece_);
  map_->impl_->release(*stream_);
}

Result<ArrivedPiece> Lease::take_next() {
  const Piece& piece = (*stream_->pieces)[next_piece_];
  const WeightTensor& tensor = stream_->plan->tensors[piece.tensor];
  Stream::Slot& slot = stream_->slots[next_piece_];
  const std::span<const std::byte> bytes = slot.memory;
  if (piece.bytes.begin == tensor.bytes.begin) {
    hash_ = StreamingXxh3();
  }
  std::sort(slot.crcs.begin(), slot.crcs.end(),
            [](const auto& a, const auto& b) { return a.range.begin < b.range.begin; });
  const std::optional<std::uint32_t> on_arrival = remote::crc_of(slot.crcs, piece.bytes);
  std::uint32_t crc = 0;
  for (std::size_t at = 0; at < bytes.size(); at += kHashBlockBytes) {
    const auto block = bytes.subspan(at, std::min(kHashBlockBytes, bytes.size() - at));
    if (on_arrival) {
      crc = crc32c(block, crc);
    }
    hash_.update(block);
  }
  if (on_arrival && *on_arrival != crc) {
    return map_->impl_->changed_in_memory(*stream_, piece);
  }
  if (piece.bytes.end == tensor.bytes.end) {
    digests_.push_back({tensor.name, hash_.digest()});
  }
  ++next_piece_;
  pass_over_skipped();
  return ArrivedPiece{&tensor, piece.bytes.begin - tensor.bytes.begin, bytes};
}

VirtualWeightMap::VirtualWeightMap(WeightSource& source, Clock& clock, const Checkpoint& checkpoint,
                                   WeightMapOptions options)
    : impl_(std::make_unique<Impl>(source, clock, checkpoint, std::move(options))) {}

VirtualWeightMap::~VirtualWeightMap() = default;

void VirtualWeightMap::prefetch(std::int32_t layer, std::uint32_t readings) {
  impl_->queue(layer, readings);
}

Lease VirtualWeightMap::acquire(std::int32_t layer, std::uint32_t readings) {
  return {*this, impl_->take(layer, readings)};
}

WeightMapStatistics VirtualWeightMap::statistics() const { return impl_->statistics(); }

}  // namespace librarian::weightmap
