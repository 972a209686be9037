#pragma once
/// What `plan --json` prints, and what both of its forms say of captures.

#include <string>
#include <vector>

#include "base/json.h"
#include "ingest/job.h"

namespace librarian::cli {

/// The arrays that a capture is stored in.
std::vector<ingest::DiskArray> arrays_of(const ingest::PreparedJob& job,
                                         const std::string& capture);
/// "(positions=loss)", empty without.
std::string capture_options_text(const ingest::PreparedJob& job, const std::string& capture);

/// @param flops_per_second  Measured on the job's device.
Json plan_to_json(const ingest::PreparedJob& job, double flops_per_second);

}  // namespace librarian::cli
