#pragma once
/// Where results go: text for people, or one JSON object a line for programs (docs: cli/JSON.md).

#include <string>

#include "base/json.h"

namespace librarian::cli {

inline constexpr int kEventVersion = 1;

/// Prints `text` to standard output. A closed pipe is not an error; others show in
/// output_failed().
void print(const std::string& text);
/// Something that was printed did not get there, e.g. because a disk is full.
bool output_failed();

/// Prints "librarian: <text>" as one line to standard error. Text from strangers may be in it:
/// control characters are escaped, so that it can neither add lines nor drive the terminal.
void print_error(const std::string& text);

/// Prints {"event": name, "version": 1, ...fields} as one line.
void print_event(const std::string& name, const Json& fields);

/// "name             value" with aligned values, for tables of facts.
std::string fact(const std::string& name, const std::string& value);

}  // namespace librarian::cli
