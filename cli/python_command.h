#pragma once
/// Commands that are written in Python, of the package nexus_librarian: tokenize and export.

#include <string>
#include <string_view>

#include "base/error.h"

namespace librarian::cli {

/// Whether Python runs this command.
bool is_python_command(std::string_view name);

/// Becomes `python3 -m nexus_librarian.<argv[1]> argv[2...]`, so that exit code and signals are
/// Python's. LIBRARIAN_PYTHON names another interpreter. Call it before threads and signal masks.
/// @param argv  As main() got it: ends with a null pointer, and argv[1] is such a command.
/// @return      Only where no interpreter could be started.
/// @error invalid_argument  Says how to install what is missing.
Error run_python_command(char* const* argv);

/// Ids as text, by `tokenize --decode`: what counts for the loss is marked.
/// @param tokenizer  tokenizer.json.
/// @param ids        JSON: {"input_ids": [...], "loss_mask": [...] optional}.
/// @param directory  For temporary files, which stay.
/// @return  Empty where Python, the package or a tokenizer that knows the ids is missing.
std::string decode_tokens(const std::string& tokenizer, const std::string& ids,
                          const std::string& directory);

}  // namespace librarian::cli
