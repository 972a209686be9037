#include "ingest/fetch_model.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <set>
#include <utility>

#include "base/units.h"
#include "ingest/memory_plan.h"
#include "ingest/staging_plan.h"
#include "ingest/store_directory.h"
#include "weightmap/remote/file_staging.h"
#include "weightmap/remote/staging_directory.h"
#include "weightmap/remote/stated_digest.h"
#include "weightmap/weight_files.h"

namespace librarian::ingest {
namespace {

using namespace std::chrono_literals;
using weightmap::remote::FileStaging;
using weightmap::remote::FileStagingOptions;
using weightmap::remote::ObjectId;
using weightmap::remote::StagedObject;
using weightmap::remote::StagingDirectory;

// Another process may be staging the same file.
constexpr auto kLookAgain = 200ms;

struct OpenedFile {
  FetchedFile facts;
  weightmap::remote::ObjectInfo info;
  ObjectId object = 0;
  std::string key;
};

Result<std::vector<OpenedFile>> open_files(weightmap::remote::Fetcher& fetcher,
                                           const weightmap::remote::Uri& directory,
                                           const std::stop_token& stop) {
  LIB_TRY(const weightmap::WeightFileList list,
          weightmap::list_weight_files(fetcher, directory, stop));
  std::vector<OpenedFile> files;
  const std::vector<std::string> names(list.names.begin(), list.names.end());
  LIB_TRY(const std::vector<weightmap::remote::Fetcher::Opened> all,
          weightmap::open_weight_files(fetcher, directory, list, names, 1, stop));
  for (std::size_t i = 0; i < names.size(); ++i) {
    const std::string& name = names[i];
    const weightmap::remote::Fetcher::Opened& opened = all[i];
    OpenedFile file;
    file.facts.name = name;
    file.facts.bytes = opened.info.size;
    file.info = opened.info;
    file.facts.offered_sha256 = opened.info.sha256;
    file.facts.offered_crc = opened.info.crc;
    file.facts.validator = opened.info.validator;
    file.facts.validator_is_strong = opened.info.strong;
    file.object = opened.id;
    file.key = weightmap::remote::staging_key(directory.child(name), opened.info);
    files.push_back(std::move(file));
  }
  return files;
}

/// Keeps a file in the cache. @return nothing if there is no room for it.
Result<std::optional<StagedObject>> keep_file(OpenedFile& file, StagingDirectory& cache,
                                              const std::set<std::string>& keep,
                                              FileStaging& staging, Clock& clock,
                                              const std::stop_token& stop) {
  while (true) {
    LIB_TRY(StagingDirectory::Taken taken, cache.take(file.key, file.facts.bytes, keep, stop));
    if (taken.state == StagingDirectory::State::no_room) {
      return std::optional<StagedObject>();
    }
    if (taken.state == StagingDirectory::State::busy) {
      if (!clock.sleep_for(kLookAgain, stop)) {
        return Error(ErrorCode::cancelled, "stopped while waiting for another process");
      }
      continue;
    }
    if (taken.state == StagingDirectory::State::complete) {
      LIB_TRY(const StagedObject found, staging.check(*taken.hold, stop));
      if (found.matches && (file.info.sha256.empty() || file.info.sha256 == found.sha256)) {
        return std::optional(found);
      }
      const std::string path = taken.hold->data_path();
      LIB_TRY(const bool gone, cache.remove(*std::move(taken.hold), stop));
      if (!gone) {
        return Error(ErrorCode::conflict,
                     path + ": damaged, and other processes use it; stop them");
      }
      continue;
    }
    LIB_TRY(const StagedObject staged, staging.stage(file.object, file.info, *taken.hold, stop));
    file.facts.fetched = true;
    if (staged.matches) {
      LIB_TRY_VOID(cache.completed(*taken.hold, stop));
    } else {
      LIB_TRY_VOID(cache.remove(*std::move(taken.hold), stop));
    }
    return std::optional(staged);
  }
}

/// @param kept  Keys of this model that are in the cache: later files do not drive them out.
Result<void> fetch_file(OpenedFile& file, StagingDirectory* cache, std::set<std::string>& kept,
                        FileStaging& staging, Clock& clock, const std::stop_token& stop) {
  std::optional<StagedObject> object;
  if (cache != nullptr) {
    LIB_TRY(object, keep_file(file, *cache, kept, staging, clock, stop));
    file.facts.kept = object && object->matches;
    kept.insert(file.key);
  }
  if (!object) {
    LIB_TRY(object, staging.hash(file.object, file.info, stop));
    file.facts.fetched = true;
  }
  file.facts.sha256 = object->sha256;
  file.facts.verified = !weightmap::remote::states_digest(file.info)
                            ? FetchedFile::Verified::nothing_to_compare
                        : object->matches ? FetchedFile::Verified::yes
                                          : FetchedFile::Verified::no;
  return {};
}

Result<FileStagingOptions> staging_options(const JobOptions& options,
                                           const std::vector<OpenedFile>& files) {
  FileStagingOptions staging;
  staging.object_bytes_max = 1;
  for (const OpenedFile& file : files) {
    staging.object_bytes_max = std::max(staging.object_bytes_max, file.facts.bytes);
  }
  const std::uint64_t limit = options.host_memory_bytes.value_or(default_host_memory_bytes());
  staging.slabs = options.connections;
  while (staging.slabs > 1 && FileStaging::memory_bytes(staging) > limit) {
    --staging.slabs;
  }
  if (FileStaging::memory_bytes(staging) > limit) {
    return Error(ErrorCode::does_not_fit, "--host-memory " + format_bytes(limit) +
                                              " is too small: give at least " +
                                              format_bytes(FileStaging::memory_bytes(staging)));
  }
  return staging;
}

}  // namespace

const char* verified_name(FetchedFile::Verified verified) {
  switch (verified) {
    case FetchedFile::Verified::not_tried:
      return "not tried";
    case FetchedFile::Verified::yes:
      return "yes";
    case FetchedFile::Verified::no:
      return "no";
    case FetchedFile::Verified::nothing_to_compare:
      return "nothing to compare";
  }
  return "not tried";
}

Result<std::vector<FetchedFile>> fetch_model(const JobOptions& options,
                                             const JobEnvironment& environment,
                                             const FetchModelOptions& how,
                                             const std::stop_token& stop) {
  LIB_TRY(const weightmap::remote::Uri place, weightmap::remote::parse_uri(options.model));
  if (auto allowed = weightmap::remote::check_allowed(place, options.insecure_http); !allowed) {
    return allowed.error().with_context(place.display());
  }
  Clock& clock = *environment.clock;
  const auto transport = environment.make_transport(options);
  weightmap::remote::FetcherOptions fetching;
  fetching.connections = options.connections;
  fetching.hedge_budget = options.hedge_budget;
  weightmap::remote::Fetcher fetcher(*transport, clock, fetching);
  // The origin itself: what the hub's own cache on this machine holds was not fetched by us.
  LIB_TRY(const weightmap::remote::PinnedModel pinned,
          weightmap::remote::pin_model(fetcher, place, std::nullopt, environment.variables, stop));
  const weightmap::remote::Uri& directory = pinned.uri;
  LIB_TRY(std::vector<OpenedFile> files, open_files(fetcher, directory, stop));
  std::vector<FetchedFile> facts;
  const auto tell = [&](const FetchedFile& file) {
    facts.push_back(file);
    if (how.on_file) {
      how.on_file(file);
    }
  };
  if (how.heads_only) {
    for (const OpenedFile& file : files) {
      tell(file.facts);
    }
    return facts;
  }
  std::unique_ptr<StagingDirectory> cache;
  if (!options.weights_cache.empty()) {
    LIB_TRY(const std::uint64_t limit,
            weights_cache_limit_bytes(*environment.files, clock, options, 0));
    LIB_TRY(cache,
            StagingDirectory::open(*environment.files, clock, {options.weights_cache, limit}));
  }
  LIB_TRY(const FileStagingOptions staging_with, staging_options(options, files));
  FileStaging staging(fetcher, *environment.files, clock, staging_with);
  std::set<std::string> kept;
  for (OpenedFile& file : files) {
    LIB_TRY_VOID(fetch_file(file, cache.get(), kept, staging, clock, stop));
    tell(file.facts);
  }
  return facts;
}

}  // namespace librarian::ingest
