#pragma once
/// Where the bytes of weight files come from: straight from their origin, or from files that were
/// staged on a local disk before.

#include <atomic>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "base/error.h"
#include "weightmap/checkpoint.h"
#include "weightmap/remote/fetcher.h"

namespace librarian::weightmap {

/// What was done to make sure that weights are the origin's, weakest first.
enum class Verification : std::uint8_t {
  none,    ///< Local files, read as they are.
  stream,  ///< Ranges whose answers were checked.
  sha256,  ///< Every byte of the file was hashed, and the origin states the same SHA-256.
};
/// "none", "stream" or "sha256", as the store says it.
const char* verification_name(Verification verification);

/// Pieces of one weight file, for one request.
struct WeightRequest {
  std::uint32_t file = 0;  ///< Index into Checkpoint::files.
  std::vector<remote::FetchPiece> pieces;
  std::uint64_t layer_number = 0;  ///< Counts announcements: which of them this is for.
};

/// Thread-safe. Must outlive the VirtualWeightMap that reads from it.
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  /// A layer will be asked for behind those announced before, `readings` times; its files may come
  /// meanwhile.
  virtual void announce(std::int32_t layer, std::uint32_t readings) = 0;
  /// Brings pieces to their places, as Fetcher::submit(); of staged files there are no CRCs, as of
  /// other local ones. Layers are asked for in the order they were announced, each reading for
  /// exactly the bytes of its plan, less what is passed over.
  virtual void submit(WeightRequest request, remote::Fetcher::Done done) = 0;
  /// So many bytes of the layer that is being asked for are not needed after all.
  virtual void pass_over(std::uint64_t bytes) = 0;
  /// Sizes of requests that suit where the file's bytes come from, as far as that is known by now.
  virtual remote::RequestSizes sizes(std::uint32_t file) const = 0;
  /// Ends everything that was submitted so far with `cancelled`.
  virtual void cancel_all() = 0;
  /// Nothing of the layer's weights will be read again for the announcement that is oldest: what it
  /// left is durable. In the order of announce(). May wait for other processes' use of a shared
  /// directory; `stop` ends that, and leaves the layer's files to a later clean-up.
  virtual void layer_is_durable(std::int32_t layer, const std::stop_token& stop) = 0;
  /// Whether another pass over the layers may follow those that are announced.
  virtual void expect_another_pass(bool expected) = 0;

  /// How the layer came, for its oldest announcement that is not durable; once all of it has.
  virtual Verification verification(std::int32_t layer) const = 0;
  /// Bytes that had to be fetched so far: ranges, or what whole files lacked.
  virtual std::uint64_t needed_bytes() const = 0;
};

/// Ranges straight from the origin; nothing is kept.
class DirectSource final : public WeightSource {
 public:
  /// Both must outlive it.
  DirectSource(remote::Fetcher& fetcher, const Checkpoint& checkpoint)
      : fetcher_(fetcher), checkpoint_(checkpoint) {}

  void announce(std::int32_t layer, std::uint32_t readings) override {
    needed_bytes_ += readings * checkpoint_.layer(layer).bytes;
  }
  void submit(WeightRequest request, remote::Fetcher::Done done) override {
    fetcher_.submit(
        {checkpoint_.files()[request.file].object, std::move(request.pieces), request.layer_number},
        std::move(done));
  }
  void pass_over(std::uint64_t bytes) override { needed_bytes_ -= bytes; }
  remote::RequestSizes sizes(std::uint32_t file) const override {
    return fetcher_.sizes(checkpoint_.files()[file].object);
  }
  void cancel_all() override { fetcher_.cancel_all(); }
  void layer_is_durable(std::int32_t /*layer*/, const std::stop_token& /*stop*/) override {}
  void expect_another_pass(bool /*expected*/) override {}
  Verification verification(std::int32_t /*layer*/) const override {
    return checkpoint_.directory().scheme == "file" ? Verification::none : Verification::stream;
  }
  std::uint64_t needed_bytes() const override { return needed_bytes_; }

 private:
  remote::Fetcher& fetcher_;
  const Checkpoint& checkpoint_;
  std::atomic<std::uint64_t> needed_bytes_{0};
};

}  // namespace librarian::weightmap
