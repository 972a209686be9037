#pragma once
/// The command line: what can be asked, with help that teaches.

#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "ingest/job_options.h"

namespace librarian::cli {

enum class Command : std::uint8_t { plan, pilot, extract, fetch, inspect, verify, diff };

/// A parsed command line.
struct Options {
  Command command{};
  bool json = false;
  ingest::JobOptions job;                ///< plan, pilot, extract, fetch
  bool verify_only = false;              ///< fetch
  std::vector<std::string> directories;  ///< inspect, verify: one; diff: two
  std::string capture;                   ///< inspect
  std::optional<std::uint64_t> sample;   ///< inspect
  std::string raw_file;                  ///< inspect
};

/// What parsing came to: options, or text that was asked for (--help, --version).
struct ParsedCommandLine {
  std::optional<Options> options;
  std::string text;
};

/// @error invalid_argument  One sentence, with where to look.
Result<ParsedCommandLine> parse_command_line(int argc, const char* const* argv);

}  // namespace librarian::cli
