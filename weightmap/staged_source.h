#pragma once
/// Weights from whole files on a local disk: brought there in the order that layers need them, as
/// far ahead as the room allows, hashed, read from there, and given up when no layer needs them.

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "base/file_system.h"
#include "weightmap/checkpoint.h"
#include "weightmap/remote/file_staging.h"
#include "weightmap/remote/staging_directory.h"
#include "weightmap/weight_source.h"

namespace librarian::weightmap {

struct StagedSourceOptions {
  std::int32_t last_layer = 0;  ///< Of a pass.
  bool keep = false;            ///< Files stay in the directory when no layer needs them: a cache.
  /// A file that layers wait for and that cannot be had (no room, another process is at it and does
  /// not get on) is read by ranges after this time, once.
  Duration patience = std::chrono::seconds(60);
  Duration poll = std::chrono::milliseconds(50);  ///< How often to look at what others do.
  std::uint32_t readers = 4;                      ///< Threads that read staged files.
};

/// Files are deleted, unless `keep`, when the last layer that needs them is durable and no other
/// pass is expected. When room is needed, the file of ours goes that is needed last, and never one
/// that is needed before the one that wants the room.
///
/// A file is checked before a byte of it is used: its hash against the one that the origin states,
/// or, of a file that was there before, against the one noted when it was staged; its header
/// against the one that the checkpoint was planned with. What submit() reports, beside Fetcher's
/// errors: corrupt (the origin's file is not what it states, twice), no_space, io.
class StagedSource final : public WeightSource {
 public:
  /// All must outlive it.
  StagedSource(remote::Fetcher& fetcher, const Checkpoint& checkpoint, FileSystem& files,
               Clock& clock, remote::StagingDirectory& directory,
               const remote::FileStagingOptions& staging, const StagedSourceOptions& options);
  ~StagedSource() override;
  StagedSource(const StagedSource&) = delete;
  StagedSource& operator=(const StagedSource&) = delete;

  void announce(std::int32_t layer, std::uint32_t readings) override;
  void submit(WeightRequest request, remote::Fetcher::Done done) override;
  void pass_over(std::uint64_t bytes) override;
  remote::RequestSizes sizes(std::uint32_t file) const override;
  void cancel_all() override;
  void layer_is_durable(std::int32_t layer, const std::stop_token& stop) override;
  void expect_another_pass(bool expected) override;
  Verification verification(std::int32_t layer) const override;
  std::uint64_t needed_bytes() const override;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace librarian::weightmap
