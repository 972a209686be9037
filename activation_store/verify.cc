#include "activation_store/verify.h"

#include <algorithm>
#include <set>

#include "activation_store/array_metadata.h"
#include "activation_store/array_writer.h"
#include "activation_store/published_file.h"
#include "activation_store/skeleton_file.h"
#include "activation_store/store_files.h"
#include "activation_store/store_names.h"
#include "activation_store/verify_array.h"

namespace librarian::activation_store {
namespace {

constexpr int kDepthMax = 8;

bool is_wrong_data(const Error& error) {
  return error.code() == ErrorCode::corrupt || error.code() == ErrorCode::not_found;
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

/// Names directly in a part's directory that may be there beside the manifest's files: what a
/// crash around publication leaves, never data.
bool may_be_left_over(const std::string& name) {
  for (const char* const known : {"zarr.json", ".journal", ".lock"}) {
    if (is_partial_name(name, known)) {
      return true;
    }
  }
  return name == "zarr.json" || name == ".journal" || name == ".lock";
}

class StoreCheck {
 public:
  StoreCheck(FileSystem& files, std::string directory, std::stop_token stop,
             std::function<void(std::uint64_t)> progress)
      : files_(files),
        directory_(std::move(directory)),
        stop_(std::move(stop)),
        progress_(std::move(progress)) {}

  Result<VerifyReport> run() {
    LIB_TRY(const std::vector<std::string> names, files_.list(directory_));
    std::set<std::uint64_t> on_disk;
    for (const std::string& name : names) {
      if (const auto index = parse_part_directory_name(name)) {
        on_disk.insert(*index);
      }
    }
    auto job = read_job_file(files_, directory_);
    if (!job) {
      if (!is_wrong_data(job.error()) ||
          (job.error().code() == ErrorCode::not_found && on_disk.empty())) {
        return std::move(job).error();
      }
      problem("job.json", job.error().message());
    } else {
      parts_ = job->parts;
      report_.parts_total = parts_.size();
    }
    // Without job.json, parts are still checked against their own manifests.
    for (const std::uint64_t index : on_disk) {
      LIB_TRY_VOID(check_part(index, static_cast<bool>(job)));
    }
    LIB_TRY_VOID(check_group(names));
    LIB_TRY_VOID(verify_skeleton(files_, directory_, job ? job->identity_digest : std::string(),
                                 job && job->skeleton, report_, stop_));
    const bool missing =
        report_.parts_complete < report_.parts_total || report_.skeleton == SkeletonState::missing;
    report_.state = !report_.problems.empty() ? StoreState::damaged
                    : missing                 ? StoreState::incomplete
                                              : StoreState::complete;
    return std::move(report_);
  }

 private:
  void problem(const std::string& path, const std::string& message) {
    report_.problems.push_back({path, message});
  }

  /// zarr.json of the store, written after job.json and before any part is complete.
  Result<void> check_group(const std::vector<std::string>& names) {
    if (std::find(names.begin(), names.end(), "zarr.json") == names.end()) {
      if (report_.parts_complete > 0) {
        problem("zarr.json", "the file is missing");
      }
      return {};
    }
    const auto text = read_sealed_text(files_, directory_ + "/zarr.json");
    if (!text) {
      return is_wrong_data(text.error()) ? noted("zarr.json", text.error()) : text.error();
    }
    const auto attributes = parse_group_metadata(*text, "zarr.json");
    if (!attributes) {
      return noted("zarr.json", attributes.error());
    }
    if (!attributes->contains("librarian_store") || attributes->at("librarian_store") != 1) {
      problem("zarr.json", "not the group of a store: librarian_store is not 1");
    }
    return {};
  }

  Result<void> noted(const std::string& path, const Error& error) {
    problem(path, error.message());
    return {};
  }

  Result<void> check_part(std::uint64_t index, bool job_known) {
    const std::string name = part_directory_name(index);
    LIB_TRY(const FileInfo info, files_.info(directory_ + "/" + name));
    if (info.kind != FileKind::directory) {
      problem(name, "not a directory");
      return {};
    }
    if (job_known && index >= parts_.size()) {
      problem(name, "job.json has no part of this number");
      return {};
    }
    LIB_TRY(const std::vector<std::string> names, files_.list(directory_ + "/" + name));
    if (std::find(names.begin(), names.end(), "zarr.json") == names.end()) {
      return check_unpublished(name, names);
    }
    ++report_.parts_complete;
    auto part = read_part_file(files_, directory_ + "/" + name);
    if (!part) {
      return is_wrong_data(part.error()) ? noted(name + "/zarr.json", part.error()) : part.error();
    }
    if (job_known && part->range != parts_[index]) {
      problem(name + "/zarr.json", "not the samples that job.json gives to this part");
    }
    return check_published(name, *part);
  }

  Result<void> check_unpublished(const std::string& part, const std::vector<std::string>& names) {
    if (std::find(names.begin(), names.end(), ".journal") != names.end()) {
      return {};  // being written, or to be resumed: the journal knows what is there
    }
    for (const std::string& name : names) {
      if (is_array_name(name)) {
        problem(part + "/" + name, "an array in an unfinished part that has no journal");
      }
    }
    return {};
  }

  Result<void> check_published(const std::string& name, const PartFile& part) {
    PartCheck check{files_, directory_ + "/" + name, name, part, {}, report_, stop_, progress_};
    for (const FileRecord& file : part.files) {
      check.manifest[file.path] = file;
    }
    LIB_TRY_VOID(find_extra(check, "", 0));
    LIB_TRY_VOID(check_arrays(check));
    for (const FileRecord& file : part.files) {
      if (!belongs_to_array(part, file.path)) {
        LIB_TRY_VOID(check_other_file(check, file));
      }
    }
    return check_tokens(check);
  }

  static bool belongs_to_array(const PartFile& part, const std::string& path) {
    return std::any_of(part.arrays.begin(), part.arrays.end(), [&](const ArrayRecord& array) {
      return path.size() > array.name.size() && path[array.name.size()] == '/' &&
             path.compare(0, array.name.size(), array.name) == 0;
    });
  }

  Result<void> check_arrays(PartCheck& check) {
    std::set<std::string> names;
    for (const ArrayRecord& array : check.part.arrays) {
      names.insert(array.name);
      LIB_TRY_VOID(array.is_tokens() ? check_token_array(check, array)
                                     : check_capture_array(check, array));
    }
    for (const std::string& capture : check.part.captures) {
      if (names.count(capture) == 0 && check.part.aliases.count(capture) == 0 &&
          check.part.groups.count(capture) == 0) {
        check.problem("zarr.json", "capture '" + capture + "' is in no array");
      }
    }
    return {};
  }

  /// weights.json, tokens/zarr.json: sealed JSON that no array owns.
  Result<void> check_other_file(PartCheck& check, const FileRecord& file) {
    LIB_TRY(const bool right, check_file(check, file));
    if (!right || !ends_with(file.path, ".json")) {
      return {};
    }
    LIB_TRY(const std::string text, read_sealed_text(files_, check.directory + "/" + file.path));
    const auto sealed = open_sealed_json(text, file.path);
    if (!sealed) {
      check.problem(file.path, sealed.error().message());
    }
    return {};
  }

  /// What the digests cannot say: that ids, offsets and indices fit each other and the part.
  Result<void> check_tokens(PartCheck& check) {
    if (std::any_of(report_.problems.begin(), report_.problems.end(),
                    [&](const VerifyProblem& known) {
                      return known.path.rfind(check.name + "/tokens", 0) == 0;
                    })) {
      return {};
    }
    const auto tokens = read_part_tokens(files_, check.directory);
    if (!tokens) {
      return is_wrong_data(tokens.error()) ? noted(check.name + "/tokens", tokens.error())
                                           : tokens.error();
    }
    if (tokens->input_ids.size() != check.part.range.tokens ||
        tokens->sample_index.size() != check.part.range.samples) {
      check.problem("tokens", "not as many samples and tokens as the part states");
    }
    return {};
  }

  /// Everything below a published part must be in its manifest.
  Result<void> find_extra(PartCheck& check, const std::string& below, int depth) {
    const std::string path = below.empty() ? check.directory : check.directory + "/" + below;
    LIB_TRY(const std::vector<std::string> names, files_.list(path));
    for (const std::string& name : names) {
      const std::string entry = below.empty() ? name : below + "/" + name;
      const auto info = files_.info(check.directory + "/" + entry);
      if (!info && info.error().code() == ErrorCode::not_found) {
        continue;  // a running job removes its journal; missing data is found by the manifest
      }
      LIB_TRY_VOID(info);
      if (info->kind == FileKind::directory && depth < kDepthMax) {
        LIB_TRY_VOID(find_extra(check, entry, depth + 1));
      } else if (check.manifest.count(entry) == 0 && !(depth == 0 && may_be_left_over(name))) {
        check.problem(entry, "the manifest does not list this file");
      }
    }
    return {};
  }

  FileSystem& files_;
  const std::string directory_;
  const std::stop_token stop_;
  const std::function<void(std::uint64_t)> progress_;
  std::vector<PartRange> parts_;
  VerifyReport report_;
};

}  // namespace

const char* store_state_name(StoreState state) {
  switch (state) {
    case StoreState::complete:
      return "complete";
    case StoreState::incomplete:
      return "incomplete";
    case StoreState::damaged:
      return "damaged";
  }
  return "unknown";
}

const char* skeleton_state_name(SkeletonState state) {
  switch (state) {
    case SkeletonState::not_asked_for:
      return "not asked for";
    case SkeletonState::complete:
      return "complete";
    case SkeletonState::missing:
      return "missing";
    case SkeletonState::damaged:
      return "damaged";
  }
  return "unknown";
}

Result<VerifyReport> verify_store(FileSystem& files, const std::string& store_directory,
                                  const std::stop_token& stop,
                                  const std::function<void(std::uint64_t)>& progress) {
  return StoreCheck(files, store_directory, stop, progress).run();
}

}  // namespace librarian::activation_store
