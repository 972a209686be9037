#pragma once
/// Where the bytes of weight files come from: straight from their origin, or from files that were
/// staged on a local disk before.

#include <cstdint>
#include <functional>
#include <vector>

#include "base/error.h"
#include "weightmap/checkpoint.h"
#include "weightmap/remote/fetcher.h"

namespace librarian::weightmap {

/// Thread-safe. Must outlive the VirtualWeightMap that reads from it.
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  /// A layer will be asked for behind those announced before; its files may come meanwhile.
  virtual void announce(std::int32_t layer) = 0;
  /// Brings pieces of weight file `file` (index into Checkpoint::files) to their places, as
  /// Fetcher::submit(). Only for files of announced layers.
  virtual void submit(std::uint32_t file, std::vector<remote::FetchPiece> pieces,
                      std::function<void(Result<void>)> done) = 0;
  /// Ends everything that was submitted so far with `cancelled`.
  virtual void cancel_all() = 0;
  /// Nothing of the layer's weights will be read again for the announcement that is oldest: what it
  /// left is durable. In the order of announce().
  virtual void layer_is_durable(std::int32_t layer) = 0;
};

/// Ranges straight from the origin; nothing is kept.
class DirectSource final : public WeightSource {
 public:
  /// Both must outlive it.
  DirectSource(remote::Fetcher& fetcher, const Checkpoint& checkpoint)
      : fetcher_(fetcher), checkpoint_(checkpoint) {}

  void announce(std::int32_t /*layer*/) override {}
  void submit(std::uint32_t file, std::vector<remote::FetchPiece> pieces,
              std::function<void(Result<void>)> done) override {
    fetcher_.submit({checkpoint_.files()[file].object, std::move(pieces)}, std::move(done));
  }
  void cancel_all() override { fetcher_.cancel_all(); }
  void layer_is_durable(std::int32_t /*layer*/) override {}

 private:
  remote::Fetcher& fetcher_;
  const Checkpoint& checkpoint_;
};

}  // namespace librarian::weightmap
