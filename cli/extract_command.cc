#include <unistd.h>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "ingest/job.h"

namespace librarian::cli {

Result<int> run_extract(const Options& options, const std::stop_token& stop) {
  LIB_TRY(const std::unique_ptr<ingest::PreparedJob> job,
          ingest::PreparedJob::create(options.job, ingest::JobEnvironment::real(), stop));
  const ProgressStyle style = options.json                   ? ProgressStyle::json
                              : ::isatty(STDOUT_FILENO) != 0 ? ProgressStyle::live
                                                             : ProgressStyle::lines;
  Progress progress(*job, style);
  for (const std::string& text : job->warnings()) {
    progress.warning(text);
  }
  auto report = job->run(progress, stop);
  progress.finish();
  LIB_TRY_VOID(report ? Result<void>() : Result<void>(report.error()));
  if (options.json) {
    print_event("report", report->to_json());
  } else {
    print(report->text());
  }
  return kExitDone;
}

}  // namespace librarian::cli
