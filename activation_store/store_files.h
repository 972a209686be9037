#pragma once
/// The small files of a store: job.json, zarr.json of the store and of a part, weights.json and
/// the token arrays. Each JSON file carries `xxh3`, the XXH3-128 of its own bytes with that value
/// zeroed, and is checked by it before anything in it is believed.
/// Functions here keep no state: any may be called concurrently for different paths.

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "activation_store/types.h"
#include "base/error.h"
#include "base/file_system.h"
#include "base/json.h"

namespace librarian::activation_store {

/// `document` as text that is sealed by a last member `xxh3`: of its member `attributes` if it has
/// one (Zarr readers refuse unknown members beside it), else of the document. There must be none
/// yet. The text is a function of the document alone.
std::string seal_json(const Json& document);
/// Parses text written by seal_json() and returns the document without its seal.
/// @param what     Names the text in errors, e.g. its path.
/// @error corrupt  Not JSON, or the seal is absent or does not fit.
Result<Json> open_sealed_json(std::string_view text, const std::string& what);

/// A run of consecutive samples; parts are numbered in input order from 0.
struct PartRange {
  std::uint64_t first_sample = 0;
  std::uint64_t samples = 0;
  std::uint64_t tokens = 0;
  bool operator==(const PartRange&) const = default;
};

/// job.json: what the store is, fixed when the job begins.
struct JobFile {  // NOLINT(bugprone-exception-escape): nlohmann's ordered map only throws bad_alloc
  Json identity;  ///< Canonical; what decides whether a run belongs to this store.
  std::string identity_digest;  ///< SHA-256 of the canonical identity text, hex; not checked here.
  std::vector<PartRange> parts;
  bool skeleton = false;  ///< Whether the job asks for STORE/model/.
};
std::string job_file_text(const JobFile& job);
/// @error not_found | corrupt | bad_input (a later version)
Result<JobFile> read_job_file(FileSystem& files, const std::string& store_directory);

/// zarr.json of the store: a group that names the format and shows the identity's public part.
/// @param identity  What to show, an object; a function of the identity alone, so that every
///                  process writes the same bytes.
std::string store_group_text(const Json& identity);

/// zarr.json of a part: present if and only if the part is complete.
struct PartFile {
  PartRange range;
  std::uint64_t hidden_size = 0;
  std::vector<std::string> captures;           ///< Requested names in canonical order.
  std::map<std::string, std::string> aliases;  ///< Requested name -> array that holds it.
  /// Requested name -> its arrays by their short names: captures that are more than one array.
  std::map<std::string, std::map<std::string, std::string>> groups;
  std::string device_kind;  ///< E.g. "cpu-avx512"; decides bit equality.
  std::vector<std::string>
      products;  ///< How matrices were multiplied, where the kind leaves it open.
  std::string zstd_version;
  std::string verified;             ///< "none", "stream" or "sha256".
  std::vector<FileRecord> files;    ///< Every file of the part but this one.
  std::vector<ArrayRecord> arrays;  ///< Without their file lists.
};
std::string part_file_text(const PartFile& part);
/// @error not_found  The part is not complete. @error corrupt | io
Result<PartFile> read_part_file(FileSystem& files, const std::string& part_directory);

/// Rows that an array of a part has: its tokens, or as many as its array of kept rows names; -1 as
/// unsigned if the manifest has no such array.
std::uint64_t rows_of(const PartFile& part, const ArrayAttributes& attributes);

/// The samples of one part.
struct PartTokens {
  std::vector<std::int32_t> input_ids;                 ///< [tokens]
  std::vector<std::int64_t> offsets;                   ///< [samples + 1], from 0
  std::optional<std::vector<std::uint8_t>> loss_mask;  ///< [tokens]
  std::vector<std::int64_t> sample_index;              ///< [samples], row in the input file
  /// "rows_loss" and so on -> rows that arrays keep, strictly rising, below tokens.
  std::map<std::string, std::vector<std::int64_t>> rows{};
};
/// Writes tokens/ (group and arrays) durably and published; files that are there are replaced.
/// @return One record per array; files of all together name every file below tokens/ (the
///         group's zarr.json is listed with the first array, not counted in its stored_bytes).
/// @error invalid_argument  Lengths or offsets do not belong together, or there is no token.
/// @error io | no_space | already_exists (a temporary with this nonce)
Result<std::vector<ArrayRecord>> write_part_tokens(FileSystem& files, const std::string& directory,
                                                   const PartTokens& tokens,
                                                   const std::string& nonce);
/// Reads and checks tokens/: seals, checksums, lengths, offsets; `rows` stay unread.
/// @error corrupt | not_found | io
Result<PartTokens> read_part_tokens(FileSystem& files, const std::string& part_directory);

/// Checks what read_part_tokens() promises of offsets: from 0, strictly rising, to `tokens`.
/// @error corrupt
Result<void> check_offsets(const std::vector<std::int64_t>& offsets, std::uint64_t tokens,
                           const std::string& what);

/// That rows are strictly rising and below `tokens`. @error corrupt
Result<void> check_rows(const std::vector<std::int64_t>& rows, std::uint64_t tokens,
                        const std::string& what);

/// One array below tokens/, whole, as bytes. @param dtype  What it must have.
/// @error corrupt | not_found | io
Result<std::vector<std::byte>> read_token_array(FileSystem& files, const std::string& directory,
                                                const std::string& name, const std::string& dtype);

/// "part-00007".
std::string part_directory_name(std::uint64_t part_index);

}  // namespace librarian::activation_store
