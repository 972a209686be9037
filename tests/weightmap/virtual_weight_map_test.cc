// Goal: whatever the ring's size, the requests' size and the layout of the files, a lease hands out
// exactly the bytes of the layer, and a failure or a stop reaches who waits for them.
// Method: a small model served from memory; a transport that holds requests back until told.
#include "weightmap/virtual_weight_map.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>
#include <thread>

#include "tests/weightmap/checkpoint_files.h"

namespace librarian::weightmap {
namespace {

using ingest::testing::MapTransport;
using remote::TransferRequest;
using remote::TransferResult;
using testing::CheckpointFiles;

/// Serves from memory; while it holds, requests for weights wait until they are let go or stopped.
class HoldingTransport final : public remote::Transport {
 public:
  explicit HoldingTransport(const std::map<std::string, std::string>& files) : map_(files) {}

  void start(TransferRequest request, std::function<void(TransferResult)> done) override {
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      started_bytes_ += request.range.size();
      ++started_;
      if (holding_) {
        const std::stop_token stop = request.stop;
        held_.push_back(std::make_shared<Held>(std::move(request), std::move(done)));
        held_.back()->watch.emplace(stop, Cancel{held_.back().get()});
        return;
      }
    }
    done(failing_ ? failure() : map_.answer(request));
  }

  void hold() { holding_ = true; }
  void fail_from_now() { failing_ = true; }
  std::uint64_t started_bytes() const { return started_bytes_; }
  std::uint64_t started() const { return started_; }

 private:
  struct Held;
  struct Cancel {
    Held* held;
    void operator()() const { held->finish_cancelled(); }
  };
  struct Held {
    Held(TransferRequest r, std::function<void(TransferResult)> d)
        : request(std::move(r)), done(std::move(d)) {}
    void finish_cancelled() {
      TransferResult result;
      result.error = Error(ErrorCode::cancelled, "stopped");
      done(result);
    }
    TransferRequest request;
    std::function<void(TransferResult)> done;
    std::optional<std::stop_callback<Cancel>> watch;
  };
  static TransferResult failure() {
    TransferResult result;
    result.error = Error(ErrorCode::bad_input, "the origin says no");
    return result;
  }

  MapTransport map_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<Held>> held_;
  std::atomic<bool> holding_{false};
  std::atomic<bool> failing_{false};
  std::atomic<std::uint64_t> started_bytes_{0};
  std::atomic<std::uint64_t> started_{0};
};

std::string to_string(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

struct World {
  explicit World(std::map<std::string, std::string> from = CheckpointFiles::tiny().contents())
      : files(std::move(from)),
        transport(files),
        fetcher(transport, real_clock(), {}),
        checkpoint(
            Checkpoint::open(fetcher, *remote::parse_uri(ingest::testing::kModelUri), {}).value()) {
  }

  std::string bytes_of(const WeightTensor& tensor) const {
    return files.at(checkpoint.files()[tensor.file].name)
        .substr(tensor.bytes.begin, tensor.bytes.size());
  }

  std::map<std::string, std::string> files;
  HoldingTransport transport;
  remote::Fetcher fetcher;
  Checkpoint checkpoint;
  DirectSource source{fetcher, checkpoint};
};

/// Memory that changes: one bit of one byte of a file, once the request that brought it is done.
class ForgetfulSource final : public WeightSource {
 public:
  ForgetfulSource(WeightSource& inner, std::uint32_t file, std::uint64_t offset)
      : inner_(inner), file_(file), offset_(offset) {}

  void announce(std::int32_t layer, std::uint32_t readings) override {
    inner_.announce(layer, readings);
  }
  void pass_over(std::uint64_t bytes) override { inner_.pass_over(bytes); }
  void submit(WeightRequest request, remote::Fetcher::Done done) override {
    std::byte* byte = nullptr;
    for (const remote::FetchPiece& piece : request.pieces) {
      if (request.file == file_ && piece.range.begin <= offset_ && offset_ < piece.range.end) {
        byte = piece.destination + (offset_ - piece.range.begin);
      }
    }
    inner_.submit(std::move(request), [done = std::move(done), byte](Result<remote::CrcRuns> crcs) {
      if (byte != nullptr) {
        *byte ^= std::byte{0x10};
      }
      done(std::move(crcs));
    });
  }
  remote::RequestSizes sizes(std::uint32_t file) const override { return inner_.sizes(file); }
  void cancel_all() override { inner_.cancel_all(); }
  void layer_is_durable(std::int32_t layer, const std::stop_token& stop) override {
    inner_.layer_is_durable(layer, stop);
  }
  void expect_another_pass(bool expected) override { inner_.expect_another_pass(expected); }
  Verification verification(std::int32_t layer) const override {
    return inner_.verification(layer);
  }
  std::uint64_t needed_bytes() const override { return inner_.needed_bytes(); }

 private:
  WeightSource& inner_;
  const std::uint32_t file_;
  const std::uint64_t offset_;
};

/// Reads a whole layer and compares it with the files, digests included.
void expect_layer(const World& world, Lease& lease, std::int32_t layer) {
  const std::vector<WeightTensor>& tensors = world.checkpoint.layer(layer).tensors;
  std::map<std::string, std::string> got;
  while (true) {
    auto piece = lease.next({});
    ASSERT_TRUE(piece) << piece.error().message();
    if (!*piece) {
      break;
    }
    std::string& bytes = got[(*piece)->tensor->name];
    ASSERT_EQ(bytes.size(), (*piece)->offset) << "pieces come in order, without gaps";
    bytes += to_string((*piece)->bytes);
    lease.give_back_oldest();
  }
  ASSERT_EQ(got.size(), tensors.size());
  const std::vector<TensorDigest> digests = lease.take_digests();
  ASSERT_EQ(digests.size(), tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    ASSERT_TRUE(got[tensors[i].name] == world.bytes_of(tensors[i])) << tensors[i].name;
    EXPECT_EQ(digests[i].name, tensors[i].name);
    EXPECT_EQ(digests[i].xxh3, xxh3_128(world.bytes_of(tensors[i]))) << tensors[i].name;
  }
}

void expect_layer(const World& world, VirtualWeightMap& map, std::int32_t layer) {
  Lease lease = map.acquire(layer);
  expect_layer(world, lease, layer);
}

TEST(RequestPlan, CutsTheTableIntoRowsAndNothingElse) {
  const World world;
  for (const std::uint64_t piece_bytes : {1U, 31U, 32U, 33U, 100U, 1024U, 100000U}) {
    const LayerPlan& table = world.checkpoint.layer(kEmbeddingLayer);
    std::uint64_t at = table.tensors[0].bytes.begin;
    for (const Piece& piece : plan_pieces(table, piece_bytes)) {
      EXPECT_EQ(piece.bytes.begin, at);
      EXPECT_EQ(piece.bytes.size() % 32, 0U) << "whole rows of 16 bf16";
      EXPECT_LE(piece.bytes.size(), std::max<std::uint64_t>(piece_bytes, 32));
      at = piece.bytes.end;
    }
    EXPECT_EQ(at, table.tensors[0].bytes.end);
    const LayerPlan& layer = world.checkpoint.layer(2);
    const std::vector<Piece> pieces = plan_pieces(layer, piece_bytes);
    ASSERT_EQ(pieces.size(), layer.tensors.size());
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      EXPECT_EQ(pieces[i].tensor, i);
      EXPECT_EQ(pieces[i].bytes, layer.tensors[i].bytes);
    }
    EXPECT_EQ(
        largest_piece_bytes(world.checkpoint, piece_bytes),
        std::max<std::uint64_t>(
            24 * 16 * 2, std::min<std::uint64_t>(std::max(piece_bytes / 32, 1UL) * 32, 1024)));
  }
}

// Catches: wrong destinations when requests are cut, merged over holes or split over slots; slots
// given back too early; a ring that overlaps itself or gets stuck.
TEST(VirtualWeightMap, BringsEveryByteForEveryRingAndRequestSize) {
  World world;
  const std::uint64_t smallest = largest_piece_bytes(world.checkpoint, 96);
  std::vector<std::uint64_t> rings;
  for (std::uint64_t ring = smallest; ring <= 4 * smallest; ring += 64) {
    rings.push_back(ring);
  }
  rings.push_back(1U << 20U);
  for (const std::uint64_t ring : rings) {
    for (const RequestLimits requests :
         {RequestLimits{}, RequestLimits{0, 1, 8}, RequestLimits{0, 100, 8},
          RequestLimits{40, 777, 8}, RequestLimits{1U << 20U, 1U << 30U, 8}}) {
      if (requests.request_bytes_max == 1 && ring % 512 != 0) {
        continue;  // A request a byte is slow; a few rings will do.
      }
      SCOPED_TRACE("ring " + std::to_string(ring) + " request " +
                   std::to_string(requests.request_bytes_max));
      const std::int32_t last = requests.request_bytes_max == 1 ? 0 : 6;
      VirtualWeightMap map(world.source, real_clock(), world.checkpoint, {ring, 96, requests});
      map.prefetch(kEmbeddingLayer);
      for (std::int32_t layer = kEmbeddingLayer; layer <= last; ++layer) {
        if (layer < last) {
          map.prefetch(layer + 1);
        }
        ASSERT_NO_FATAL_FAILURE(expect_layer(world, map, layer));
      }
    }
  }
}

// Goal: a layer is read as often as was said, before the next one, and every reading is whole.
TEST(VirtualWeightMap, ReadsALayerAsOftenAsItIsAskedTo) {
  World world;
  for (const std::uint64_t ring : {1024U, 3000U, 1U << 20U}) {
    VirtualWeightMap map(world.source, real_clock(), world.checkpoint, {ring, 96, {}});
    const std::uint64_t needed = world.source.needed_bytes();
    map.prefetch(0, 3);
    map.prefetch(1);
    for (const std::int32_t layer : {0, 0, 0, 1, 2, 2}) {
      Lease lease = map.acquire(layer, 2);
      EXPECT_EQ(lease.upcoming(), &world.checkpoint.layer(layer).tensors[0]);
      lease.skip([](const WeightTensor& /*tensor*/) { return false; });
      ASSERT_NO_FATAL_FAILURE(expect_layer(world, lease, layer));
      EXPECT_EQ(lease.upcoming(), nullptr);
    }
    const std::uint64_t asked = 3 * world.checkpoint.layer(0).bytes +
                                world.checkpoint.layer(1).bytes +
                                2 * world.checkpoint.layer(2).bytes;
    EXPECT_EQ(map.statistics().needed_bytes, asked);
    EXPECT_EQ(world.source.needed_bytes() - needed, asked);
  }
}

// Goal: what turns out not to be needed is not fetched, if nothing of it was asked for; the rest
// comes whole, and the ring's slots are given back in order all the same.
// Method: a ring of a few tensors, so that most of the layer is not asked for yet; every second
// tensor is skipped after some were taken, or the last ones, or all that are left.
TEST(VirtualWeightMap, PassesOverWhatIsNotNeeded) {
  World world;
  const std::int32_t layer = 2;
  const std::vector<WeightTensor>& tensors = world.checkpoint.layer(layer).tensors;
  const std::uint64_t ring = 2 * largest_piece_bytes(world.checkpoint, 96);
  const std::vector<std::function<bool(std::size_t)>> choices = {
      [](std::size_t i) { return i % 2 == 1; }, [](std::size_t i) { return i % 2 == 0; },
      [&](std::size_t i) { return i + 2 >= tensors.size(); }, [](std::size_t) { return true; }};
  for (const auto& is_unneeded : choices) {
    for (const std::size_t taken : {std::size_t{0}, std::size_t{1}, std::size_t{3}}) {
      VirtualWeightMap map(world.source, real_clock(), world.checkpoint,
                           {ring, 96, RequestLimits{0, 1U << 20U, 8}});
      const std::uint64_t before = world.transport.started_bytes();
      const std::uint64_t needed = world.source.needed_bytes();
      std::set<std::string> came;
      const auto take = [&](Lease& lease) {
        const WeightTensor* const upcoming = lease.upcoming();
        auto piece = lease.next({});
        ASSERT_TRUE(piece && *piece);
        EXPECT_EQ((*piece)->tensor, upcoming);
        EXPECT_EQ(to_string((*piece)->bytes), world.bytes_of(*upcoming));
        came.insert(upcoming->name);
        lease.give_back_oldest();
      };
      {
        Lease lease = map.acquire(layer);
        for (std::size_t i = 0; i < taken; ++i) {
          ASSERT_NO_FATAL_FAILURE(take(lease));
        }
        lease.skip([&](const WeightTensor& tensor) {
          return is_unneeded(static_cast<std::size_t>(&tensor - tensors.data()));
        });
        lease.skip([](const WeightTensor& /*tensor*/) { return false; });  // Takes nothing back.
        while (!lease.complete()) {
          ASSERT_NO_FATAL_FAILURE(take(lease));
        }
        EXPECT_FALSE(*lease.next({}));
        EXPECT_EQ(lease.take_digests().size(), came.size());
      }
      std::uint64_t bytes = 0;
      for (std::size_t i = 0; i < tensors.size(); ++i) {
        const bool did = came.contains(tensors[i].name);
        EXPECT_TRUE(did || is_unneeded(i)) << tensors[i].name;
        bytes += did ? tensors[i].bytes.size() : 0;
      }
      EXPECT_LT(came.size(), tensors.size());
      EXPECT_EQ(world.transport.started_bytes() - before, bytes);
      // The next layer finds its place; by then everything was counted.
      ASSERT_NO_FATAL_FAILURE(expect_layer(world, map, layer + 1));
      bytes += world.checkpoint.layer(layer + 1).bytes;
      EXPECT_EQ(map.statistics().needed_bytes, bytes);
      EXPECT_EQ(world.source.needed_bytes() - needed, bytes);
    }
  }
}

// Goal: prefetch is limited in bytes: with the ring full, nothing more is asked of the origin.
TEST(VirtualWeightMap, NeverAsksForMoreThanTheRingHolds) {
  World world;
  for (const std::uint64_t ring : {1024U, 1536U, 3000U, 6000U}) {
    VirtualWeightMap map(world.source, real_clock(), world.checkpoint,
                         {ring, 96, RequestLimits{0, 1U << 20U, 8}});
    const std::uint64_t before = world.transport.started_bytes();
    std::uint64_t used = 0;
    for (std::int32_t layer = 0; layer < 6; ++layer) {
      map.prefetch(layer);
    }
    for (std::int32_t layer = 0; layer < 6; ++layer) {
      Lease lease = map.acquire(layer);
      while (true) {
        auto piece = lease.next({});
        ASSERT_TRUE(piece);
        // What was given back may be asked for again; the piece in hand was not.
        EXPECT_LE(world.transport.started_bytes() - before, used + ring + 64);
        if (!*piece) {
          break;
        }
        used += (*piece)->bytes.size();
        lease.give_back_oldest();
      }
    }
  }
}

TEST(VirtualWeightMap, SaysWhatItNeededAndMakesFewRequests) {
  World world;
  const std::uint64_t opened = world.transport.started();
  VirtualWeightMap map(world.source, real_clock(), world.checkpoint, {1U << 20U, 1U << 20U, {}});
  expect_layer(world, map, 1);
  EXPECT_EQ(world.transport.started() - opened, 1U) << "a layer that lies together is one request";
  EXPECT_EQ(map.statistics().needed_bytes, world.checkpoint.layer(1).bytes);
}

// Catches: a failure that is swallowed, or a wait that never ends because of it.
TEST(VirtualWeightMap, PassesAFailureOnToWhoWaits) {
  World world;
  VirtualWeightMap map(world.source, real_clock(), world.checkpoint, {4096, 96, {}});
  ASSERT_NO_FATAL_FAILURE(expect_layer(world, map, kEmbeddingLayer));
  world.transport.fail_from_now();
  map.prefetch(0);
  map.prefetch(1);
  Lease lease = map.acquire(0);
  const auto piece = lease.next({});
  ASSERT_FALSE(piece);
  EXPECT_EQ(piece.error().code(), ErrorCode::bad_input);
  EXPECT_NE(piece.error().message().find("the origin says no"), std::string::npos);
  EXPECT_FALSE(lease.next({})) << "and it stays failed";
}

// Goal: bytes that changed in memory after they arrived are never handed out, however they came.
// Method: a bit flips in the first, a middle or the last byte of each tensor, whose bytes come in
// one request with others or in many; the pieces before it are still good.
TEST(VirtualWeightMap, RefusesBytesThatChangedInMemory) {
  World world;
  const std::vector<WeightTensor>& tensors = world.checkpoint.layer(0).tensors;
  ASSERT_GT(tensors.size(), 3U);
  for (const std::uint64_t request_bytes : {1UL << 20U, 100UL}) {
    for (std::size_t victim = 0; victim < tensors.size(); ++victim) {
      const remote::ByteRange& bytes = tensors[victim].bytes;
      for (const std::uint64_t offset :
           {bytes.begin, bytes.begin + bytes.size() / 2, bytes.end - 1}) {
        SCOPED_TRACE(tensors[victim].name + " " + std::to_string(request_bytes));
        ForgetfulSource source(world.source, tensors[victim].file, offset);
        VirtualWeightMap map(source, real_clock(), world.checkpoint,
                             {1U << 20U, 96, RequestLimits{0, request_bytes, 8}});
        Lease lease = map.acquire(0);
        for (std::size_t i = 0; i < victim; ++i) {
          const auto piece = lease.next({});
          ASSERT_TRUE(piece) << piece.error().message();
          EXPECT_EQ((*piece)->tensor->name, tensors[i].name);
        }
        const auto piece = lease.next({});
        ASSERT_FALSE(piece);
        EXPECT_EQ(piece.error().code(), ErrorCode::corrupt);
        EXPECT_EQ(piece.error().message().find(tensors[victim].name + ": bytes ["), 0U)
            << piece.error().message();
        EXPECT_NE(piece.error().message().find("changed in this machine's memory"),
                  std::string::npos);
        EXPECT_FALSE(lease.next_if_there()) << "and it stays refused";
      }
    }
  }
}

TEST(VirtualWeightMap, EndsAWaitWhenAStopIsRequested) {
  World world;
  world.transport.hold();
  VirtualWeightMap map(world.source, real_clock(), world.checkpoint, {4096, 96, {}});
  std::stop_source stop;
  Lease lease = map.acquire(0);
  std::jthread stopper([&] { stop.request_stop(); });
  const auto piece = lease.next(stop.get_token());
  ASSERT_FALSE(piece);
  EXPECT_EQ(piece.error().code(), ErrorCode::cancelled);
}

// Catches: a destructor that waits for ever, or frees the ring under a request: the thread that
// fills the ring may submit one more request while the lease cancels those before. Which comes
// first is the scheduler's choice, so it is tried often.
TEST(VirtualWeightMap, EndsWithRequestsHeldLeasesOpenAndLayersQueued) {
  for (int round = 0; round < 25; ++round) {
    for (const bool hold : {true, false}) {
      for (const std::int32_t read : {0, 1, 5}) {
        World world;
        VirtualWeightMap map(world.source, real_clock(), world.checkpoint, {1024, 96, {}});
        map.prefetch(0);
        map.prefetch(1);
        Lease lease = map.acquire(0);
        for (std::int32_t i = 0; i < read; ++i) {
          if (i > 0) {
            lease.give_back_oldest();
          }
          ASSERT_TRUE(lease.next({}));
        }
        if (hold) {
          world.transport.hold();
        }
      }
    }
  }
}

// Goal: a lease that ends early gives everything back, also what it never looked at.
TEST(VirtualWeightMap, GoesOnAfterALeaseThatWasAbandoned) {
  for (const std::int32_t read : {0, 1, 4}) {
    World world;
    VirtualWeightMap map(world.source, real_clock(), world.checkpoint, {1024, 96, {}});
    {
      Lease lease = map.acquire(0);
      for (std::int32_t i = 0; i < read; ++i) {
        if (i > 0) {
          lease.give_back_oldest();
        }
        ASSERT_TRUE(lease.next({}));
      }
    }
    ASSERT_NO_FATAL_FAILURE(expect_layer(world, map, 1));
    ASSERT_NO_FATAL_FAILURE(expect_layer(world, map, 2));
  }
}

}  // namespace
}  // namespace librarian::weightmap
