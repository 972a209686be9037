#pragma once
/// What can be said of a model whose execution is not built in: how large it is.

#include <optional>
#include <stop_token>
#include <string>

#include "base/error.h"
#include "ingest/job.h"
#include "weightmap/model_sizes.h"

namespace librarian::ingest {

struct UnsupportedModel {
  std::string place;  ///< As errors show it.
  weightmap::ModelSizes sizes;
  /// "execution not supported: KEY (why)", where the refusal names a key.
  Error why;
};

/// Looks again at a model that PreparedJob::create() refused with bad_input. Fetches headers only.
/// @return  Nothing if the model would run, so that something else was refused.
/// @error Of models whose headers cannot be read: as Checkpoint::open().
Result<std::optional<UnsupportedModel>> measure_unsupported(const JobOptions& options,
                                                            const JobEnvironment& environment,
                                                            const std::stop_token& stop);

}  // namespace librarian::ingest
