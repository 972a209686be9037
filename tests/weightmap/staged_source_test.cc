// Goal: layers get exactly their bytes from whole files on disk; files come in the order of need,
// within the limit at every moment, and go when nothing needs them; what cannot be had or is wrong
// is said or read another way. Method: a tiny model with a file for each layer, served from memory;
// a staging directory in memory that is looked at whenever something is requested.
#include "weightmap/staged_source.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "tests/weightmap/checkpoint_files.h"
#include "tests/weightmap/staging_files.h"
#include "weightmap/virtual_weight_map.h"

namespace librarian::weightmap {
namespace {

using namespace std::chrono_literals;
using ingest::testing::MapTransport;
using librarian::testing::MemoryFileSystem;
using remote::StagingDirectory;
using remote::TransferRequest;
using remote::TransferResult;
using testing::open_staging;

constexpr std::int32_t kLastLayer = 5;
constexpr std::uint64_t kSegment = 1000;

/// The tiny model, its tensors sorted into a file per layer; the embedding is in "layer--1".
std::map<std::string, std::string> model_with_a_file_per_layer() {
  const testing::CheckpointFiles tiny = testing::CheckpointFiles::tiny();
  testing::CheckpointFiles sorted = tiny;
  sorted.files.clear();
  sorted.index.clear();
  for (const auto& [file, tensors] : tiny.files) {
    for (const testing::FileTensor& tensor : tensors) {
      const std::string prefix = "model.layers.";
      const std::string layer = tensor.name.starts_with(prefix)
                                    ? tensor.name.substr(prefix.size(), 1)
                                : tensor.name.starts_with("model.embed") ? "-1"
                                                                         : "6";
      const std::string name = "layer-" + layer + ".safetensors";
      sorted.files[name].push_back(tensor);
      sorted.index[tensor.name] = name;
    }
  }
  return sorted.contents();
}

const std::map<std::string, std::string>& model() {
  static const std::map<std::string, std::string> files = model_with_a_file_per_layer();
  return files;
}

/// Sizes of everything in the staging directory.
std::uint64_t staged_bytes(MemoryFileSystem& files) {
  std::uint64_t bytes = 0;
  for (const auto& [path, text] : files.snapshot()) {
    bytes += path.starts_with(testing::kStagingPath) ? text.size() : 0;
  }
  return bytes;
}

/// Serves the model and looks at the disk at each request.
class WatchingTransport final : public remote::Transport {
 public:
  WatchingTransport(MapTransport& inner, MemoryFileSystem& files) : inner_(inner), files_(files) {}
  void start(TransferRequest request, std::function<void(TransferResult)> done) override {
    const std::uint64_t now = staged_bytes(files_);
    std::uint64_t before = peak_bytes_;
    while (before < now && !peak_bytes_.compare_exchange_weak(before, now)) {
    }
    done(inner_.answer(request));
  }
  std::uint64_t peak_bytes() const { return peak_bytes_; }

 private:
  MapTransport& inner_;
  MemoryFileSystem& files_;
  std::atomic<std::uint64_t> peak_bytes_{0};
};

/// One process: its own fetcher, checkpoint and directory object, on shared files.
struct Process {
  Process(MemoryFileSystem& on, std::shared_ptr<MapTransport> from, std::uint64_t limit_bytes,
          StagedSourceOptions options = {})
      : files(on),
        origin(std::move(from)),
        transport(*origin, on),
        fetcher(transport, real_clock(), {}),
        checkpoint(
            Checkpoint::open(fetcher, *remote::parse_uri(ingest::testing::kModelUri), {}).value()),
        directory(open_staging(on, limit_bytes, kSegment)) {
    remote::FileStagingOptions staging;
    staging.segment_bytes = kSegment;
    staging.slabs = 3;
    options.last_layer = kLastLayer;
    options.poll = 1ms;
    source = std::make_unique<StagedSource>(fetcher, checkpoint, files, real_clock(), *directory,
                                            staging, options);
    map = std::make_unique<VirtualWeightMap>(*source, real_clock(), checkpoint,
                                             WeightMapOptions{1U << 16U, 96, {}});
  }

  /// Reads a layer and compares it. @return the first failure.
  /// @param skips  Every third tensor behind the first is not needed.
  Result<void> read(std::int32_t layer, bool skips = false) {
    Lease lease = map->acquire(layer);
    if (skips) {
      const std::vector<WeightTensor>& tensors = checkpoint.layer(layer).tensors;
      lease.skip([&](const WeightTensor& tensor) { return (&tensor - tensors.data()) % 3 == 2; });
    }
    while (true) {
      LIB_TRY(const auto piece, lease.next({}));
      if (!piece) {
        return {};
      }
      const WeightTensor& tensor = *piece->tensor;
      const std::string& file = model().at(checkpoint.files()[tensor.file].name);
      const std::string bytes(reinterpret_cast<const char*>(piece->bytes.data()),
                              piece->bytes.size());
      if (bytes != file.substr(tensor.bytes.begin + piece->offset, bytes.size())) {
        return Error(ErrorCode::internal, tensor.name + " has other bytes");
      }
      lease.give_back_oldest();
    }
  }
  /// @param readings  Of each layer; some tensors are skipped in the second.
  void pass(std::int32_t first = kEmbeddingLayer, std::uint32_t readings = 1) {
    map->prefetch(first, readings);
    for (std::int32_t layer = first; layer <= kLastLayer; ++layer) {
      if (layer < kLastLayer) {
        map->prefetch(layer + 1, readings);
      }
      for (std::uint32_t reading = 0; reading < readings; ++reading) {
        const auto result = read(layer, layer >= 0 && reading == 1);
        ASSERT_TRUE(result) << result.error().message();
      }
      verifications.push_back(source->verification(layer));
      source->layer_is_durable(layer, {});
    }
  }
  std::uint64_t file_bytes(std::int32_t layer) const {
    return model().at("layer-" + std::to_string(layer) + ".safetensors").size();
  }

  MemoryFileSystem& files;
  std::shared_ptr<MapTransport> origin;
  WatchingTransport transport;
  remote::Fetcher fetcher;
  Checkpoint checkpoint;
  std::unique_ptr<StagingDirectory> directory;
  std::unique_ptr<StagedSource> source;
  std::unique_ptr<VirtualWeightMap> map;
  std::vector<Verification> verifications;
};

/// Weights served, without the heads that opening reads.
std::uint64_t weights_served(const MapTransport& transport) {
  std::uint64_t bytes = 0;
  for (const auto& served : transport.served()) {
    // Opening asks for more than a segment, from the start.
    const bool head = served.range.begin == 0 && served.range.size() > kSegment;
    const bool weights = served.name.ends_with(".safetensors") && !head;
    bytes += weights ? served.range.size() : 0;
  }
  return bytes;
}

std::uint64_t footprint(std::uint64_t bytes) {
  return remote::staging_footprint_bytes(bytes, kSegment);
}

std::shared_ptr<MapTransport> origin(bool sha256) {
  auto transport = std::make_shared<MapTransport>(model());
  if (sha256) {
    transport->offer_sha256();
  }
  return transport;
}

TEST(StagedSource, ReadsEveryLayerOfWholeFilesAndKeepsNone) {
  for (const bool sha256 : {true, false}) {
    MemoryFileSystem files;
    Process process(files, origin(sha256), 1U << 20U);
    ASSERT_NO_FATAL_FAILURE(process.pass());
    std::uint64_t whole = 0;
    for (std::int32_t layer = kEmbeddingLayer; layer <= kLastLayer; ++layer) {
      whole += process.file_bytes(layer);
    }
    EXPECT_EQ(weights_served(*process.origin), whole);
    EXPECT_EQ(process.source->needed_bytes(), whole);
    EXPECT_EQ(process.verifications,
              std::vector<Verification>(7, sha256 ? Verification::sha256 : Verification::stream));
    EXPECT_EQ(process.directory->used_bytes().value(), 0U);
  }
}

// Catches: room counted too late, files that stay, a wait for room that never ends.
TEST(StagedSource, NeverTakesMoreThanTheLimitHoweverSmall) {
  for (const std::uint64_t layers : {2U, 3U, 5U}) {
    MemoryFileSystem files;
    const std::uint64_t largest = model().at("layer-0.safetensors").size();
    const std::uint64_t limit = layers * footprint(largest);
    Process process(files, origin(true), limit);
    process.source->expect_another_pass(true);
    ASSERT_NO_FATAL_FAILURE(process.pass());
    process.source->expect_another_pass(false);
    ASSERT_NO_FATAL_FAILURE(process.pass());
    EXPECT_LE(process.transport.peak_bytes(), limit);
    EXPECT_GT(process.transport.peak_bytes(), largest);
    EXPECT_EQ(process.directory->used_bytes().value(), 0U);
  }
}

// Catches: a file given up between two readings of its layer, so that it is fetched again; bytes
// that were not asked for taken for the next layer's, so that one waits for ever; and the same with
// hardly any room.
TEST(StagedSource, FetchesAFileOnceForAllReadingsOfItsLayer) {
  for (const std::uint64_t layers : {2U, 3U, 100U}) {
    MemoryFileSystem files;
    Process process(files, origin(true),
                    layers * footprint(model().at("layer-0.safetensors").size()));
    std::uint64_t whole = 0;
    for (std::int32_t layer = kEmbeddingLayer; layer <= kLastLayer; ++layer) {
      whole += process.file_bytes(layer);
    }
    ASSERT_NO_FATAL_FAILURE(process.pass(kEmbeddingLayer, 3));
    EXPECT_EQ(weights_served(*process.origin), whole);
    EXPECT_EQ(process.verifications, std::vector<Verification>(7, Verification::sha256));
    EXPECT_EQ(process.directory->used_bytes().value(), 0U);
    // What was skipped has not put the order of layers wrong.
    ASSERT_NO_FATAL_FAILURE(process.pass());
  }
}

TEST(StagedSource, KeepsFilesForTheNextPassAsFarAsThereIsRoom) {
  std::uint64_t whole = 0;
  for (const auto& [name, text] : model()) {
    whole += name.ends_with(".safetensors") && name != "layer-6.safetensors" ? text.size() : 0;
  }
  const std::uint64_t largest = model().at("layer-0.safetensors").size();
  for (const bool all : {true, false}) {
    MemoryFileSystem files;
    Process process(files, origin(true), all ? 1U << 20U : 4 * footprint(largest));
    process.source->expect_another_pass(true);
    ASSERT_NO_FATAL_FAILURE(process.pass());
    process.source->expect_another_pass(false);
    ASSERT_NO_FATAL_FAILURE(process.pass());
    const std::uint64_t served = weights_served(*process.origin);
    if (all) {
      EXPECT_EQ(served, whole);
    } else {
      // With the one needed last dropped first, some of seven files are still there.
      EXPECT_LE(served, 2 * whole - 2 * process.file_bytes(0));
    }
    EXPECT_EQ(process.directory->used_bytes().value(), 0U);
  }
}

TEST(StagedSource, FilesStayUntilTheirLayersAreDurable) {
  MemoryFileSystem files;
  Process process(files, origin(true), 1U << 20U);
  for (std::int32_t layer = kEmbeddingLayer; layer <= 2; ++layer) {
    ASSERT_TRUE(process.read(layer));
  }
  EXPECT_GE(process.directory->used_bytes().value(),
            process.file_bytes(-1) + 3 * process.file_bytes(0));
  const auto is_there = [&](std::int32_t layer) {
    const auto index = static_cast<std::size_t>(std::int64_t{layer} + 1);
    const auto info = process.checkpoint.files()[index].info;
    return files
        .info(std::string(testing::kStagingPath) + "/" + remote::staging_key({}, info) + ".weights")
        .has_value();
  };
  for (std::int32_t layer = kEmbeddingLayer; layer <= 1; ++layer) {
    EXPECT_TRUE(is_there(layer)) << layer;
    process.source->layer_is_durable(layer, {});
    EXPECT_FALSE(is_there(layer)) << layer;
  }
  EXPECT_TRUE(is_there(2));
}

// Goal: a stop ends the wait for a directory that another process holds and does not give back.
TEST(StagedSource, AStopEndsTheWaitForTheDirectory) {
  MemoryFileSystem files;
  Process process(files, origin(true), 1U << 20U);
  ASSERT_TRUE(process.read(kEmbeddingLayer));
  const auto held = files.open_append(std::string(testing::kStagingPath) + "/lock", true);
  ASSERT_TRUE(held);
  while (!(*held)->try_lock().value()) {
    std::this_thread::yield();  // The staging thread has it for moments.
  }
  std::stop_source stop;
  stop.request_stop();
  process.source->layer_is_durable(kEmbeddingLayer, stop.get_token());
  EXPECT_GE(process.directory->used_bytes().value(), process.file_bytes(kEmbeddingLayer));
}

TEST(StagedSource, ACacheGivesAnotherProcessWhatOneHasBrought) {
  MemoryFileSystem files;
  StagedSourceOptions keep;
  keep.keep = true;
  {
    Process first(files, origin(true), 1U << 20U, keep);
    ASSERT_NO_FATAL_FAILURE(first.pass());
    EXPECT_GT(first.directory->used_bytes().value(), 0U);
  }
  {
    Process second(files, origin(true), 1U << 20U, keep);
    ASSERT_NO_FATAL_FAILURE(second.pass());
    EXPECT_EQ(weights_served(*second.origin), 0U);
    EXPECT_EQ(second.verifications, std::vector<Verification>(7, Verification::sha256));
  }
  // Rot in the cache is noticed before a byte is used, and only that file comes again.
  const remote::ObjectInfo info{model().at("layer-3.safetensors").size(), "\"1\"", true,
                                sha256_hex(model().at("layer-3.safetensors"))};
  files.corrupt(
      std::string(testing::kStagingPath) + "/" + remote::staging_key({}, info) + ".weights", 1500,
      std::byte{8});
  Process third(files, origin(true), 1U << 20U, keep);
  ASSERT_NO_FATAL_FAILURE(third.pass());
  EXPECT_EQ(weights_served(*third.origin), info.size);
}

TEST(StagedSource, TwoProcessesAtOnceDownloadEachFileOnce) {
  for (int round = 0; round < 5; ++round) {
    MemoryFileSystem files;
    StagedSourceOptions keep;
    keep.keep = true;
    const auto shared = origin(true);
    Process one(files, shared, 1U << 20U, keep);
    Process two(files, shared, 1U << 20U, keep);
    {
      const std::jthread other([&] { one.pass(); });
      two.pass();
    }
    std::uint64_t whole = 0;
    for (std::int32_t layer = kEmbeddingLayer; layer <= kLastLayer; ++layer) {
      whole += one.file_bytes(layer);
    }
    EXPECT_EQ(weights_served(*shared), whole);
    EXPECT_EQ(one.verifications, std::vector<Verification>(7, Verification::sha256));
    EXPECT_EQ(two.verifications, one.verifications);
  }
}

// Goal: somebody who sits on a file, or on all the room, does not hang a job.
TEST(StagedSource, WhatCannotBeHadIsReadByRangesAndCalledStream) {
  for (const bool busy : {true, false}) {
    MemoryFileSystem files;
    const std::uint64_t largest = model().at("layer-0.safetensors").size();
    StagedSourceOptions impatient;
    impatient.patience = 20ms;
    Process process(files, origin(true), 3 * footprint(largest), impatient);
    const auto strangers = open_staging(files, 3 * footprint(largest), kSegment);
    const auto& file = process.checkpoint.files()[3];  // layer-2
    const std::string key =
        busy ? remote::staging_key({}, file.info) : "stream-" + std::string(32, 'a');
    const auto held = strangers->take(key, busy ? file.info.size : 2 * largest + 5000, {}, {});
    ASSERT_EQ(held->state, StagingDirectory::State::staging);
    ASSERT_NO_FATAL_FAILURE(process.pass());
    if (busy) {
      std::vector<Verification> expected(7, Verification::sha256);
      expected[3] = Verification::stream;
      EXPECT_EQ(process.verifications, expected);
    } else {
      EXPECT_EQ(std::count(process.verifications.begin(), process.verifications.end(),
                           Verification::stream) > 0,
                true);
    }
    EXPECT_TRUE(files.info(held->hold->data_path())) << "it is still theirs";
  }
}

TEST(StagedSource, ABitThatIsWrongTwiceEndsTheRunByName) {
  for (const int times : {1, 2}) {
    MemoryFileSystem files;
    const auto from = origin(true);
    Process process(files, from, 1U << 20U);
    from->flip("layer-1.safetensors", model().at("layer-1.safetensors").size() - 3, times);
    ASSERT_TRUE(process.read(kEmbeddingLayer));
    ASSERT_TRUE(process.read(0));
    const auto result = process.read(1);
    EXPECT_EQ(result.has_value(), times == 1);
    if (!result) {
      EXPECT_EQ(result.error().code(), ErrorCode::corrupt);
      const std::string& text = result.error().message();
      EXPECT_NE(text.find("layer-1.safetensors"), std::string::npos) << text;
      EXPECT_NE(text.find(sha256_hex(model().at("layer-1.safetensors"))), std::string::npos);
    }
  }
}

TEST(StagedSource, AHeaderThatIsNotTheOneOfThePlanIsCaught) {
  MemoryFileSystem files;
  Process process(files, origin(true), 1U << 20U);
  // As if the head had come damaged when the checkpoint was opened.
  Checkpoint other = process.checkpoint;
  const_cast<std::vector<WeightFile>&>(other.files())[2].header_sha256 = std::string(64, '0');
  remote::FileStagingOptions staging;
  staging.segment_bytes = kSegment;
  StagedSourceOptions options;
  options.last_layer = kLastLayer;
  StagedSource source(process.fetcher, other, files, real_clock(), *process.directory, staging,
                      options);
  VirtualWeightMap map(source, real_clock(), other, {1U << 16U, 96, {}});
  Lease lease = map.acquire(1);
  const auto piece = lease.next({});
  ASSERT_FALSE(piece);
  EXPECT_EQ(piece.error().code(), ErrorCode::corrupt);
  EXPECT_NE(piece.error().message().find("header"), std::string::npos);
}

// Catches: a destructor that waits for a file that never comes.
TEST(StagedSource, EndsWhileFilesAreOnTheirWay) {
  for (int round = 0; round < 20; ++round) {
    MemoryFileSystem files;
    Process process(files, origin(round % 2 == 0), 1U << 20U);
    process.map->prefetch(kEmbeddingLayer);
    process.map->prefetch(0);
    if (round % 3 == 0) {
      ASSERT_TRUE(process.read(kEmbeddingLayer));
    }
  }
}

}  // namespace
}  // namespace librarian::weightmap
