#pragma once
/// Brings one weight file at a time into a staging directory, and checks it before anybody reads
/// it.

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <stop_token>
#include <string>

#include "base/clock.h"
#include "base/error.h"
#include "base/file_system.h"
#include "weightmap/checkpoint.h"
#include "weightmap/remote/file_staging.h"
#include "weightmap/remote/staging_directory.h"

namespace librarian::weightmap {

/// Not thread-safe, except needed_bytes().
class ObjectStager {
 public:
  /// All must outlive it.
  ObjectStager(remote::Fetcher& fetcher, const Checkpoint& checkpoint, FileSystem& files,
               Clock& clock, remote::StagingDirectory& directory,
               const remote::FileStagingOptions& options)
      : checkpoint_(checkpoint),
        files_(files),
        directory_(directory),
        staging_(fetcher, files, clock, options) {}

  enum class Outcome : std::uint8_t { ready, busy, no_room };
  struct Brought {
    Outcome outcome{};
    std::optional<remote::StagingHold> hold;  ///< If it is ready, shared.
    std::unique_ptr<File> data;               ///< If it is ready, open for reading.
    std::uint64_t inode = 0;                  ///< Of the data.
  };
  /// Takes the file, fetches what is missing, and checks all of it: its hash against the one that
  /// the origin states, or, if it was there before, against the one in its journal; its header
  /// against the one that the checkpoint was planned with.
  /// @param checked_inode  Of the data that an earlier call has checked: not hashed again.
  /// @param keep           Keys that must not go to make room.
  /// @error corrupt  The origin's bytes are not what it states, twice; or the header is another.
  ///        unavailable | source_changed | bad_input | no_space | io | cancelled
  Result<Brought> bring(const WeightFile& file, const std::string& key,
                        std::optional<std::uint64_t> checked_inode,
                        const std::set<std::string>& keep, const std::stop_token& stop);

  std::uint64_t needed_bytes() const { return staging_.needed_bytes(); }

 private:
  Result<void> stage(const WeightFile& file, remote::StagingHold& hold,
                     const std::stop_token& stop);
  Result<void> check_header(const WeightFile& file, const File& data) const;
  std::string uri_of(const WeightFile& file) const {
    return checkpoint_.directory().child(file.name).display();
  }

  const Checkpoint& checkpoint_;
  FileSystem& files_;
  remote::StagingDirectory& directory_;
  remote::FileStaging staging_;
};

}  // namespace librarian::weightmap
