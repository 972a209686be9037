#pragma once
/// The samples of a job, from any of the formats people have, in one canonical form.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file_system.h"

namespace librarian::ingest {

/// What a token file says of how it was made; empty: nothing.
struct TokenOrigin {
  std::string tokenizer_sha256;      ///< Of tokenizer.json's bytes, hex.
  std::string chat_template_sha256;  ///< Of the template's UTF-8 text, hex.
};

/// Samples packed without padding: sample i is rows offsets[i] .. offsets[i + 1].
struct TokenData {
  std::vector<std::int32_t> input_ids;                 ///< [tokens]
  std::vector<std::int64_t> offsets;                   ///< [samples + 1], from 0, increasing
  std::optional<std::vector<std::uint8_t>> loss_mask;  ///< [tokens]
  std::uint64_t truncated_samples = 0;                 ///< Cut by --max-length.
  TokenOrigin origin;

  std::uint64_t samples() const { return offsets.size() - 1; }
  std::uint64_t tokens() const { return input_ids.size(); }
  std::uint64_t longest_sample() const;
  std::uint64_t memory_bytes() const;
};

struct TokenLimits {
  std::uint32_t vocab_size = 0;   ///< IDs must be below it.
  std::uint64_t max_length = 0;   ///< Longer samples are cut; 0: never.
  std::uint64_t samples_max = 0;  ///< Only the first so many; 0: all.
};

/// Reads `.safetensors` {input_ids int32 [T], offsets int64 [N+1], loss_mask uint8 [T] optional;
/// `__metadata__` {tokenizer_sha256, chat_template_sha256 optional, others ignored}},
/// `.jsonl` rows with `input_ids` (`loss_mask`, `id` optional), or `.npy` (1-d: one sample; 2-d:
/// rows). @error bad_input | invalid_argument  names the file and the row.
Result<TokenData> read_token_file(FileSystem& files, const std::string& path,
                                  const TokenLimits& limits);

}  // namespace librarian::ingest
