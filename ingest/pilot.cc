#include "ingest/pilot.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "activation_store/store_reader.h"
#include "base/units.h"

namespace librarian::ingest {
namespace {

using activation_store::SampleRows;
using activation_store::StoreReader;

/// Element `row` of a vector or of the first column.
template <typename T>
T value_at(const SampleRows& rows, std::uint64_t row) {
  T value{};
  std::memcpy(&value, rows.bytes.data() + row * rows.width * sizeof(T), sizeof(T));
  return value;
}

bool is_masked_in(const TokenData& tokens, std::uint64_t token) {
  return !tokens.loss_mask || (*tokens.loss_mask)[token] != 0;
}

/// Adds up over samples.
class Tally {
 public:
  explicit Tally(PilotReport& report) : report_(report) {}

  Result<void> add(const StoreReader& store, const TokenData& tokens, std::uint64_t sample) {
    LIB_TRY(const SampleRows ids, store.sample("logits.topk.ids", sample));
    LIB_TRY(const SampleRows gold, store.sample("logits.topk.gold_log_prob", sample));
    LIB_TRY(const SampleRows sums, store.sample("logits.topk.logsumexp", sample));
    const auto begin = static_cast<std::uint64_t>(tokens.offsets[sample]);
    for (std::uint64_t row = 0; row < sums.tokens; ++row) {
      report_.nonfinite += std::isfinite(value_at<float>(sums, row)) ? 0 : 1;
      if (row + 1 == sums.tokens || !is_masked_in(tokens, begin + row + 1)) {
        continue;
      }
      ++report_.predicted;
      loss_ -= value_at<float>(gold, row);
      hits_ += value_at<std::int32_t>(ids, row) == tokens.input_ids[begin + row + 1] ? 1 : 0;
    }
    return {};
  }

  void finish() {
    const auto count = static_cast<double>(report_.predicted);
    report_.perplexity = std::exp(loss_ / count);
    report_.top1_share = hits_ / count;
  }

 private:
  PilotReport& report_;
  double loss_ = 0;
  double hits_ = 0;
};

void look_at_mask(const TokenData& tokens, PilotReport& report) {
  report.samples = tokens.samples();
  report.tokens = tokens.tokens();
  report.has_loss_mask = tokens.loss_mask.has_value();
  report.longest_sample = tokens.longest_sample();
  report.truncated_samples = tokens.truncated_samples;
  bool shown = false;
  for (std::uint64_t sample = 0; sample < tokens.samples(); ++sample) {
    const auto begin = static_cast<std::uint64_t>(tokens.offsets[sample]);
    const auto end = static_cast<std::uint64_t>(tokens.offsets[sample + 1]);
    std::uint64_t kept = 0;
    for (std::uint64_t token = begin; token < end; ++token) {
      kept += is_masked_in(tokens, token) ? 1 : 0;
    }
    report.masked_in += kept;
    report.samples_without += kept == 0 ? 1 : 0;
    if (kept != 0 && !shown) {
      shown = true;
      report.shown_sample = sample;
      for (std::uint64_t token = begin; token < end; ++token) {
        report.shown_ids.push_back(tokens.input_ids[token]);
        report.shown_mask.push_back(is_masked_in(tokens, token) ? 1 : 0);
      }
    }
  }
}

std::string percent(double share) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f %%", 100 * share);
  return text;
}

/// Null where JSON has no number.
Json number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

}  // namespace

Result<PilotReport> run_pilot(JobOptions options, const std::string& tokenizer_path,
                              const JobEnvironment& environment, JobObserver& observer,
                              const std::stop_token& stop) {
  options.captures = {"logits.topk(k=1,positions=all)"};
  options.num_samples = options.num_samples == 0 ? kPilotSamples : options.num_samples;
  options.skeleton = false;
  options.allow_nonfinite = true;
  LIB_TRY(const std::unique_ptr<PreparedJob> job, PreparedJob::create(options, environment, stop));
  for (const std::string& text : job->warnings()) {
    observer.warning(text);
  }
  PilotReport report;
  look_at_mask(job->tokens(), report);
  if (report.masked_in == 0) {
    return Error(ErrorCode::bad_input, options.tokens + ": the loss_mask has no token in, of " +
                                           format_count(report.samples) +
                                           " samples looked at; look at how they were tokenised");
  }
  LIB_TRY(report.has_tokenizer, job->save_tokenizer(tokenizer_path, stop));
  LIB_TRY(const RunReport run, job->run(observer, stop));
  LIB_TRY(const StoreReader store, StoreReader::open(*environment.files, options.out));
  Tally tally(report);
  for (std::uint64_t sample = 0; sample < report.samples; ++sample) {
    LIB_TRY_VOID(tally.add(store, job->tokens(), sample));
  }
  tally.finish();
  return report;
}

Json PilotReport::to_json() const {
  return {{"samples", samples},
          {"tokens", tokens},
          {"has_loss_mask", has_loss_mask},
          {"masked_in", masked_in},
          {"samples_without", samples_without},
          {"longest_sample", longest_sample},
          {"truncated_samples", truncated_samples},
          {"predicted", predicted},
          {"perplexity", number(perplexity)},
          {"top1_share", number(top1_share)},
          {"nonfinite", nonfinite},
          {"shown_sample", shown_sample},
          {"shown_ids", shown_ids},
          {"shown_mask", shown_mask},
          {"shown_text", shown_text.empty() ? Json(nullptr) : Json(shown_text)}};
}

std::string PilotReport::text() const {
  char perplexity_text[32];
  std::snprintf(perplexity_text, sizeof perplexity_text, "%.2f", perplexity);
  std::string text = "perplexity " + std::string(perplexity_text) + " over " +
                     format_count(predicted) + (has_loss_mask ? " loss tokens" : " tokens") +
                     "; the teacher's likeliest is the next token for " + percent(top1_share) +
                     "\n";
  text +=
      has_loss_mask
          ? "loss mask: " + percent(static_cast<double>(masked_in) / static_cast<double>(tokens)) +
                " of " + format_count(tokens) + " tokens; " + format_count(samples_without) +
                " of " + format_count(samples) + " samples have none\n"
          : "no loss mask: all of " + format_count(tokens) + " tokens in " + format_count(samples) +
                " samples count\n";
  text += "longest sample: " + format_count(longest_sample) + " tokens" +
          (truncated_samples == 0 ? "" : ", " + format_count(truncated_samples) + " cut") + "\n";
  text += "rows with NaN or infinity: " + format_count(nonfinite) + "\n";
  const std::string shown = "sample " + std::to_string(shown_sample);
  if (!shown_text.empty()) {
    return text + shown + " (what counts for the loss in \u27e6\u27e7):\n" + shown_text;
  }
  text += shown + " (tokens of the loss in brackets):";
  for (std::size_t i = 0; i < shown_ids.size(); ++i) {
    const std::string id = std::to_string(shown_ids[i]);
    text += has_loss_mask && shown_mask[i] != 0 ? " [" + id + "]" : " " + id;
  }
  return text + "\n";
}

}  // namespace librarian::ingest
