#pragma once
/// What `plan` prints of a model whose execution is not built in.

#include "ingest/unsupported_model.h"

namespace librarian::cli {

/// @param json  As an event instead of text.
void print_sizes(const ingest::UnsupportedModel& model, bool json);

}  // namespace librarian::cli
