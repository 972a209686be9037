#include <cstdio>
#include <exception>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/output.h"
#include "cli/python_command.h"
#include "cli/secrets.h"
#include "cli/signals.h"

namespace librarian::cli {
namespace {

Result<int> dispatch(const Options& options, const std::stop_token& stop) {
  switch (options.command) {
    case Command::plan:
      return run_plan(options, stop);
    case Command::pilot:
      return run_pilot(options, stop);
    case Command::extract:
      return run_extract(options, stop);
    case Command::fetch:
      return run_fetch(options, stop);
    case Command::inspect:
      return run_inspect(options, stop);
    case Command::verify:
      return run_verify(options, stop);
    case Command::diff:
      return run_diff(options, stop);
  }
  return Error(ErrorCode::internal, "unknown command");
}

int report_error(const Error& error, bool json, int signal_number) {
  const int code = exit_code(error.code(), signal_number);
  print_error(error.message());
  if (json) {
    print_event("error", {{"code", error_code_name(error.code())},
                          {"message", error.message()},
                          {"exit_code", code}});
  }
  return code;
}

int run(int argc, char** argv) {
  if (argc > 1 && is_python_command(argv[1])) {
    return report_error(run_python_command(argv), false, 0);
  }
  forbid_core_files();
  const auto parsed = parse_command_line(argc, argv);
  if (!parsed) {
    return report_error(parsed.error(), false, 0);
  }
  if (!parsed->options) {
    print(parsed->text);
    return kExitDone;
  }
  SignalStop signals;
  const auto result = dispatch(*parsed->options, signals.token());
  if (!result) {
    return report_error(result.error(), parsed->options->json, signals.signal_number());
  }
  if (output_failed()) {
    return report_error(Error(ErrorCode::io, "cannot write all of the result to standard output"),
                        false, 0);
  }
  return *result;
}

}  // namespace
}  // namespace librarian::cli

int main(int argc, char** argv) {
  try {
    return librarian::cli::run(argc, argv);
  } catch (const std::exception& error) {
    // Nothing of ours throws; a library that does has met something we did not foresee.
    std::fprintf(stderr, "librarian: internal error: %s\n", error.what());
    return librarian::cli::kExitInternal;
  }
}
