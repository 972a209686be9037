#pragma once
/// Which commit a job began with, where its command names a branch: `DIR/.source`, there from the
/// job's first run to its end. Runs that resume take the commit from there; runs that come to redo
/// a part of a finished store, from its report.

#include <optional>
#include <string>

#include "base/error.h"
#include "base/file_system.h"

namespace librarian::ingest {

/// @param place  As given, e.g. hf://org/name@main.
/// @return  The commit, or nothing: another model, no such file, or a damaged one, which is worth
/// no
///          more than none.
std::optional<std::string> read_source_pin(FileSystem& files, const std::string& store_directory,
                                           const std::string& place);

/// Keeps what is there for the same place; only the first run's commit counts.
Result<void> write_source_pin(FileSystem& files, const std::string& store_directory,
                              const std::string& place, const std::string& commit);

Result<void> remove_source_pin(FileSystem& files, const std::string& store_directory);

}  // namespace librarian::ingest
