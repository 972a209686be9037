#pragma once
/// The residual stream of a part between two layers: in memory, in a scratch file, or read back
/// from a capture that holds exactly it. Always lossless.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "activation_store/array_reader.h"
#include "base/error.h"
#include "base/file_system.h"
#include "base/json.h"

namespace librarian::ingest {

/// Raw rows in windows with a CRC32C each, so that no damaged state becomes wrong activations:
///   rows; one u32 CRC per window; footer {rows u64, row_bytes u64, window_rows u64, CRC u32 of
///   the CRCs and these three, magic u32}
class StateFileWriter {
 public:
  /// @param path  Must not exist.
  static Result<StateFileWriter> create(FileSystem& files, const std::string& path,
                                        std::uint64_t rows, std::uint64_t row_bytes,
                                        std::uint64_t window_rows);
  /// Rows at any place, each row once.
  Result<void> write_rows(std::uint64_t begin, std::span<const std::byte> bytes);
  /// Reads the rows back for their checksums unless all came in order, ends the file, syncs it.
  Result<void> finish();

  /// Size of such a file.
  static std::uint64_t file_bytes(std::uint64_t rows, std::uint64_t row_bytes,
                                  std::uint64_t window_rows);

 private:
  std::unique_ptr<File> file_;
  std::string path_;
  std::uint64_t rows_ = 0;
  std::uint64_t row_bytes_ = 0;
  std::uint64_t window_rows_ = 0;
  std::uint64_t next_row_ = 0;
  bool in_order_ = true;
  std::uint32_t window_crc_ = 0;
  std::vector<std::uint32_t> crcs_;
};

/// Reads rows and checks each window they touch. Keeps one window in memory; blocks that walk
/// forward read every byte once.
class StateFileReader {
 public:
  /// @error corrupt  the footer is damaged or says another shape; names the file.
  static Result<StateFileReader> open(FileSystem& files, const std::string& path,
                                      std::uint64_t rows, std::uint64_t row_bytes);
  /// @error corrupt  a window's checksum does not fit; names file and rows.
  Result<void> read_rows(std::uint64_t begin, std::span<std::byte> into);

 private:
  Result<void> load_window(std::uint64_t index);

  std::unique_ptr<File> file_;
  std::string path_;
  std::uint64_t rows_ = 0;
  std::uint64_t row_bytes_ = 0;
  std::uint64_t window_rows_ = 0;
  std::vector<std::uint32_t> crcs_;
  std::optional<std::uint64_t> loaded_;
  std::vector<std::byte> window_;
};

/// Where the state after a layer lies durably; what the journal keeps.
struct StatePlace {
  enum class Kind : std::uint8_t { none, file, array };
  Kind kind = Kind::none;
  std::string name;  ///< File name in the part's scratch directory, or array name.
  Json to_json() const;
  static Result<StatePlace> from_json(const Json& json);
};

struct ResidualStateOptions {
  std::uint64_t rows = 0;
  std::uint64_t row_bytes = 0;
  std::uint64_t window_rows = 1;  ///< Rows of a checksum window of state files.
  bool in_memory = true;
  std::string part_directory;
  std::string scratch_directory;  ///< Of this part; exists.
};

/// Not thread-safe. Per layer: begin_layer(), then for each block in order load() and store(), then
/// end_layer(), and after the journal knows it, drop_old_files().
class ResidualState {
 public:
  static Result<std::unique_ptr<ResidualState>> create(FileSystem& files,
                                                       const ResidualStateOptions& options,
                                                       std::uint64_t block_rows_max);
  /// Every byte that a state with these options allocates.
  static std::uint64_t memory_bytes(const ResidualStateOptions& options,
                                    std::uint64_t block_rows_max);

  /// Begins from what a finished layer left. @error corrupt | not_found | io
  Result<void> restore(const StatePlace& place);

  /// The embedding comes in table order, so its rows come in any order. An array that will hold
  /// it saves the state file only where the state is in memory.
  Result<void> begin_embedding(const std::string& covered_by_array);
  /// Writes one row of the embedding.
  Result<void> put_row(std::uint64_t row, std::span<const std::byte> bytes);

  /// @param covered_by_array  Array that will hold exactly the rows after this layer, so that a
  ///                          state on disk needs no file of its own; empty if there is none.
  /// @param needed            False after the last layer: nobody reads what it leaves.
  Result<void> begin_layer(std::int32_t layer, const std::string& covered_by_array, bool needed);
  /// Rows of a block, to be worked on in place. Also between end_layer() and the next begin.
  Result<std::span<std::byte>> load(std::uint64_t begin, std::uint64_t rows);
  /// What the block became; `rows` is the span that load() gave, changed in place, or a copy.
  Result<void> store(std::uint64_t begin, std::span<const std::byte> rows);
  /// Ends a layer (or the embedding). With `durable`, memory is written to a state file unless the
  /// covering array holds it.
  /// @return where the state is durably, once the arrays are published; none if only in memory.
  Result<StatePlace> end_layer(bool durable);
  /// Removes state files of layers before `layer`, and of `layer` too unless `place` names it.
  /// Reads nothing that the calls above change, so another thread may call it meanwhile.
  Result<void> drop_old_files(std::int32_t layer, const StatePlace& place) const;

  /// "state.0004", for the state after layer 3; the embedding's is "state.0000".
  static std::string file_name(std::int32_t layer);
  static bool is_file_name(const std::string& name);

 private:
  ResidualState(FileSystem& files, ResidualStateOptions options, std::uint64_t block_rows_max);
  Result<void> open_source();
  std::string file_path(const std::string& name) const;

  FileSystem& files_;
  ResidualStateOptions options_;
  std::vector<std::byte> memory_;  // All rows, or with a disk state those of one block.
  StatePlace source_;              // Disk state: where load() reads.
  std::int32_t layer_ = 0;
  std::string covered_by_;
  std::optional<StateFileReader> file_reader_;
  std::optional<activation_store::ArrayReader> array_reader_;
  std::optional<StateFileWriter> writer_;
};

}  // namespace librarian::ingest
