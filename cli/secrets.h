#pragma once
/// What must not get out: headers that only a file may hold, and memory that no core file may show.

#include <string>
#include <vector>

#include "base/error.h"

namespace librarian::cli {

/// Reads --header-file: one "Name: value" a line, empty lines and lines with '#' left out.
/// @error invalid_argument  Not such a file, readable by others, or a header that is not the user's
///                          to set; says which line, never what is in it.
Result<std::vector<std::string>> read_header_file(const std::string& path);

/// From here on no core file is written, and no process of this user may look into our memory.
void forbid_core_files();

}  // namespace librarian::cli
