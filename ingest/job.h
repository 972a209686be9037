#pragma once
/// A job from its options to its store: what it would take, and doing it.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "activation_store/store_files.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/file_system.h"
#include "base/json.h"
#include "gpu_exec/device.h"
#include "ingest/capture_list.h"
#include "ingest/device_plan.h"
#include "ingest/disk_plan.h"
#include "ingest/job_events.h"
#include "ingest/job_options.h"
#include "ingest/known_weights.h"
#include "ingest/layer_sizes.h"
#include "ingest/memory_plan.h"
#include "ingest/part_journal.h"
#include "ingest/run_report.h"
#include "ingest/staging_plan.h"
#include "ingest/token_file.h"
#include "weightmap/checkpoint.h"
#include "weightmap/remote/fetcher.h"
#include "weightmap/remote/hub_revision.h"
#include "weightmap/remote/staging_directory.h"
#include "weightmap/remote/transport.h"
#include "weightmap/weight_source.h"

namespace librarian::ingest {

/// The world a job runs in; tests put doubles here.
struct JobEnvironment {
  Clock* clock = nullptr;
  FileSystem* files = nullptr;
  /// Makes what moves bytes; called once per job.
  std::function<std::unique_ptr<weightmap::remote::Transport>(const JobOptions&)> make_transport;
  std::function<Result<std::unique_ptr<gpu_exec::Device>>(const JobOptions&)> make_device;
  weightmap::remote::Environment variables = [](const std::string&) {
    return std::optional<std::string>();
  };

  /// The machine's clock, files, network and CPU.
  static JobEnvironment real();
};

/// Everything that is known before anything is computed. Immutable; `plan` prints it.
class PreparedJob {
 public:
  /// Reads the model's headers and the tokens, checks every option, plans memory and disk. If
  /// options.out holds a job already, what it fixed (the partition) is taken from there.
  /// @error invalid_argument | bad_input | conflict | does_not_fit | unavailable | cancelled
  static Result<std::unique_ptr<PreparedJob>> create(const JobOptions& options,
                                                     const JobEnvironment& environment,
                                                     const std::stop_token& stop);
  ~PreparedJob();
  PreparedJob(const PreparedJob&) = delete;
  PreparedJob& operator=(const PreparedJob&) = delete;

  const JobOptions& options() const { return options_; }
  const weightmap::Checkpoint& checkpoint() const { return *checkpoint_; }
  const CaptureList& captures() const { return captures_; }
  const TokenData& tokens() const { return tokens_; }
  const std::vector<activation_store::PartRange>& parts() const { return parts_; }
  const MemoryPlan& memory() const { return memory_; }
  const DiskPlan& disk() const { return disk_; }
  const StagingPlan& staging() const { return staging_; }
  gpu_exec::DType dtype() const { return dtype_; }
  std::uint64_t chunk_tokens() const { return chunk_tokens_; }
  std::uint64_t shard_tokens() const { return shard_tokens_; }
  const std::string& device_kind() const { return device_kind_; }
  const Json& identity() const { return identity_; }
  const std::string& identity_digest() const { return identity_digest_; }
  const std::vector<std::string>& warnings() const { return warnings_; }
  int threads() const { return threads_; }
  /// Nothing if the device works on host memory.
  const std::optional<DevicePlan>& device_plan() const { return device_plan_; }
  const LayerSizes& layer_sizes() const { return layer_sizes_; }

  /// See tokenizer_check.h; of this job's model.
  Result<bool> save_tokenizer(const std::string& path, const std::stop_token& stop);
  /// Bytes that the first part fetches: the weights from the embedding to the last captured layer,
  /// or the whole files that they lie in.
  std::uint64_t part_fetch_bytes() const;
  /// Bytes of tensors that are fetched for the skeleton (skeleton.h); 0: none is wanted, or it is
  /// there. The small files that go with them come on top.
  std::uint64_t skeleton_fetch_bytes() const;
  /// Bytes that all parts and the skeleton together fetch, if this process does them all.
  std::uint64_t fetch_bytes() const;
  /// Multiplications and additions of one pass over all tokens.
  double flops() const;

  /// Bytes received so far, of requests under way as well. Thread-safe.
  std::uint64_t fetched_bytes() const;

  /// Floating-point operations per second of the device, from a fraction of a second of a layer's
  /// matrix products; for estimates, not for promises.
  Result<double> measure_flops() const;

  /// Runs or resumes until every part is complete, by this process or another.
  /// @error conflict  the directory is foreign or holds another job. All other codes occur.
  Result<RunReport> run(JobObserver& observer, const std::stop_token& stop);

 private:
  PreparedJob(JobOptions options, JobEnvironment environment);
  Result<void> prepare(const std::stop_token& stop);
  Result<void> prepare_partition();
  Result<void> prepare_geometry();
  void count_logit_rows();
  Result<void> plan();
  bool wants_skeleton() const;
  Result<void> plan_weight_staging();
  Result<std::uint64_t> staging_limit_bytes() const;
  Result<std::uint64_t> disk_needed_bytes() const;
  Result<void> check_disk();
  std::vector<DiskArray> disk_arrays() const;
  Result<std::unique_ptr<weightmap::WeightSource>> open_weight_source(
      std::unique_ptr<weightmap::remote::StagingDirectory>& directory);
  Result<RunReport> run_parts(KnownWeights& known_weights, JobObserver& observer,
                              Result<void>& outcome, const std::stop_token& stop);
  Result<std::string> try_skeleton(KnownWeights& known_weights, JobObserver& observer,
                                   RunReport& report, const std::stop_token& stop);
  Result<void> finish_skeleton(KnownWeights& known_weights, JobObserver& observer,
                               RunReport& report, const std::stop_token& stop);
  Result<void> remove_scratch();
  void write_report(const RunReport& report);
  SourceRecord source_record() const;
  std::string scratch_root() const;
  std::string staging_path() const;
  std::int32_t computed_layers() const;

  JobOptions options_;
  JobEnvironment environment_;
  std::unique_ptr<weightmap::remote::Transport> transport_;
  std::unique_ptr<weightmap::remote::Fetcher> fetcher_;  // After the transport it uses.
  std::unique_ptr<gpu_exec::Device> device_;
  std::optional<weightmap::Checkpoint> checkpoint_;
  weightmap::remote::Uri place_;          // As given.
  weightmap::remote::PinnedModel model_;  // What it was when the job began.
  CaptureList captures_;
  TokenData tokens_;
  std::vector<activation_store::PartRange> parts_;
  std::uint64_t logit_rows_ = 0;      // Of logits.topk, in all parts,
  std::uint64_t logit_rows_max_ = 0;  // and in one.
  MemoryPlan memory_;
  LayerSizes layer_sizes_;
  std::uint64_t device_overhead_bytes_ = 0;  // Host memory that opening it took.
  std::optional<DevicePlan> device_plan_;
  DiskPlan disk_;
  StagingPlan staging_;
  gpu_exec::DType dtype_{};
  std::uint64_t chunk_tokens_ = 0;
  std::uint64_t shard_tokens_ = 0;
  std::string device_kind_;
  int threads_ = 1;
  Json identity_;
  std::string identity_digest_;
  std::vector<std::string> warnings_;
};

}  // namespace librarian::ingest
