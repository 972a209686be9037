#pragma once
/// One function per command. Each prints its result and returns the exit code, or fails with the
/// error that main() prints.

#include <stop_token>

#include "base/error.h"
#include "cli/options.h"

namespace librarian::cli {

Result<int> run_plan(const Options& options, const std::stop_token& stop);
Result<int> run_pilot(const Options& options, const std::stop_token& stop);
Result<int> run_extract(const Options& options, const std::stop_token& stop);
Result<int> run_fetch(const Options& options, const std::stop_token& stop);
Result<int> run_inspect(const Options& options, const std::stop_token& stop);
Result<int> run_verify(const Options& options, const std::stop_token& stop);
Result<int> run_diff(const Options& options, const std::stop_token& stop);

}  // namespace librarian::cli
