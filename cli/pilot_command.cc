#include <unistd.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/output.h"
#include "cli/python_command.h"
#include "ingest/pilot.h"

namespace librarian::cli {
namespace {

/// A directory of this user's own that goes with its owner.
class TemporaryDirectory {
 public:
  static Result<std::unique_ptr<TemporaryDirectory>> create(const std::string& parent) {
    std::string path = parent + "/librarian-pilot-XXXXXX";
    if (::mkdtemp(path.data()) == nullptr) {
      return Error(ErrorCode::io, path +
                                      ": cannot make this directory for the pilot's arrays; "
                                      "set --scratch to a place that can be written to");
    }
    return std::unique_ptr<TemporaryDirectory>(new TemporaryDirectory(path));
  }
  ~TemporaryDirectory() {
    std::error_code ignored;  // What is left is small, and the path says whose it is.
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const std::string& path() const { return path_; }

 private:
  explicit TemporaryDirectory(std::string path) : path_(std::move(path)) {}
  const std::string path_;
};

/// Warnings go where errors go; a pilot is over before progress is worth showing.
class Warnings final : public ingest::JobObserver {
 public:
  void warning(const std::string& text) override { print_error("warning: " + text); }
};

}  // namespace

Result<int> run_pilot(const Options& options, const std::stop_token& stop) {
  ingest::JobOptions job = options.job;
  const char* const place = std::getenv("TMPDIR");
  const std::string parent = !job.scratch.empty()                 ? job.scratch
                             : place != nullptr && *place != '\0' ? place
                                                                  : "/tmp";
  LIB_TRY(const auto directory, TemporaryDirectory::create(parent));
  job.out = directory->path() + "/store";
  job.scratch = directory->path() + "/scratch";
  Warnings warnings;
  const std::string tokenizer = directory->path() + "/tokenizer.json";
  LIB_TRY(ingest::PilotReport report,
          ingest::run_pilot(job, tokenizer, ingest::JobEnvironment::real(), warnings, stop));
  if (report.has_tokenizer) {
    Json ids = {{"input_ids", report.shown_ids}};
    if (report.has_loss_mask) {
      ids["loss_mask"] = report.shown_mask;
    }
    report.shown_text = decode_tokens(tokenizer, ids.dump(), directory->path());
    if (report.shown_text.empty()) {
      warnings.warning(
          "the sample is shown as ids: its text needs 'pip install nexus-librarian[tokenize]'");
    }
  }
  if (options.json) {
    print_event("pilot", report.to_json());
  } else {
    print(report.text());
  }
  if (!std::isfinite(report.perplexity)) {
    return Error(ErrorCode::bad_input,
                 job.model +
                     ": the perplexity is not a number; broken weights, or a --dtype too "
                     "narrow for this model");
  }
  return kExitDone;
}

}  // namespace librarian::cli
