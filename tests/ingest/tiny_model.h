#pragma once
/// A checkpoint small enough to run hundreds of times, and a transport that serves it from memory.

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "weightmap/remote/transport.h"

namespace librarian::ingest::testing {

struct TinyModelOptions {
  int layers = 6;
  int hidden = 16;
  int width = 24;
  int vocab = 32;
  unsigned seed = 1;
};

/// Llama layout, bf16, two weight files and an index: file name -> contents.
std::map<std::string, std::string> tiny_model(const TinyModelOptions& options = {});

/// A token file (safetensors) of random samples with these lengths.
/// @param loss_mask  [tokens], or empty: the file has none.
std::string token_file(const std::vector<std::int64_t>& lengths, int vocab, unsigned seed,
                       const std::vector<std::uint8_t>& loss_mask = {});

/// One request as it was served.
struct ServedRange {
  std::string name;
  weightmap::remote::ByteRange range;
};

/// Serves `files` below "/model/" at once. Thread-safe.
class MapTransport final : public weightmap::remote::Transport {
 public:
  /// @param tag  Part of every validator: other content under one name must have another tag.
  MapTransport(const std::map<std::string, std::string>& files, std::string tag = "1",
               bool strong = true)
      : files_(files), tag_(std::move(tag)), strong_(strong) {}

  void start(weightmap::remote::TransferRequest request,
             std::function<void(weightmap::remote::TransferResult)> done) override;
  std::vector<ServedRange> served() const;
  /// From now on every file's SHA-256 is stated, as it is without flipped bits.
  void offer_sha256() { offers_sha256_ = true; }
  /// The lowest bit of this byte arrives flipped, the next `times` times.
  void flip(const std::string& name, std::uint64_t offset, int times);
  /// Requests for files fail once this many bytes have been served; they may succeed later.
  void fail_after(std::uint64_t bytes);

  /// The answer to a request, pieces filled; for transports that only add delays.
  weightmap::remote::TransferResult answer(const weightmap::remote::TransferRequest& request);

 private:
  const std::map<std::string, std::string>& files_;
  const std::string tag_;
  const bool strong_;
  mutable std::mutex mutex_;
  std::vector<ServedRange> served_;
  std::atomic<bool> offers_sha256_{false};
  std::string flipped_name_;
  std::uint64_t flipped_offset_ = 0;
  int flips_left_ = 0;
  std::uint64_t bytes_left_ = ~std::uint64_t{0};
};

/// The directory that MapTransport serves.
inline constexpr const char* kModelUri = "https://models.test/model/";

}  // namespace librarian::ingest::testing
