#pragma once
/// A whole job on a file system in memory, for tests of what crashes leave of it.

#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "ingest/job.h"
#include "ingest/part_journal.h"
#include "tests/ingest/tiny_model.h"
#include "tests/support/memory_file_system.h"

namespace librarian::ingest::testing {

using librarian::testing::MemoryFileSystem;

inline constexpr const char* kOut = "/out";
inline constexpr const char* kTokens = "/tokens.safetensors";

struct CrashCase {
  const char* name;
  std::vector<std::string> captures;
  StateMode state;
  Duration save_state_every;
  StagingMode staging = StagingMode::memory;
  bool skeleton = true;
  bool loss_mask = false;  ///< The tokens have one.
};
inline void PrintTo(const CrashCase& how, std::ostream* out) { *out << how.name; }

/// A machine with a job of three parts on it, which may crash and be started again.
class Machine {
 public:
  /// @param model  Must outlive it.
  Machine(const std::map<std::string, std::string>& model, const CrashCase& how) : model_(model) {
    // Three parts of up to 24 tokens; a sample longer than two shards of 8 rows, some of length 1,
    // some across the border of a shard.
    LIB_CHECK(replace_file(files_, kTokens,
                           token_file({5, 7, 1, 20, 3, 11, 1, 6, 4}, 32, 7,
                                      how.loss_mask ? loss_mask() : std::vector<std::uint8_t>()))
                  .has_value());
    options_.model = kModelUri;
    options_.tokens = kTokens;
    options_.out = kOut;
    options_.captures = how.captures;
    options_.state = how.state;
    options_.save_state_every = how.save_state_every;
    options_.staging = how.staging;
    options_.skeleton = how.skeleton;
    options_.part_tokens = 24;
    options_.block_tokens = 16;
    options_.chunk_tokens = 4;
    options_.shard_tokens = 8;
    options_.host_memory_bytes = 256U << 20U;
    options_.threads = 1;
  }

  /// Runs and single tokens; nothing in the second part, whose tokens are 13 to 35.
  static std::vector<std::uint8_t> loss_mask() {
    std::vector<std::uint8_t> mask(58);
    for (std::size_t i = 0; i < mask.size(); ++i) {
      mask[i] = (i < 13 || i >= 36) && i % 5 != 1 && i % 7 != 3 ? 1 : 0;
    }
    return mask;
  }

  JobEnvironment environment(const std::shared_ptr<MapTransport>& transport) {
    JobEnvironment environment = JobEnvironment::real();
    environment.files = &files_;
    environment.make_transport = [transport](const JobOptions& /*options*/) {
      return std::make_unique<Shared>(transport);
    };
    return environment;
  }
  Result<RunReport> run(const std::shared_ptr<MapTransport>& transport) {
    LIB_TRY(const std::unique_ptr<PreparedJob> job,
            PreparedJob::create(options_, environment(transport), {}));
    JobObserver nobody;
    return job->run(nobody, {});
  }
  Result<RunReport> run() { return run(std::make_shared<MapTransport>(model_)); }

  /// The store as `diff -r` sees it, run-specific files left out.
  std::map<std::string, std::string> store() const {
    std::map<std::string, std::string> files;
    for (const auto& [path, text] : files_.snapshot()) {
      if (path.starts_with(kOut) && path != "/out/report.json" && path != "/out/.lock") {
        files[path] = text;
      }
    }
    return files;
  }

  /// Tensors of layers that a restart must not fetch for `part`: finished in its journal.
  std::size_t finished(std::uint64_t part, std::int32_t last_layer) {
    const std::string directory = std::string(kOut) + "/part-0000" + std::to_string(part);
    const auto progress = read_part_journal(files_, directory);
    return progress ? finished_layers(*progress, last_layer) : 0;
  }
  bool has_skeleton() {
    return files_.info(std::string(kOut) + "/model/librarian.json").has_value();
  }
  bool published(std::uint64_t part) {
    return files_.info(std::string(kOut) + "/part-0000" + std::to_string(part) + "/zarr.json")
        .has_value();
  }

  /// Paths in which this store and another differ, one a line; empty if none.
  std::string differences(const std::map<std::string, std::string>& other) const {
    const std::map<std::string, std::string> mine = store();
    std::string text;
    for (const auto& [path, contents] : mine) {
      const auto found = other.find(path);
      if (found == other.end() || found->second != contents) {
        text += (found == other.end() ? "only here: " : "differs: ") + path + "\n";
      }
    }
    for (const auto& [path, contents] : other) {
      text += mine.contains(path) ? "" : "missing: " + path + "\n";
    }
    return text;
  }

  MemoryFileSystem& files() { return files_; }
  JobOptions& options() { return options_; }

 private:
  /// The job owns its transport; the test wants to ask it afterwards.
  class Shared final : public weightmap::remote::Transport {
   public:
    explicit Shared(std::shared_ptr<MapTransport> transport) : transport_(std::move(transport)) {}
    void start(weightmap::remote::TransferRequest request,
               std::function<void(weightmap::remote::TransferResult)> done) override {
      transport_->start(std::move(request), std::move(done));
    }

   private:
    std::shared_ptr<MapTransport> transport_;
  };

  const std::map<std::string, std::string>& model_;
  MemoryFileSystem files_;
  JobOptions options_;
};

}  // namespace librarian::ingest::testing
