#pragma once
/// What the teacher makes of a few samples, before the long run: wrong chat templates, masks and
/// weights show in its perplexity.

#include <cstdint>
#include <stop_token>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "ingest/job.h"

namespace librarian::ingest {

inline constexpr std::uint64_t kPilotSamples = 64;

struct PilotReport {
  std::uint64_t samples = 0;
  std::uint64_t tokens = 0;
  bool has_loss_mask = false;         ///< Else every token counts as masked in.
  std::uint64_t masked_in = 0;        ///< Tokens that the loss mask has in.
  std::uint64_t samples_without = 0;  ///< Samples that have none.
  std::uint64_t longest_sample = 0;   ///< Tokens.
  std::uint64_t truncated_samples = 0;
  std::uint64_t predicted = 0;     ///< Masked-in tokens with a token before them.
  double perplexity = 0;           ///< e^(mean of -log p) over them; NaN if one of them is.
  double top1_share = 0;           ///< Of them, those that are the likeliest.
  std::uint64_t nonfinite = 0;     ///< Rows whose logits have NaN or infinity.
  std::uint64_t shown_sample = 0;  ///< The first one with a masked-in token.
  std::vector<std::int32_t> shown_ids;
  std::vector<std::uint8_t> shown_mask;
  bool has_tokenizer = false;  ///< The model's tokenizer.json is where run_pilot() was told.
  std::string shown_text;      ///< The ids' text with the loss marked; the caller's to fill in.

  Json to_json() const;
  std::string text() const;
};

/// Runs samples through all layers and gathers what comes out.
/// @param options  A job's; `out` is an empty directory for its use. Captures and what is done with
///                 numbers that are not finite are the pilot's own; num_samples 0: kPilotSamples.
/// @param tokenizer_path  Where the model's tokenizer.json goes, if it has one.
/// @error As PreparedJob; bad_input also if the mask has no token in.
Result<PilotReport> run_pilot(JobOptions options, const std::string& tokenizer_path,
                              const JobEnvironment& environment, JobObserver& observer,
                              const std::stop_token& stop);

}  // namespace librarian::ingest
