#pragma once
/// The small files of a store: job.json, zarr.json of the store and of a part, weights.json and
/// the token arrays. Each JSON file carries `xxh3`, the XXH3-128 of its own bytes with that value
/// zeroed, and is checked by it before anything in it is believed.

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

/// `document` as text with a last member `xxh3` that seals it. `document` must not have one.
std::string seal_json(const Json& document);
/// Parses text written by seal_json(). @error corrupt  the seal is absent or does not fit.
Result<Json> open_sealed_json(std::string_view text, const std::string& what);

/// A run of consecutive samples; parts are numbered in input order from 0.
struct PartRange {
  std::uint64_t first_sample = 0;
  std::uint64_t samples = 0;
  std::uint64_t tokens = 0;
  bool operator==(const PartRange&) const = default;
};

/// job.json: what the store is, fixed when the job begins.
struct JobFile {
  Json identity;               ///< Canonical; what decides whether a run belongs to this store.
  std::string identity_digest;  ///< SHA-256 of the canonical identity text, hex.
  std::vector<PartRange> parts;
};
std::string job_file_text(const JobFile& job);
/// @error not_found | corrupt | bad_input (a later version)
Result<JobFile> read_job_file(FileSystem& files, const std::string& store_directory);

/// zarr.json of the store: a group that names the format and shows the identity's public part.
std::string store_group_text(const Json& identity);

/// zarr.json of a part: present if and only if the part is complete.
struct PartFile {
  PartRange range;
  std::uint64_t hidden_size = 0;
  std::vector<std::string> captures;            ///< Requested names in canonical order.
  std::map<std::string, std::string> aliases;   ///< Requested name -> array that holds it.
  std::string device_kind;                      ///< E.g. "cpu-avx512"; decides bit equality.
  std::string zstd_version;
  std::string verified;                         ///< "none", "stream" or "sha256".
  std::vector<FileRecord> files;                ///< Every file of the part but this one.
  std::vector<ArrayRecord> arrays;              ///< Without their file lists.
};
std::string part_file_text(const PartFile& part);
Result<PartFile> read_part_file(FileSystem& files, const std::string& part_directory);

/// The samples of one part.
struct PartTokens {
  std::vector<std::int32_t> input_ids;                  ///< [tokens]
  std::vector<std::int64_t> offsets;                    ///< [samples + 1], from 0
  std::optional<std::vector<std::uint8_t>> loss_mask;   ///< [tokens]
  std::vector<std::int64_t> sample_index;               ///< [samples], row in the input file
};
/// Writes tokens/ (group and arrays) durably and published. @return one record per array.
Result<std::vector<ArrayRecord>> write_part_tokens(FileSystem& files, const std::string& directory,
                                                   const PartTokens& tokens,
                                                   const std::string& nonce);
/// Reads and checks tokens/. @error corrupt | not_found | io
Result<PartTokens> read_part_tokens(FileSystem& files, const std::string& part_directory);

/// "part-00007".
std::string part_directory_name(std::uint64_t part_index);

}  // namespace librarian::activation_store
