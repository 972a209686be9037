#pragma once
/// A directory of whole remote objects on a local disk, shared by processes: what is there, who
/// uses it, and what goes when room is needed. Knows neither tensors nor layers.
///
/// Each object has a key and up to three files: `<key>.weights` (its bytes, of full size from the
/// start), `<key>.journal` (which segments are there, and whether all are: its presence alone means
/// nothing) and `<key>.lock` (flock: exclusive while the object is being staged or deleted, shared
/// while it is used; its modification time says when that was last). `lock` guards the directory's
/// contents. Only such names are counted, read and removed. flock must mean something there: a
/// local disk.

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/file_system.h"
#include "weightmap/remote/transport.h"

namespace librarian::weightmap::remote {

/// Pieces that an object is staged in; also the unit of its journal.
inline constexpr std::uint64_t kSegmentBytes = 8U << 20U;

/// Under which an object is kept: `sha256-<64 hex>` if its origin states one, else
/// `stream-<32 hex>` of URI, validator and size. An object without validator gets a key that no
/// other call gives: nobody can tell later whether its bytes are still those.
std::string staging_key(const Uri& uri, const ObjectInfo& info);

/// The most that an object of `bytes` takes on disk, with its journal.
std::uint64_t staging_footprint_bytes(std::uint64_t bytes,
                                      std::uint64_t segment_bytes = kSegmentBytes);

/// What a journal says of its object.
struct StagingJournal {
  std::vector<std::optional<std::uint32_t>> segment_crcs;  ///< CRC32C of those that are durable.
  std::string sha256;  ///< Of all bytes, once they are all there; empty before.
};
/// @return nothing if the journal says nothing usable about an object of this size: not there,
///         damaged, of other segments. @error io
Result<std::optional<StagingJournal>> read_staging_journal(FileSystem& files,
                                                           const std::string& path,
                                                           std::uint64_t object_bytes,
                                                           std::uint64_t segment_bytes);
std::string staging_header_record(std::uint64_t object_bytes, std::uint64_t segment_bytes);
std::string staging_segments_record(
    const std::vector<std::pair<std::uint64_t, std::uint32_t>>& segments);
std::string staging_complete_record(const std::string& sha256);

/// The lock on one object. It ends with this; not thread-safe.
class StagingHold {
 public:
  const std::string& key() const { return key_; }
  std::uint64_t bytes() const { return bytes_; }
  const std::string& data_path() const { return data_path_; }
  const std::string& journal_path() const { return journal_path_; }

 private:
  friend class StagingDirectory;
  StagingHold(std::string key, std::uint64_t bytes, const std::string& directory,
              std::unique_ptr<File> lock);

  std::string key_;
  std::uint64_t bytes_;
  std::string data_path_;
  std::string journal_path_;
  std::unique_ptr<File> lock_;
};

/// Thread-safe; any number of processes may have one on the same path.
class StagingDirectory {
 public:
  struct Options {
    std::string path;               ///< Made if it is missing, for this user alone.
    std::uint64_t limit_bytes = 0;  ///< Of all objects there together, whoever staged them.
    std::uint64_t segment_bytes = kSegmentBytes;  ///< Equal for all users of the directory.
  };
  /// @error io | no_space
  static Result<std::unique_ptr<StagingDirectory>> open(FileSystem& files, Clock& clock,
                                                        Options options);

  enum class State : std::uint8_t {
    complete,  ///< All there; held shared.
    staging,   ///< To be brought, wholly or in part; its room is taken; held exclusively.
    busy,      ///< Another holder is staging it.
    no_room,   ///< It does not fit beside what is in use and what is kept.
  };
  struct Taken {
    State state{};
    std::optional<StagingHold> hold;  ///< With `complete` and `staging`.
  };
  /// Takes an object. For room, objects that nobody uses go, least recently used first.
  /// @param keep  Keys that must not go for it.
  /// @error io | no_space (the disk itself is full) | cancelled
  Result<Taken> take(const std::string& key, std::uint64_t bytes, const std::set<std::string>& keep,
                     const std::stop_token& stop);
  /// An object that was being staged is complete: from now on it is held shared.
  Result<void> completed(StagingHold& hold, const std::stop_token& stop);
  /// Ends the hold and deletes the object, unless others hold it too.
  /// @return whether it is gone.
  Result<bool> remove(StagingHold hold, const std::stop_token& stop);
  /// Deletes an object that nobody holds. @return whether something went.
  Result<bool> remove_idle(const std::string& key, const std::stop_token& stop);
  /// Deletes everything that nobody holds, and the directory if nothing is left in it.
  Result<void> clear(const std::stop_token& stop);

  /// Sizes of all files of ours there.
  Result<std::uint64_t> used_bytes() const;
  /// How far another holder's staging of an object has come: changes with every sync.
  std::uint64_t progress_bytes(const std::string& key) const;

  const Options& options() const { return options_; }

 private:
  struct Object {
    std::string key;
    std::uint64_t bytes;
    std::int64_t used_ns;  ///< When it was last used.
  };

  StagingDirectory(FileSystem& files, Clock& clock, Options options);
  Result<std::unique_ptr<File>> lock_directory(const std::stop_token& stop) const;
  Result<std::vector<Object>> objects() const;
  Result<bool> make_room(const std::string& key, std::uint64_t bytes,
                         const std::set<std::string>& keep);
  Result<void> take_room(const std::string& key, std::uint64_t bytes);
  Result<bool> is_complete(const std::string& key, std::uint64_t bytes) const;
  Result<bool> remove_unheld(const std::string& key);
  Result<void> remove_files(const std::string& key);
  Result<void> remove_temporaries_of(const std::string& key);
  std::string path_of(const std::string& key, const char* ending) const;
  std::uint64_t footprint(std::uint64_t bytes) const {
    return staging_footprint_bytes(bytes, options_.segment_bytes);
  }

  FileSystem& files_;
  Clock& clock_;
  const Options options_;
};

}  // namespace librarian::weightmap::remote
