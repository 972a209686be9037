#pragma once
/// Which rows of a part an array keeps. Pure arithmetic on sample lengths and the loss mask.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "activation_store/store_files.h"
#include "base/error.h"
#include "ingest/capture_list.h"
#include "ingest/token_file.h"

namespace librarian::ingest {

/// Rows of the part at the positions, strictly rising. Not for Positions::Kind::all: that is every
/// row, and nobody needs a list of them.
std::vector<std::int64_t> kept_rows(const TokenData& tokens,
                                    const activation_store::PartRange& part,
                                    const Positions& positions);
/// How many that are; of all positions too.
std::uint64_t kept_row_count(const TokenData& tokens, const activation_store::PartRange& part,
                             const Positions& positions);

/// The different positions that arrays of a job keep, by their rows_name(); without `all`.
std::map<std::string, Positions> positions_of(const CaptureList& captures);

/// That every capture keeps some row of the job.
/// @error invalid_argument  One keeps none, or asks for a loss mask that the tokens lack.
Result<void> check_positions(const CaptureList& captures, const TokenData& tokens,
                             const std::string& token_path);

}  // namespace librarian::ingest
