#pragma once
/// --config FILE.toml: the same names as the options, without the dashes.

#include <string>
#include <vector>

#include "base/error.h"

namespace librarian::cli {

/// One key of the file; an array gives an option several values.
struct ConfigSetting {
  std::string name;
  std::vector<std::string> values;
};

/// Reads a TOML file of top-level keys.
/// @error invalid_argument  The file is not there or not such TOML; names file and key or line.
Result<std::vector<ConfigSetting>> read_toml_config(const std::string& path);

}  // namespace librarian::cli
