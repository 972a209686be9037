#pragma once
/// Where results go: text for people, or one JSON object a line for programs (docs: cli/JSON.md).

#include <string>

#include "base/json.h"

namespace librarian::cli {

inline constexpr int kEventVersion = 1;

/// Prints `text` to standard output. A closed pipe is not an error.
void print(const std::string& text);

/// Prints {"event": name, "version": 1, ...fields} as one line.
void print_event(const std::string& name, const Json& fields);

/// "name             value" with aligned values, for tables of facts.
std::string fact(const std::string& name, const std::string& value);

}  // namespace librarian::cli
